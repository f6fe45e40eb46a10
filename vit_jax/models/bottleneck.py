"""The unit of BiT-ResNet, with weight standardisation and GroupNorm."""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from vit_jax.models import layers
from vit_jax.models.axial import AxialAttention

GROUPS = 32


class Version(NamedTuple):
  """What differs: epsilons, padding."""

  norm_epsilon: float
  padding: dict  # of a kernel's size


VERSIONS = {
  1: Version(1e-6, {1: 'SAME', 3: 'SAME', 7: 'SAME'}),
  2: Version(1e-5, {1: 'VALID', 3: [(1, 1)] * 2, 7: [(3, 3)] * 2}),
}


class Bottleneck(nn.Module):
  """Bottleneck of 1x1, 3x3 and 1x1 convolutions, with a residual connection.

  Attributes:
    width: channels of the 3x3 convolution; the output has four times as many.
    version: 1 or 2.
    dtype: of the convolutions.
    axial: whether attention replaces the 3x3 convolution.
    stride: of the 3x3 convolution.
    projects: whether a convolution fits the residual connection to the output.
  """

  width: int
  version: int
  dtype: jnp.dtype
  axial: bool = False
  stride: int = 1
  projects: bool = False

  @nn.compact
  def __call__(self, x, each, shared, train):
    del each, shared, train  # `layers.repeat` gives them
    unit = self._v1 if self.version == 1 else self._v2
    return layers.shard_batch(unit(x))

  def _v1(self, x):
    """Post-activation: relu(x + norm(conv(f(conv(f(conv(x)))))))."""
    residual = x
    if self.projects:
      residual = self._conv(4 * self.width, 1, 'conv_proj', self.stride)(x)
      residual = self._norm('norm_proj')(residual)
    x = nn.relu(self._norm('norm1')(self._conv(self.width, 1, 'conv1')(x)))
    x = nn.relu(self._norm('norm2')(self._middle(x)))
    x = self._conv(4 * self.width, 1, 'conv3')(x)
    x = self._norm('norm3', nn.initializers.zeros)(x)
    return nn.relu(x + residual)

  def _v2(self, x):
    """Pre-activation: x + conv(f(conv(f(conv(f(x)))))), f = relu(norm)."""
    residual = x
    x = nn.relu(self._norm('norm1')(x))
    if self.projects:
      residual = self._conv(4 * self.width, 1, 'conv_proj', self.stride)(x)
    x = self._conv(self.width, 1, 'conv1')(x)
    x = nn.relu(self._norm('norm2')(x))
    x = self._middle(x)
    x = nn.relu(self._norm('norm3')(x))
    return self._conv(4 * self.width, 1, 'conv3')(x) + residual

  def _middle(self, x):
    if not self.axial:
      return self._conv(self.width, 3, 'conv2', self.stride)(x)
    return AxialAttention(self.stride, dtype=self.dtype, name='attention')(x)

  def _conv(self, features, size, name, stride=1):
    return StdConv(features, size, stride, self.version, self.dtype, name=name)

  def _norm(self, name, scale_init=nn.initializers.ones):
    return group_norm(self.version, self.dtype, name, scale_init)


class StdConv(nn.Module):
  """Convolution without bias whose kernel is standardised (1903.10520).

  The weights of each output channel get mean 0 and standard deviation 1; the
  versions keep from dividing by 0 in different ways.
  """

  features: int
  size: int
  stride: int
  version: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x):
    shape = (self.size, self.size, x.shape[-1], self.features)
    kernel = self.param('kernel', nn.initializers.he_normal(), shape)
    kernel -= kernel.mean(axis=(0, 1, 2), keepdims=True)
    variance = (kernel**2).mean(axis=(0, 1, 2), keepdims=True)
    if self.version == 1:
      kernel /= jnp.sqrt(variance) + 1e-5
    else:
      kernel /= jnp.sqrt(variance + 1e-10)
    return nn.Conv(
      self.features,
      (self.size, self.size),
      self.stride,
      VERSIONS[self.version].padding[self.size],
      use_bias=False,
      dtype=self.dtype,
      parent=None,
    ).apply({'params': {'kernel': kernel}}, x)


def group_norm(version, dtype, name, scale_init=nn.initializers.ones):
  return nn.GroupNorm(
    GROUPS,
    epsilon=VERSIONS[version].norm_epsilon,
    use_fast_variance=False,  # E[x^2] - E[x]^2 loses what weights rely on
    dtype=dtype,
    scale_init=scale_init,
    name=name,
  )
