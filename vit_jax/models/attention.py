"""Multi-head attention (paper, Appendix A), and pooling by it."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models import layers
from vit_jax.models.position_embedding import learned

_xavier = nn.initializers.xavier_uniform()
# Glorot as if query, key and value were three [D, D] layers, which is how the
# published models start: twice the variance that Glorot gives one [D, 3D].
_qkv_init = nn.initializers.variance_scaling(2.0, 'fan_avg', 'uniform')
_key_value_init = nn.initializers.variance_scaling(1.5, 'fan_avg', 'uniform')


class MultiHeadSelfAttention(nn.Module):
  """MSA(x) = concat_h(softmax(q k^T / sqrt(d)) v) W_out, with d = D / H.

  Query, key and value are one layer, so that the three projections are one
  matrix product. Logits are stored in `dtype`, the softmax is computed in
  float32: storing float32 logits costs 15% more memory traffic on TPU.

  Attributes:
    num_heads: H, which divides D.
    dtype: dtype of the matrix products.
    relative: whether the logits get q r^T / sqrt(d) on top, with r a learned
      embedding of the offset between query and key in the sequence (D.4;
      1803.02155), one set for all heads.
  """

  num_heads: int
  dtype: jnp.dtype = jnp.float32
  relative: bool = False

  @nn.compact
  def __call__(self, x):
    """Attends over all tokens.

    Args:
      x: [B, N, D] in `dtype`.

    Returns:
      [B, N, D] in `dtype`. The attention weights, [B, H, N, N], are sown: ask
      for them with `model.apply(..., mutable=['intermediates'])`.

    Raises:
      ValueError: if D does not divide over the heads.
    """
    (_, N, D), H = x.shape, self.num_heads
    d = _head_size(D, H)
    qkv = nn.DenseGeneral(
      (3, H, d), kernel_init=_qkv_init, dtype=self.dtype, name='qkv'
    )(x)
    query, key, value = (qkv[:, :, i] for i in range(3))  # each [B, N, H, d]
    query = query * d**-0.5
    logits = jnp.einsum('bqhd,bkhd->bhqk', query, key)
    if self.relative:
      table = learned(self, 'relative_embedding', (2 * N - 1, d), axis=0)
      logits += relative_logits(query, table.astype(self.dtype))
    weights = _softmax(logits)
    self.sow('intermediates', 'attention_weights', weights)
    x = jnp.einsum('bhqk,bkhd->bqhd', weights, value)
    return _project(x, D, self.dtype)


class AttentionPool(nn.Module):
  """The 'map' head: a learned query attends over all tokens (2106.04560).

  y = MSA(query, x);  y + MLP(LN(y)): [B, N, D] -> [B, D].
  """

  num_heads: int
  mlp_dim: int
  gelu: str
  norm_epsilon: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x):
    D, H = x.shape[-1], self.num_heads
    d = _head_size(D, H)
    probe = self.param('probe', _xavier, (1, 1, D)).astype(self.dtype)
    query = nn.DenseGeneral(
      (H, d), kernel_init=_xavier, dtype=self.dtype, name='query'
    )(probe)[0]  # [1, H, d]
    key_value = nn.DenseGeneral(
      (2, H, d),
      kernel_init=_key_value_init,
      dtype=self.dtype,
      name='key_value',
    )(x)
    key, value = key_value[:, :, 0], key_value[:, :, 1]  # each [B, N, H, d]
    logits = jnp.einsum('qhd,bkhd->bhqk', query * d**-0.5, key)
    weights = _softmax(logits)
    self.sow('intermediates', 'attention_weights', weights)
    x = jnp.einsum('bhqk,bkhd->bqhd', weights, value)
    x = _project(x, D, self.dtype)[:, 0]  # [B, D]
    y = nn.LayerNorm(self.norm_epsilon, dtype=self.dtype, name='norm')(x)
    return x + layers.mlp(y, self.mlp_dim, self.gelu, lambda x: x, self.dtype)


def relative_logits(query, table):
  """Returns query[q] . table[q - k + N - 1] for all pairs, [B, H, N, N].

  Args:
    query: [B, N, H, d].
    table: [2 N - 1, d], embeddings of the offsets q - k from -(N - 1) on.
  """
  _, N, _, _ = query.shape
  # Column j is the offset N - 1 - j, and row q wants columns N - 1 - q + k: a
  # row of length 2 N - 1 read from a shifted start is what reshaping does.
  x = jnp.einsum('bqhd,jd->bhqj', query, table[::-1])
  x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, 1)))  # [B, H, N, 2 N]
  x = x.reshape(*x.shape[:2], -1)[:, :, N - 1 : N - 1 + N * (2 * N - 1)]
  return x.reshape(*x.shape[:2], N, 2 * N - 1)[..., :N]


def _softmax(logits):
  return jax.nn.softmax(logits.astype(jnp.float32)).astype(logits.dtype)


def _project(x, D, dtype):
  """The heads' outputs, [B, N, H, d] -> [B, N, D]."""
  return nn.DenseGeneral(
    D, axis=(-2, -1), kernel_init=_xavier, dtype=dtype, name='out'
  )(x)


def _head_size(D, H):
  if D % H:
    raise ValueError(
      f'config.model.hidden_size={D} does not divide over num_heads={H}; '
      f'use a multiple of {H}.'
    )
  return D // H
