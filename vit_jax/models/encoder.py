"""The Transformer's blocks."""

import flax.linen as nn
import jax.numpy as jnp

from vit_jax.models import layers
from vit_jax.models.attention import MultiHeadSelfAttention
from vit_jax.models.position_embedding import POSITION_EMBEDDINGS


class EncoderBlock(nn.Module):
  """x + MSA(LN(x)), then x + MLP(LN(x)): [B, N, D] -> [B, N, D].

  Attributes:
    num_heads: H.
    mlp_dim: size of the MLP's hidden layer.
    dropout: rate, after every dense layer but query, key and value.
    stochastic_depth: whether residual branches are dropped in training.
    relative: whether attention is relative, see `MultiHeadSelfAttention`.
    gelu: a name in `layers.GELUS`.
    norm_epsilon: of LayerNorm.
    dtype: of the matrix products.
  """

  num_heads: int
  mlp_dim: int
  dropout: float
  stochastic_depth: bool
  relative: bool
  gelu: str
  norm_epsilon: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x, rate, train):
    """Applies the block; `rate` is that of stochastic depth in this layer."""
    dropout = nn.Dropout(self.dropout, deterministic=not train)
    y = self._norm('attention_norm')(x)
    y = MultiHeadSelfAttention(
      self.num_heads, self.dtype, self.relative, name='attention'
    )(y)
    x = x + self._drop_branch(dropout(y), rate, train)
    y = self._norm('mlp_norm')(x)
    y = layers.mlp(y, self.mlp_dim, self.gelu, dropout, self.dtype)
    return layers.shard_batch(x + self._drop_branch(y, rate, train))

  def _norm(self, name):
    return nn.LayerNorm(self.norm_epsilon, dtype=self.dtype, name=name)

  def _drop_branch(self, y, rate, train):
    if not (train and self.stochastic_depth):
      return y
    return layers.stochastic_depth(y, rate, self.make_rng('dropout'))


class EncoderLayer(nn.Module):
  """One layer of the encoder: position embeddings, if every layer adds them,
  then a block over all tokens, or ('axial') a block over each row of the grid
  and one over each column (D.6; stochastic depth then drops the branches of
  rows and columns, each by itself).

  Attributes:
    block: dict, the arguments of EncoderBlock.
    grid: (rows, columns) of patches.
    num_prefix: number of tokens before the patches.
    position_embedding: what this layer adds: a name in POSITION_EMBEDDINGS.
    axial: whether attention is within rows, then within columns.
  """

  block: dict
  grid: tuple
  num_prefix: int
  position_embedding: str
  axial: bool

  @nn.compact
  def __call__(self, x, rate, positions, train):
    """Applies the layer.

    Args:
      x: [B, N, D].
      rate: of stochastic depth, float32 scalar.
      positions: table to add, [1, N, D], the same for every layer, or None.
      train: whether dropout is on.
    """
    B, N, D = x.shape
    if positions is None:
      positions = POSITION_EMBEDDINGS[self.position_embedding](
        self, self.grid, self.num_prefix, D
      )
    if positions is not None:
      x = x + positions.astype(x.dtype)
    if not self.axial:
      # The block's parameters are this layer's own.
      block = EncoderBlock(**self.block)
      nn.share_scope(self, block)
      return block(x, rate, train)

    rows, columns = self.grid
    x = x.reshape(B * rows, columns, D)
    x = EncoderBlock(**self.block, name='row')(x, rate, train)
    x = x.reshape(B, rows, columns, D).swapaxes(1, 2)
    x = x.reshape(B * columns, rows, D)
    x = EncoderBlock(**self.block, name='column')(x, rate, train)
    return x.reshape(B, columns, rows, D).swapaxes(1, 2).reshape(B, N, D)
