"""Vision Transformer (paper, Section 3.1).

z_0 = [class; patches E] + E_pos;  z'_l = MSA(LN(z_{l-1})) + z_{l-1};
z_l = MLP(LN(z'_l)) + z'_l;  y = LN(z_L).
"""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax import names
from vit_jax.models.attention import MultiHeadSelfAttention
from vit_jax.models.position_embedding import POSITION_EMBEDDINGS

# Table 1; Ti and S from 2106.10270, g and G from 2106.04560.
_FIELDS = ('hidden_size', 'depth', 'mlp_dim', 'num_heads')
VARIANTS = {
  'Ti': (192, 12, 768, 3),
  'S': (384, 12, 1536, 6),
  'B': (768, 12, 3072, 12),
  'L': (1024, 24, 4096, 16),
  'H': (1280, 32, 5120, 16),
  'g': (1408, 40, 6144, 16),
  'G': (1664, 48, 8192, 16),
}
HEADS = {'token': 'the class token', 'gap': 'global average pooling'}
DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}
# What the backward pass finds stored and does not compute again.
REMAT_POLICIES = {
  'none': None,  # everything
  'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # Dense
  'full': jax.checkpoint_policies.nothing_saveable,  # only a block's input
}


def build(
  variant,
  num_classes,
  head='token',
  pre_logits=False,
  head_bias=0.0,
  position_embedding='1d',
  dropout=0.0,
  dtype='float32',
  unroll=1,
  remat='none',
  hidden_size=None,
  depth=None,
  mlp_dim=None,
  num_heads=None,
):
  """Returns the ViT module of a variant name such as 'B/16'.

  Args:
    variant: size and patch size in pixels: '{Ti,S,B,L,H,g,G}/P'.
    num_classes: C, the number of logits.
    head: what represents an image, 'token' or 'gap'.
    pre_logits: whether a tanh layer of size D precedes the last layer, as in
      the paper's pre-training.
    head_bias: initial bias of the last layer. About -log(C) lets training with
      sigmoid losses start at the prior of rare classes.
    position_embedding: '1d' (learned) or 'none'.
    dropout: rate, see `ViT`.
    dtype: 'float32' or 'bfloat16', of the matrix products.
    unroll: how many blocks one turn of the scan over depth holds. `depth` makes
      the fastest program and the longest compilation.
    remat: 'none', 'dots' or 'full': how much the backward pass recomputes to
      save memory.
    hidden_size: D, if it is not the variant's; likewise the other sizes.
    depth: number of blocks.
    mlp_dim: hidden size of a block's MLP.
    num_heads: H.

  Raises:
    ValueError: on a name or number that is not allowed.
  """
  match = re.fullmatch(r'(\w+)/(\d+)', variant)
  if not match or match[1] not in VARIANTS or int(match[2]) < 1:
    raise ValueError(
      f'config.model.variant={variant!r} is unknown; write SIZE/PATCH with '
      f"SIZE one of {', '.join(VARIANTS)}, such as 'B/16'."
    )
  if not 0 <= dropout < 1:
    raise ValueError(f'config.model.dropout={dropout} is not in [0, 1).')
  sizes = dict(zip(_FIELDS, VARIANTS[match[1]], strict=True))
  given = dict(
    hidden_size=hidden_size, depth=depth, mlp_dim=mlp_dim, num_heads=num_heads
  )
  sizes |= {name: size for name, size in given.items() if size is not None}
  for name, size in dict(sizes, num_classes=num_classes, unroll=unroll).items():
    if size < 1:
      raise ValueError(f'config.model.{name}={size} is not at least 1.')
  names.lookup(HEADS, head, 'config.model.head')
  names.lookup(REMAT_POLICIES, remat, 'config.model.remat')
  names.lookup(
    POSITION_EMBEDDINGS, position_embedding, 'config.model.position_embedding'
  )
  return ViT(
    num_classes=num_classes,
    patch_size=int(match[2]),
    **sizes,
    head=head,
    pre_logits=pre_logits,
    head_bias=head_bias,
    position_embedding=position_embedding,
    dropout=dropout,
    dtype=names.lookup(DTYPES, dtype, 'config.model.dtype'),
    unroll=unroll,
    remat=remat,
  )


class ViT(nn.Module):
  """Vision Transformer; `build` explains the attributes.

  Dropout follows the paper: after adding the position embeddings and after
  every dense layer of a block except query, key and value. As in the published
  models, the head has none.
  """

  num_classes: int
  patch_size: int
  hidden_size: int
  depth: int
  mlp_dim: int
  num_heads: int
  head: str = 'token'
  pre_logits: bool = False
  head_bias: float = 0.0
  position_embedding: str = '1d'
  dropout: float = 0.0
  dtype: jnp.dtype = jnp.float32
  unroll: int = 1
  remat: str = 'none'

  @nn.compact
  def __call__(self, images, train=False):
    """Classifies images.

    Args:
      images: [B, height, width, channels] floats, scaled to [-1, 1].
      train: whether dropout is on; it then needs the rng 'dropout'.

    Returns:
      Logits [B, C] float32, and a dict of features: 'representation', [B, D]
      float32, what the last layer sees; 'tokens', [B, N, D] in `dtype`, all
      outputs of the encoder (class token first, if there is one).

    Raises:
      ValueError: if the images are integers, or do not divide into patches.
    """
    x = self._patches(images)
    B, _, D = x.shape
    if self.head == 'token':
      token = self.param('class_token', nn.initializers.zeros, (1, 1, D))
      token = jnp.broadcast_to(token.astype(x.dtype), (B, 1, D))
      x = jnp.concatenate([token, x], axis=1)  # [B, 1 + N, D]
    x = POSITION_EMBEDDINGS[self.position_embedding](self, x)
    x = nn.Dropout(self.dropout)(x, deterministic=not train)
    x = _shard_batch(x)
    x = self._blocks(x, train)
    x = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name='norm')(x)

    y = x[:, 0] if self.head == 'token' else x.mean(axis=1)  # [B, D]
    if self.pre_logits:
      y = nn.tanh(nn.Dense(D, dtype=self.dtype, name='pre_logits')(y))
    logits = nn.Dense(
      self.num_classes,
      kernel_init=nn.initializers.zeros,
      bias_init=nn.initializers.constant(self.head_bias),
      dtype=self.dtype,
      name='head',
    )(y)
    logits = _shard_batch(logits)
    features = {'representation': y.astype(jnp.float32), 'tokens': x}
    return logits.astype(jnp.float32), features

  def _patches(self, images):
    """Returns the embedded patches in raster order, [B, N, D] in `dtype`."""
    P, (B, height, width, _) = self.patch_size, images.shape
    if not jnp.issubdtype(images.dtype, jnp.floating):
      raise ValueError(
        f'images are {images.dtype}; the model takes floats in [-1, 1]: '
        '(x - 127.5) / 127.5.'
      )
    if height % P or width % P:
      raise ValueError(
        f'Images of {height}x{width} pixels do not divide into patches of '
        f"{P}x{P} (config.model.variant='.../{P}'); make config.train."
        f'preprocess (and config.evals) give a multiple of {P}.'
      )
    x = nn.Conv(
      self.hidden_size,
      kernel_size=(P, P),
      strides=(P, P),
      padding='VALID',
      dtype=self.dtype,
      name='embedding',
    )(images.astype(self.dtype))
    # [B, height / P, width / P, D] -> [B, N, D]
    return x.reshape(B, -1, self.hidden_size)

  def _blocks(self, x, train):
    """Runs the blocks under one scan: parameters lead with the layer axis."""
    block_type = EncoderBlock
    if self.remat != 'none':
      block_type = nn.remat(
        EncoderBlock,
        policy=REMAT_POLICIES[self.remat],
        static_argnums=(2,),
        # The loop itself keeps XLA from merging the recomputation away; where
        # it is unrolled, remat has to.
        prevent_cse=self.unroll > 1,
      )
    block = block_type(
      num_heads=self.num_heads,
      mlp_dim=self.mlp_dim,
      dropout=self.dropout,
      dtype=self.dtype,
      name='blocks',
    )
    scan = nn.scan(
      lambda block, x, _: (block(x, train), None),
      variable_axes={'params': 0, 'intermediates': 0},
      split_rngs={'params': True, 'dropout': True},
      length=self.depth,
      unroll=min(self.unroll, self.depth),
    )
    return scan(block, x, None)[0]


class EncoderBlock(nn.Module):
  """x + MSA(LN(x)), then x + MLP(LN(x)): [B, N, D] -> [B, N, D]."""

  num_heads: int
  mlp_dim: int
  dropout: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x, train):
    dropout = nn.Dropout(self.dropout, deterministic=not train)
    y = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name='attention_norm')(x)
    y = MultiHeadSelfAttention(self.num_heads, self.dtype, name='attention')(y)
    x = x + dropout(y)

    y = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name='mlp_norm')(x)
    y = self._dense(self.mlp_dim, 'mlp_in')(y)  # [B, N, mlp_dim]
    y = dropout(nn.gelu(y, approximate=True))
    x = x + dropout(self._dense(x.shape[-1], 'mlp_out')(y))
    return _shard_batch(x)

  def _dense(self, size, name):
    return nn.Dense(
      size,
      kernel_init=nn.initializers.xavier_uniform(),
      bias_init=nn.initializers.normal(stddev=1e-6),
      dtype=self.dtype,
      name=name,
    )


def _shard_batch(x):
  """Keeps activations [B, ...] split over the batch only.

  Left alone, XLA may split them along the parameters' axes, which needs more
  memory than there is. A no-op outside `sharding.activations`.
  """
  return nn.with_logical_constraint(x, ('batch', *(None,) * (x.ndim - 1)))
