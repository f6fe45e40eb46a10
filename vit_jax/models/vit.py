"""Vision Transformer (paper, Section 3.1), its hybrids and Axial-ViT.

z_0 = [class; patches E] + E_pos;  z'_l = MSA(LN(z_{l-1})) + z_{l-1};
z_l = MLP(LN(z'_l)) + z'_l;  y = LN(z_L).
"""

import flax.linen as nn
import jax.numpy as jnp

from vit_jax import names
from vit_jax.models import layers, variants
from vit_jax.models.attention import AttentionPool
from vit_jax.models.encoder import EncoderLayer
from vit_jax.models.position_embedding import POSITION_EMBEDDINGS, POSITIONS_AT
from vit_jax.models.resnet import Backbone, check_width

HEADS = {
  'token': 'the class token',
  'gap': 'global average pooling',
  'map': 'attention pooling',
  'none': 'no representation and no logits, only tokens',
}


def build(
  variant,
  num_classes,
  head='token',
  pre_logits=False,
  head_bias=0.0,
  position_embedding='1d',
  position_embedding_at='stem',
  dropout=0.0,
  stochastic_depth=0.0,
  dtype='float32',
  unroll=1,
  remat='none',
  hidden_size=None,
  depth=None,
  mlp_dim=None,
  num_heads=None,
  stem_depths=None,
  stem_width=1.0,
  class_token=None,
  num_registers=0,
  norm_after_pool=False,
  gelu='tanh',
  norm_epsilon=1e-6,
):
  """Returns the ViT module of a variant such as 'B/16' or 'R50+ViT-B/16'.

  Args:
    variant: 'B/16' or 'ViT-B/16': size, one of Ti, S, B, L, H, g, G, and patch
      size in pixels; 'R50+ViT-B/16' (or 'R50x1+...'): a hybrid, see
      `variants.HYBRIDS`;
      'Axial-ViT-B/16': attention within rows, then within columns.
    num_classes: C, the number of logits; 0 for none.
    head: what represents an image, a name in HEADS.
    pre_logits: whether a tanh layer of size D precedes the last: pre-training.
    head_bias: initial bias of the last layer. About -log(C) lets training with
      sigmoid losses start at the prior of rare classes.
    position_embedding: 'none', '1d' (learned), '2d' (learned, one set an axis),
      'relative' (in attention), 'sincos2d' (fixed); Table 8.
    position_embedding_at: 'stem', 'every_layer' or 'shared' (by all layers).
    dropout: rate, see `ViT`.
    stochastic_depth: rate at the last layer, rising linearly from 0.
    dtype: 'float32' or 'bfloat16', of the matrix products.
    unroll: how many blocks one turn of the scan over depth holds. `depth` makes
      the fastest program and the longest compilation.
    remat: 'none', 'dots' or 'full', see `layers.REMAT_POLICIES`.
    hidden_size: D, if it is not the variant's; likewise the other sizes.
    depth: number of blocks.
    mlp_dim: hidden size of a block's MLP.
    num_heads: H.
    stem_depths: units per stage of any other ResNet as stem, () for its root.
      The variant's number is then the patch size on its feature map.
    stem_width: width factor of the stem.
    class_token: whether there is one although the head does not need it.
    num_registers: number of further learned tokens.
    norm_after_pool: whether the last LayerNorm follows the pooling.
    gelu: 'tanh' or 'exact'; these five describe models of other libraries.
    norm_epsilon: of LayerNorm.

  Raises:
    ValueError: on a name or number that is not allowed.
  """
  stem, axial, size, patch_size = variants.parse(variant)
  if stem_depths is None and stem is not None:
    stem_depths, patch_size = stem
  given = (hidden_size, depth, mlp_dim, num_heads)
  sizes = {
    name: default if value is None else value
    for name, value, default in zip(
      variants.SIZES, given, variants.VARIANTS[size], strict=True
    )
  }
  layers.check_sizes(**sizes, unroll=unroll)
  check_width('stem_width', stem_width)
  layers.check_rates(dropout=dropout, stochastic_depth=stochastic_depth)
  layers.check_sizes(0, num_classes=num_classes, num_registers=num_registers)
  for name, value, table in (
    ('head', head, HEADS),
    ('remat', remat, layers.REMAT_POLICIES),
    ('gelu', gelu, layers.GELUS),
    ('position_embedding', position_embedding, POSITION_EMBEDDINGS),
    ('position_embedding_at', position_embedding_at, POSITIONS_AT),
  ):
    names.lookup(table, value, f'config.model.{name}')
  if class_token is None:
    class_token = head == 'token'
  variants.check_combination(
    head, axial, class_token, num_registers, norm_after_pool,
    position_embedding, position_embedding_at,
  )  # fmt: skip
  return ViT(
    num_classes=0 if head == 'none' else num_classes,
    patch_size=patch_size,
    **sizes,
    head=head,
    pre_logits=pre_logits,
    head_bias=head_bias,
    position_embedding=position_embedding,
    position_embedding_at=position_embedding_at,
    dropout=dropout,
    stochastic_depth=stochastic_depth,
    dtype=names.lookup(layers.DTYPES, dtype, 'config.model.dtype'),
    unroll=unroll,
    remat=remat,
    stem_depths=None if stem_depths is None else tuple(stem_depths),
    stem_width=stem_width,
    class_token=class_token,
    num_registers=num_registers,
    norm_after_pool=norm_after_pool,
    gelu=gelu,
    norm_epsilon=norm_epsilon,
    axial=axial,
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
  head: str
  pre_logits: bool
  head_bias: float
  position_embedding: str
  position_embedding_at: str
  dropout: float
  stochastic_depth: float
  dtype: jnp.dtype
  unroll: int
  remat: str
  stem_depths: tuple | None
  stem_width: float
  class_token: bool
  num_registers: int
  norm_after_pool: bool
  gelu: str
  norm_epsilon: float
  axial: bool

  @property
  def num_prefix(self):
    """The number of tokens before the patches."""
    return int(self.class_token) + self.num_registers

  @nn.compact
  def __call__(self, images, train=False):
    """Classifies images.

    Args:
      images: [B, height, width, channels] floats, scaled to [-1, 1].
      train: whether dropout is on; it then needs the rng 'dropout'.

    Returns:
      Logits [B, C] float32, or None without classes; and a dict of features:
      'representation', [B, D] float32, what the last layer sees (absent with
      head 'none'); 'tokens', [B, N, D] in `dtype`, all outputs of the encoder:
      class token (if there is one), registers, patches.

    Raises:
      ValueError: if the images are integers, or do not divide into patches.
    """
    x = self._patches(images)  # [B, rows, columns, D]
    B, *grid, D = x.shape
    x = self._prepend(x.reshape(B, -1, D))  # [B, N, D]
    positions, each_adds = self._positions(tuple(grid), D)
    if positions is not None and self.position_embedding_at == 'stem':
      x, positions = x + positions.astype(x.dtype), None
    x = nn.Dropout(self.dropout)(x, deterministic=not train)
    x = layers.shard_batch(x)

    block = dict(
      num_heads=self.num_heads,
      mlp_dim=self.mlp_dim,
      dropout=self.dropout,
      stochastic_depth=self.stochastic_depth > 0,
      relative=self.position_embedding == 'relative',
      gelu=self.gelu,
      norm_epsilon=self.norm_epsilon,
      dtype=self.dtype,
    )

    def layer(name):
      return EncoderLayer(
        block=block,
        grid=tuple(grid),
        num_prefix=self.num_prefix,
        position_embedding=each_adds,
        axial=self.axial,
        name=name,
      )

    rates = jnp.linspace(0.0, self.stochastic_depth, self.depth)
    encode = layers.repeat(layer, self.depth, 'blocks', self.unroll, self.remat)
    x = encode(x, rates, positions, train)
    norm = nn.LayerNorm(self.norm_epsilon, dtype=self.dtype, name='norm')
    if not self.norm_after_pool:
      x = norm(x)
    features = {'tokens': x}
    if self.head == 'none':
      return None, features

    y = self._pool(x)
    if self.norm_after_pool:
      y = norm(y)
    if self.pre_logits:
      y = nn.tanh(nn.Dense(D, dtype=self.dtype, name='pre_logits')(y))
    features['representation'] = y.astype(jnp.float32)
    logits = layers.head(y, self.num_classes, self.head_bias, self.dtype)
    return logits, features

  def _patches(self, images):
    """Returns the embedded patches, [B, rows, columns, D] in `dtype`."""
    layers.check_floating(images)
    x, P = images.astype(self.dtype), self.patch_size
    if self.stem_depths is not None:
      x = Backbone(
        self.stem_depths, self.stem_width, version=1, dtype=self.dtype,
        unroll=self.unroll, remat=self.remat, name='stem',
      )(x, train=False)  # fmt: skip
    _, height, width, _ = x.shape
    if height % P or width % P or not height or not width:
      of = 'pixels' if x.shape[1:3] == images.shape[1:3] else 'features'
      raise ValueError(
        f'Images of {height}x{width} {of} do not divide into patches of '
        f'{P}x{P}; use such as do (config.*.preprocess, or image_size).'
      )
    return nn.Conv(
      self.hidden_size,
      kernel_size=(P, P),
      strides=(P, P),
      padding='VALID',
      dtype=self.dtype,
      name='embedding',
    )(x)

  def _prepend(self, x):
    """Puts class token and registers first: [B, N, D]."""
    B, _, D = x.shape
    prefix, small = [], nn.initializers.normal(1e-6)
    if self.class_token:
      prefix = [self.param('class_token', nn.initializers.zeros, (1, 1, D))]
    if self.num_registers:
      shape = (1, self.num_registers, D)
      prefix.append(self.param('registers', small, shape))
    prefix = [
      jnp.broadcast_to(p.astype(x.dtype), (B, *p.shape[1:])) for p in prefix
    ]
    return jnp.concatenate([*prefix, x], axis=1)

  def _positions(self, grid, D):
    """Returns the table of the stem or of all layers, and what each adds."""
    if self.position_embedding_at == 'every_layer':
      return None, self.position_embedding
    table = POSITION_EMBEDDINGS[self.position_embedding]
    return table(self, grid, self.num_prefix, D), 'none'

  def _pool(self, x):
    """Returns what represents the images, [B, D] in `dtype`."""
    if self.head == 'token':
      return x[:, 0]
    x = x[:, self.num_prefix :]
    if self.head == 'gap':
      return x.mean(axis=1)
    return AttentionPool(
      self.num_heads, self.mlp_dim, self.gelu, self.norm_epsilon, self.dtype,
      name='attention_pool',
    )(x)  # fmt: skip
