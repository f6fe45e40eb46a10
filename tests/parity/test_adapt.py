"""Position embeddings are resized as timm and scipy do it."""

import numpy as np
import pytest
import safetensors.torch
import scipy.ndimage
import timm
import torch
from parity.both import make_images, our_outputs, randomise, timm_outputs
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import (
  VisionTransformer,
  checkpoint_filter_fn,
)

from vit_jax import weights
from vit_jax.weights import adapt

pytestmark = pytest.mark.parity

GRIDS = [
  ((7, 7), (14, 14)), ((14, 14), (24, 24)), ((24, 24), (14, 14)),
  ((16, 16), (3, 5)), ((3, 5), (7, 4)), ((4, 6), (6, 4)), ((2, 2), (9, 1)),
]  # fmt: skip


def positions(grid):
  shape = (*grid, 8)
  return np.random.default_rng(0).standard_normal(shape, 'f4')


@pytest.mark.parametrize(('old', 'new'), GRIDS)
def test_cubic_is_timm(old, new, agree):
  x = positions(old)
  expected = resample_abs_pos_embed(
    torch.from_numpy(x.reshape(1, -1, 8)), new, old, num_prefix_tokens=0
  )
  agree(
    dict(positions=adapt.resize_cubic(x, new)),
    dict(positions=expected.numpy().reshape(*new, 8)),
    ('resize, cubic', 'timm'),
  )


@pytest.mark.parametrize(('old', 'new'), GRIDS)
def test_linear_is_scipy(old, new, agree):
  x = positions(old)
  factors = (new[0] / old[0], new[1] / old[1], 1)
  agree(
    dict(positions=adapt.resize_linear(x, new)),
    dict(positions=scipy.ndimage.zoom(x, factors, order=1)),
    ('resize, linear', 'scipy'),
  )


@pytest.mark.parametrize('size', [(48, 48), (16, 16), (24, 64)])
@pytest.mark.parametrize('case', ['token', 'registers', 'DeiT III'])
def test_other_image_size(case, size, tmp_path, agree):
  """Both load a file of square images for images of another size."""
  arguments = dict(
    patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=5,
  ) | {
    'token': {},
    'registers': dict(reg_tokens=4),
    'DeiT III': dict(init_values=1e-6, no_embed_class=True),
  }[case]  # fmt: skip
  path = tmp_path / 'x.safetensors'
  made = randomise(VisionTransformer(img_size=32, **arguments))
  safetensors.torch.save_file(made.state_dict(), path)
  theirs = VisionTransformer(img_size=size, **arguments).eval()
  timm.models.load_checkpoint(theirs, str(path), filter_fn=checkpoint_filter_fn)
  model, params = weights.load(
    path, image_size=size, num_heads=3, resize='cubic'
  )
  images = make_images(*size)
  agree(
    our_outputs(model, params, images),
    timm_outputs(theirs, images),
    ('timm ViT, resized', 'theirs to ours'),
  )
