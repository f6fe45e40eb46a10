"""Attention along one axis at a time, on a feature map (paper, D.6).

Axial-ViT needs nothing of its own: `encoder.EncoderLayer` calls its block on
rows and on columns. This is what AxialResNet has instead of 3x3 convolutions.
"""

import flax.linen as nn
import jax.numpy as jnp

from vit_jax.models.attention import MultiHeadSelfAttention


class AxialAttention(nn.Module):
  """Attention within rows, then within columns, then pooling to the stride.

  Both have relative positions (1912.12180, 2003.07853).

  Attributes:
    stride: of the average pooling.
    num_heads: H, which divides the channels.
    dtype: dtype of the matrix products.
  """

  stride: int
  num_heads: int = 8
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    """Returns [B, ceil(height / stride), ceil(width / stride), C]."""
    B, height, width, C = x.shape
    row, column = (
      MultiHeadSelfAttention(
        self.num_heads, self.dtype, relative=True, name=name
      )
      for name in ('row', 'column')
    )
    x = row(x.reshape(B * height, width, C)).reshape(B, height, width, C)
    x = x.swapaxes(1, 2).reshape(B * width, height, C)
    x = column(x).reshape(B, width, height, C).swapaxes(1, 2)
    if self.stride == 1:
      return x
    strides = (self.stride, self.stride)
    return nn.avg_pool(
      x, strides, strides, padding='SAME', count_include_pad=False
    )
