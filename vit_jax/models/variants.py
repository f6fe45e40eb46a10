"""Which ViTs there are: sizes, patches, stems, what goes together."""

import re

# Table 1; Ti and S from 2106.10270, g and G from 2106.04560.
SIZES = ('hidden_size', 'depth', 'mlp_dim', 'num_heads')
VARIANTS = {
  'Ti': (192, 12, 768, 3),
  'S': (384, 12, 1536, 6),
  'B': (768, 12, 3072, 12),
  'L': (1024, 24, 4096, 16),
  'H': (1280, 32, 5120, 16),
  'g': (1408, 40, 6144, 16),
  'G': (1664, 48, 8192, 16),
}
# Hybrids (Section 4.1; 2106.10270): the ResNet's units per stage, and the patch
# size on its feature map. In their names the number is the total stride, but
# for R+ViT-Ti/16, whose published weights have 32.
HYBRIDS = {
  'R+Ti/16': ((), 8),
  'R26+/32': ((2, 2, 2, 2), 1),
  'R50+/32': ((3, 4, 6, 3), 1),
  'R50+/16': ((3, 4, 9), 1),  # stage 4 removed, its units moved to stage 3
}


def parse(variant):
  """Returns (stem, axial, size, patch size) of a variant's name."""
  match = re.fullmatch(
    r'(R\d*)?(?:(?<=\d)x1)?(\+)?(Axial-)?(?:ViT-)?(\w+)/(\d+)', variant
  )
  stem, plus, axial, size, patch = match.groups() if match else (None,) * 5
  if (
    not match
    or bool(stem) != bool(plus)
    or size not in VARIANTS
    or patch == '0'
  ):
    raise ValueError(
      f'config.model.variant={variant!r} is unknown; write SIZE/PATCH with '
      f"SIZE one of {', '.join(VARIANTS)}, such as 'B/16', or a hybrid such as "
      "'R50+ViT-B/16', or 'Axial-ViT-B/16'."
    )
  if stem is None:
    return None, bool(axial), size, int(patch)
  for name in (f'{stem}+{size}/{patch}', f'{stem}+/{patch}'):
    if name in HYBRIDS:
      return HYBRIDS[name], bool(axial), size, int(patch)
  raise ValueError(
    f'config.model.variant={variant!r} is no hybrid of the paper; there are '
    'R50+ViT-SIZE/32, R50+ViT-SIZE/16, R26+ViT-SIZE/32 and R+ViT-Ti/16. For '
    'any other set config.model.stem_depths.'
  )


def check_combination(
  head, axial, class_token, num_registers, norm_after_pool, kind, at
):
  """Raises ValueError on arguments that do not go together."""
  if kind in ('none', 'relative') and at != 'stem':
    raise ValueError(
      f'config.model.position_embedding_at={at!r}, but position_embedding='
      f"{kind!r} adds nothing to tokens; use 'stem'."
    )
  if head == 'token' and not class_token:
    raise ValueError(
      'config.model.class_token=False leaves nothing for config.model.head='
      "'token'; use head='gap' or 'map'."
    )
  if axial and (class_token or num_registers):
    raise ValueError(
      'config.model.variant: Axial-ViT attends on the grid of patches, which '
      "has no place for a class token; use config.model.head='gap' or 'map'."
    )
  if norm_after_pool and head in ('map', 'none'):
    raise ValueError(
      f'config.model.norm_after_pool=True needs a mean or a token, but '
      f"config.model.head={head!r}; use 'gap' or 'token'."
    )
