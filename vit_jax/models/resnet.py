"""BiT-ResNet (1912.11370): GroupNorm and weight standardisation, any width.

There are two of them. Version 2, pre-activation, is the published BiT; version
1, post-activation, is the stem of the hybrids. They differ in padding and in
epsilons, too.
"""

import re

import flax.linen as nn
import jax.numpy as jnp

from vit_jax import names
from vit_jax.models import layers
from vit_jax.models.bottleneck import (
  GROUPS,
  VERSIONS,
  Bottleneck,
  StdConv,
  group_norm,
)

# Units per stage of a depth; 14 and 26 are small kin, of bottlenecks too.
DEPTHS = {
  14: (1, 1, 1, 1),
  26: (2, 2, 2, 2),
  50: (3, 4, 6, 3),
  101: (3, 4, 23, 3),
  152: (3, 8, 36, 3),
  200: (3, 24, 36, 3),
}


def build(
  variant,
  num_classes,
  version=2,
  head_bias=0.0,
  dtype='float32',
  unroll=1,
  remat='none',
  depths=None,
  width=None,
):
  """Returns the ResNet module of a variant name such as 'R50x1'.

  Args:
    variant: 'R{14,26,50,101,152,200}xW': depth and width factor W, 0.5 and
      more; 'AxialResNet50': a R50x1 in which attention over rows and columns
      replaces every 3x3 convolution (D.6).
    num_classes: C, the number of logits; 0 for none.
    version: 2 (pre-activation, the published BiT) or 1 (post-activation).
    head_bias: initial bias of the last layer.
    dtype: 'float32' or 'bfloat16', of convolutions and matrix products.
    unroll: how many units of a stage one turn of its scan holds.
    remat: 'none', 'dots' or 'full': how much the backward pass recomputes to
      save memory.
    depths: units per stage, if they are not the variant's.
    width: width factor, if it is not the variant's.

  Raises:
    ValueError: on a name or number that is not allowed.
  """
  if variant == 'AxialResNet50':
    axial, depth, variant_width = True, 50, 1.0
  else:
    match = re.fullmatch(r'(?:BiT-)?R(\d+)x(\d+(?:\.\d+)?)', variant)
    axial = False
    depth = int(match[1]) if match else 0
    variant_width = float(match[2]) if match else 0
  if depth not in DEPTHS:
    raise ValueError(
      f'config.model.variant={variant!r} is unknown; write RDEPTHxWIDTH with '
      f"DEPTH one of {', '.join(map(str, DEPTHS))}, such as 'R50x1', or "
      "'AxialResNet50'."
    )
  width = variant_width if width is None else width
  check_width('width', width)
  depths = DEPTHS[depth] if depths is None else tuple(depths)
  layers.check_sizes(
    unroll=unroll, **{f'depths[{i}]': d for i, d in enumerate(depths)}
  )
  layers.check_sizes(0, num_classes=num_classes)
  names.lookup(VERSIONS, version, 'config.model.version')
  names.lookup(layers.REMAT_POLICIES, remat, 'config.model.remat')
  return ResNet(
    num_classes=num_classes,
    depths=depths,
    width=width,
    version=version,
    head_bias=head_bias,
    dtype=names.lookup(layers.DTYPES, dtype, 'config.model.dtype'),
    unroll=unroll,
    remat=remat,
    axial=axial,
  )


def check_width(name, width):
  """Raises ValueError on a width factor whose channels make no groups."""
  if width <= 0 or 64 * width % GROUPS:
    raise ValueError(
      f'config.model.{name}={width} gives {64 * width:g} channels, which '
      f'GroupNorm cannot split into {GROUPS} groups; use a multiple of 0.5.'
    )


class ResNet(nn.Module):
  """BiT-ResNet; `build` explains the attributes."""

  num_classes: int
  depths: tuple
  width: float
  version: int
  head_bias: float
  dtype: jnp.dtype
  unroll: int
  remat: str
  axial: bool

  @nn.compact
  def __call__(self, images, train=False):
    """Classifies images.

    Args:
      images: [B, height, width, channels] floats, scaled to [-1, 1].
      train: makes no difference.

    Returns:
      Logits [B, C] float32, or None without classes; and a dict of features:
      'representation', [B, D] float32, what the last layer sees; 'tokens',
      [B, N, D] in `dtype`, the last feature map in raster order.

    Raises:
      ValueError: if the images are integers.
    """
    layers.check_floating(images)
    x = Backbone(
      self.depths, self.width, self.version, self.dtype, self.unroll,
      self.remat, self.axial, name='backbone',
    )(images.astype(self.dtype), train)  # fmt: skip
    if self.version == 2:
      x = nn.relu(group_norm(self.version, self.dtype, 'norm')(x))
    tokens = x.reshape(x.shape[0], -1, x.shape[-1])
    # The mean of a large map does not fit bfloat16's 8 bits.
    y = tokens.astype(jnp.float32).mean(axis=1)
    logits = layers.head(y, self.num_classes, self.head_bias, self.dtype)
    return logits, {'representation': y, 'tokens': tokens}


class Backbone(nn.Module):
  """Root and stages: [B, height, width, channels] -> feature map.

  The stages after the first halve the resolution and double the width. Without
  stages there is only the root, of stride 4.
  """

  depths: tuple
  width: float
  version: int
  dtype: jnp.dtype
  unroll: int = 1
  remat: str = 'none'
  axial: bool = False

  @nn.compact
  def __call__(self, x, train):
    """Returns [B, ceil(height / 4), ceil(width / 4), 64 width] without stages,
    else 256 width channels after the first, twice as many after each further.
    """
    width = int(64 * self.width)
    x = Root(width, self.version, self.dtype, name='root')(x)
    for stage, depth in enumerate(self.depths):
      unit = dict(
        width=width * 2**stage, version=self.version, dtype=self.dtype,
        axial=self.axial,
      )  # fmt: skip
      first, rest = f'stage{stage + 1}_first', f'stage{stage + 1}_rest'
      # The first unit changes the shape; the others are alike.
      x = layers.once(
        Bottleneck(**unit, stride=2 if stage else 1, projects=True, name=first),
        x,
        self.remat,
      )
      if depth > 1:
        units = layers.repeat(
          lambda name, unit=unit: Bottleneck(**unit, name=name),
          depth - 1, rest, self.unroll, self.remat,
        )  # fmt: skip
        x = units(x, None, None, train)
    return x


class Root(nn.Module):
  """7x7 convolution of stride 2, and max-pooling of stride 2."""

  width: int
  version: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x):
    x = StdConv(self.width, 7, 2, self.version, self.dtype, name='conv')(x)
    if self.version == 1:
      x = nn.relu(group_norm(self.version, self.dtype, 'norm')(x))
      return nn.max_pool(x, (3, 3), strides=(2, 2), padding='SAME')
    # BiT pads with 0, not with -inf.
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return nn.max_pool(x, (3, 3), strides=(2, 2), padding='VALID')
