import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from vit_jax import models
from vit_jax.models import attention, layers, position_embedding, resnet

TINY = dict(
  variant='Ti/4',
  num_classes=5,
  hidden_size=16,
  depth=3,
  mlp_dim=32,
  num_heads=2,
)
IMAGES = np.random.default_rng(0).uniform(-1, 1, (2, 8, 12, 3)).astype('f4')


def init(images=IMAGES, **kwargs):
  """Returns a tiny model and parameters of which none is 0."""
  model = models.build(**(TINY | kwargs))
  params = jax.jit(model.init)(jax.random.key(0), images)['params']
  noise = np.random.default_rng(1)
  return model, jax.tree.map(
    lambda x: np.asarray(x) + 0.1 * noise.normal(size=x.shape).astype('f4'),
    params,
  )


@functools.partial(jax.jit, static_argnames=('model', 'train'))
def apply(model, params, images=IMAGES, train=False, seed=0):
  rngs = {'dropout': jax.random.key(seed)}
  return model.apply({'params': params}, images, train=train, rngs=rngs)


def count(**kwargs):
  model = models.build(**kwargs)
  image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), image)
  return sum(x.size for x in jax.tree.leaves(shapes))


@pytest.mark.parametrize(
  ('variant', 'number'),
  [  # of timm's models of that name with 1000 classes
    ('Ti/16', 5_717_416),
    ('S/16', 22_050_664),
    ('B/16', 86_567_656),
    ('B/32', 88_224_232),
    ('L/16', 304_326_632),
    ('L/32', 306_535_400),
    ('L/14', 304_203_752),
    ('H/14', 632_045_800),
    ('g/14', 1_012_611_432),
    ('G/14', 1_844_440_680),
    ('R+ViT-Ti/16', 6_337_704),
    ('R26+ViT-S/32', 36_431_912),
    ('R26+ViT-B/32', 101_383_976),
    ('R50+ViT-B/16', 98_659_112),
    ('R50+ViT-L/32', 328_994_856),
  ],
)
def test_published_parameter_counts(variant, number):
  assert count(variant=variant, num_classes=1000) == number


D, N = 768, 196  # of B/16 at 224 pixels


@pytest.mark.parametrize(
  ('kwargs', 'number'),
  [
    (dict(head='gap'), 86_567_656 - 2 * D),  # no class token
    (dict(num_classes=0), 86_567_656 - (D + 1) * 1000),
    # timm's vit_base_patch16_siglip_256 has 256 positions.
    (dict(head='map'), 93_699_304 - 60 * D),
    (dict(position_embedding='none'), 86_567_656 - (N + 1) * D),
    (dict(position_embedding='2d'), 86_567_656 - (N - 14) * D),
    (
      dict(position_embedding='relative'),  # 12 layers, offsets, d = 64
      86_567_656 - (N + 1) * D + 12 * (2 * (N + 1) - 1) * 64,
    ),
    (dict(position_embedding_at='every_layer'), 86_567_656 + 11 * (N + 1) * D),
    (dict(position_embedding_at='shared'), 86_567_656),
    # Twice the blocks, of 7,087,872 parameters each.
    (dict(variant='Axial-ViT-B/16', head='gap'), 86_566_120 + 12 * 7_087_872),
    (
      dict(variant='Axial-ViT-B/32', head='gap'),
      88_224_232 - 2 * D + 12 * 7_087_872,
    ),
    (dict(variant='R50+ViT-B/32'), 110_945_832),  # these two are our own
    (dict(variant='R50x1+ViT-L/16'), 316_483_624),
  ],
)
def test_parameter_counts_follow(kwargs, number):
  assert count(**(dict(variant='B/16', num_classes=1000) | kwargs)) == number


def test_pre_logits_is_one_more_dense_layer():
  assert (
    count(variant='B/16', num_classes=1000, pre_logits=True)
    == 86_567_656 + 768 * 768 + 768
  )


@pytest.mark.parametrize('head', ['token', 'gap'])
@pytest.mark.parametrize('pre_logits', [False, True])
def test_forward_is_the_papers_equations(head, pre_logits):
  model, params = init(head=head, pre_logits=pre_logits)
  logits, features = apply(model, params)
  expected_logits, expected = numpy_vit(params, IMAGES, head, pre_logits)
  np.testing.assert_allclose(logits, expected_logits, atol=2e-5)
  np.testing.assert_allclose(features['representation'], expected, atol=2e-5)


def numpy_vit(params, images, head, pre_logits):
  """The paper's equations, one image and one head at a time, in float64."""
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

  def layer_norm(x, w):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * w[
      'scale'
    ] + w['bias']  # fmt: skip

  def dense(x, w):
    return x @ w['kernel'] + w['bias']

  def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

  def attention(x, w):
    qkv, out = w['qkv'], w['out']
    total = out['bias']
    for h in range(2):
      q, k, v = (
        x @ qkv['kernel'][:, i, h] + qkv['bias'][i, h] for i in range(3)
      )
      weights = special.softmax(q @ k.T / np.sqrt(8), axis=-1)
      total = total + weights @ v @ out['kernel'][h]
    return total

  results = []
  for image in images.astype(np.float64):
    patches = [
      image[i : i + 4, j : j + 4].reshape(-1)
      for i in range(0, 8, 4)
      for j in range(0, 12, 4)
    ]
    kernel = p['embedding']['kernel'].reshape(-1, 16)
    z = np.stack(patches) @ kernel + p['embedding']['bias']
    if head == 'token':
      z = np.concatenate([p['class_token'][0], z])
    z = z + p['position_embedding'][0]
    for layer in range(3):
      w = jax.tree.map(lambda x, layer=layer: x[layer], p['blocks'])
      z = z + attention(layer_norm(z, w['attention_norm']), w['attention'])
      y = dense(layer_norm(z, w['mlp_norm']), w['mlp_in'])
      z = z + dense(gelu(y), w['mlp_out'])
    z = layer_norm(z, p['norm'])
    y = z[0] if head == 'token' else z.mean(0)
    results.append(np.tanh(dense(y, p['pre_logits'])) if pre_logits else y)
  y = np.stack(results)
  return dense(y, p['head']), y


def test_dropout_is_where_the_paper_puts_it():
  model, params = init(dropout=0.5)
  shapes = []

  def record(call, args, kwargs, context):
    if isinstance(context.module, nn.Dropout):
      shapes.append((context.module.path, args[0].shape))
    return call(*args, **kwargs)

  with nn.intercept_methods(record):
    jax.eval_shape(
      lambda: model.apply(
        {'params': params},
        IMAGES,
        train=True,
        rngs={'dropout': jax.random.key(0)},
      )
    )
  stem = [shape for path, shape in shapes if 'blocks' not in path]
  block = [shape for path, shape in shapes if 'blocks' in path]
  tokens, hidden = (2, 7, 16), (2, 7, 32)
  assert stem == [tokens]  # after adding the position embeddings
  # After the attention's output, after each dense layer of the MLP.
  assert block[:3] == [tokens, hidden, tokens]


def test_dropout_only_in_training_and_by_its_rng():
  model, params = init(dropout=0.5)

  def logits(seed, train):
    return apply(model, params, train=train, seed=seed)[0]

  np.testing.assert_array_equal(logits(0, False), logits(1, False))
  np.testing.assert_array_equal(logits(0, True), logits(0, True))
  assert abs(logits(0, True) - logits(1, True)).max() > 0.01


@pytest.mark.parametrize(
  'kwargs', [dict(unroll=3), dict(remat='dots'), dict(remat='full', unroll=2)]
)
def test_unroll_and_remat_change_nothing(kwargs):
  model, params = init(dropout=0.3)

  def gradient(model):
    def loss(params):
      return (apply(model, params, train=True)[0] ** 2).sum()

    return jax.jit(jax.grad(loss))(params)

  expected = gradient(model)
  actual = gradient(models.build(**TINY, dropout=0.3, **kwargs))
  for a, b in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_dtype_policy():
  model, params = init(dtype='bfloat16')
  assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype('float32')}
  (logits, features), sown = jax.jit(
    lambda p: model.apply({'params': p}, IMAGES, mutable=['intermediates'])
  )(params)
  assert logits.dtype == features['representation'].dtype == jnp.float32
  assert features['tokens'].dtype == jnp.bfloat16
  (weights,) = sown['intermediates']['blocks']['attention']['attention_weights']
  assert weights.shape == (3, 2, 2, 7, 7)  # layers, B, H, N, N
  expected, _ = apply(models.build(**TINY), params)
  np.testing.assert_allclose(logits, expected, atol=0.3)


def test_head_starts_at_its_bias():
  model = models.build(**TINY, head_bias=-10.0)
  params = jax.jit(model.init)(jax.random.key(0), IMAGES)['params']
  np.testing.assert_array_equal(apply(model, params)[0], -10.0)


@pytest.mark.parametrize(
  ('kwargs', 'message'),
  [
    (dict(name='vt'), r"config.model.name='vt' .*mean 'vit'\?\); .* vit"),
    (dict(variant='B16'), "variant='B16' is unknown; write SIZE/PATCH"),
    (dict(variant='X/16'), 'one of Ti, S, B, L, H, g, G'),
    (dict(variant='R50+ViT-B/8'), 'no hybrid of the paper; there are R50'),
    (dict(variant='R50B/16'), "'R50B/16' is unknown"),
    (dict(variant='Axial-ViT-Ti/4'), "no place for a class token; use .*'gap'"),
    (dict(class_token=False), "leaves nothing for config.model.head='token'"),
    (dict(depth=2.5), 'config.model.depth=2.5 is no whole number'),
    (
      dict(position_embedding='relative', position_embedding_at='shared'),
      "'relative' adds nothing to tokens; use 'stem'",
    ),
    (dict(head='map', norm_after_pool=True), "use 'gap' or 'token'"),
    (dict(num_registers=-1), 'num_registers=-1 is not at least 0'),
    (dict(stochastic_depth=-0.1), r'stochastic_depth=-0.1 is not in \[0, 1'),
    (dict(gelu='quick'), 'choose one of exact, tanh'),
    (dict(position_embedding_at='top'), 'choose one of every_layer, shared'),
    (dict(head='tokn'), "config.model.head='tokn'.*mean 'token'"),
    (dict(remat='some'), 'choose one of dots, full, none'),
    (dict(dtype='float23'), "config.model.dtype='float23'"),
    (dict(position_embedding='3d'), 'choose one of 1d, 2d, none'),
    (dict(dropout=1.0), r'config.model.dropout=1.0 is not in \[0, 1\)'),
    (dict(depth=0), 'config.model.depth=0 is not at least 1'),
    (dict(hiden_size=3), r"config.model.hiden_size .*mean 'hidden_size'"),
  ],
)
def test_build_explains_mistakes(kwargs, message):
  with pytest.raises(ValueError, match=message):
    models.build(**(TINY | kwargs))


def test_call_explains_mistakes():
  model, params = init()
  with pytest.raises(ValueError, match='8x10 pixels do not divide .* 4x4'):
    apply(model, params, IMAGES[:, :, :10])
  with pytest.raises(ValueError, match='images are uint8'):
    apply(model, params, IMAGES.astype(np.uint8))
  with pytest.raises(
    ValueError, match='for 7 positions, but the images make 5'
  ):
    apply(model, params, IMAGES[:, :, :8])
  with pytest.raises(ValueError, match='hidden_size=16 .* num_heads=3'):
    init(num_heads=3)


def test_pixels_are_scaled_to_minus_one_and_one():
  pixels = models.scale_pixels(np.array([0, 255], np.uint8))
  np.testing.assert_array_equal(pixels, np.array([-1, 1], np.float32))


@pytest.mark.parametrize('head', ['token', 'gap', 'map', 'none'])
def test_heads(head):
  model, params = init(head=head)
  logits, features = apply(model, params)
  tokens = np.asarray(features['tokens'])
  assert tokens.shape == (2, 6 + (head == 'token'), 16)
  if head == 'none':
    assert logits is None
    assert 'representation' not in features
    assert 'head' not in params
    return
  expected = {
    'token': lambda: tokens[:, 0],
    'gap': lambda: tokens.mean(axis=1),
    'map': lambda: numpy_attention_pool(params['attention_pool'], tokens),
  }[head]()
  np.testing.assert_allclose(features['representation'], expected, atol=2e-5)
  head = params['head']
  np.testing.assert_allclose(
    logits, expected @ head['kernel'] + head['bias'], atol=2e-5
  )


def numpy_attention_pool(p, tokens):
  """Attention of one learned query, an image and a head at a time."""
  result = []
  for x in tokens.astype(np.float64):
    y = np.array(p['out']['bias'], np.float64)
    for h in range(2):
      query = (
        p['probe'][0, 0] @ p['query']['kernel'][:, h] + p['query']['bias'][h]
      )
      key, value = (
        x @ p['key_value']['kernel'][:, i, h] + p['key_value']['bias'][i, h]
        for i in range(2)
      )
      y += special.softmax(key @ query / np.sqrt(8)) @ (
        value @ p['out']['kernel'][h]
      )
    z = (y - y.mean()) / np.sqrt(y.var() + 1e-6)
    z = z * p['norm']['scale'] + p['norm']['bias']
    z = np.asarray(jax.nn.gelu(z @ p['mlp_in']['kernel'] + p['mlp_in']['bias']))
    result.append(y + z @ p['mlp_out']['kernel'] + p['mlp_out']['bias'])
  return np.stack(result)


def test_registers_class_token_and_norm_after_pooling():
  model, params = init(
    head='gap', class_token=True, num_registers=2, norm_after_pool=True
  )
  assert params['position_embedding'].shape == (1, 1 + 2 + 6, 16)
  _, features = apply(model, params)
  pooled = np.asarray(features['tokens'])[:, 3:].mean(axis=1)
  pooled -= pooled.mean(axis=-1, keepdims=True)
  pooled /= np.sqrt((pooled**2).mean(axis=-1, keepdims=True) + 1e-6)
  np.testing.assert_allclose(
    features['representation'],
    pooled * params['norm']['scale'] + params['norm']['bias'],
    atol=2e-5,
  )


def test_2d_positions_are_column_and_row():
  _, params = init(position_embedding='2d')

  class Owner(nn.Module):
    @nn.compact
    def __call__(self):
      return position_embedding.learned_2d(self, (2, 3), 1, 16)

  grid = Owner().apply({'params': params})
  row, column = (
    params[f'position_embedding_{name}'] for name in ('row', 'column')
  )
  assert grid.shape == (1, 7, 16)
  np.testing.assert_array_equal(
    grid[0, 0], params['position_embedding_prefix'][0, 0]
  )
  np.testing.assert_array_equal(  # second row, third column
    grid[0, 1 + 5], np.concatenate([column[2], row[1]])
  )


def test_sincos_positions_are_big_visions():
  table = position_embedding.sincos_2d(None, (2, 3), 1, 8)
  expected = [np.zeros(8)]
  for y in range(2):
    for x in range(3):
      expected.append(
        [f(v * w) for v in (x, y) for f in (np.sin, np.cos) for w in (1, 1e-4)]
      )
  np.testing.assert_allclose(table[0], expected, atol=1e-6)


@pytest.mark.parametrize('kind', ['1d', '2d', 'sincos2d'])
def test_positions_at_every_layer(kind):
  stem, params = init(position_embedding=kind)
  shared, _ = init(position_embedding=kind, position_embedding_at='shared')
  every, own = init(
    position_embedding=kind, position_embedding_at='every_layer'
  )
  names = [name for name in params if name.startswith('position')]
  assert all(own['blocks'][name].shape[0] == 3 for name in names)
  # Layers that all add the same, and a first layer that alone adds.
  for model, factor in ((shared, 1), (stem, 0)):
    tables = {
      name: np.stack([params[name], *[factor * params[name]] * 2])
      for name in names
    }
    copy = {k: v for k, v in params.items() if k not in names}
    copy['blocks'] = params['blocks'] | tables
    if kind == 'sincos2d' and not factor:
      continue  # fixed: a layer cannot leave them out
    np.testing.assert_allclose(
      apply(every, copy)[0], apply(model, params)[0], atol=1e-5
    )


def test_relative_attention_is_by_offset():
  query = np.random.default_rng(0).normal(size=(2, 5, 3, 4)).astype('f4')
  table = np.random.default_rng(1).normal(size=(9, 4)).astype('f4')
  logits = attention.relative_logits(query, table)
  for q in range(5):
    for k in range(5):
      expected = query[:, q] @ table[q - k + 4]
      np.testing.assert_allclose(logits[:, :, q, k], expected, atol=1e-5)


def test_relative_embeddings_change_the_attention():
  model, params = init(position_embedding='relative')
  table = params['blocks']['attention']['relative_embedding']
  assert table.shape == (3, 2 * 7 - 1, 8)
  plain = jax.tree.map(np.copy, params)
  plain['blocks']['attention']['relative_embedding'][:] = 0
  none, _ = init(position_embedding='none')
  np.testing.assert_allclose(
    apply(model, plain)[0], apply(none, plain)[0], atol=1e-6
  )
  assert abs(apply(model, params)[0] - apply(none, plain)[0]).max() > 0.01


def test_axial_vit_attends_within_rows_then_columns():
  model, params = init(variant='Axial-ViT-Ti/4', head='gap', depth=1)
  assert set(params['blocks']) == {'row', 'column'}

  @jax.jit
  def weights(params):
    return model.apply({'params': params}, IMAGES, mutable='intermediates')[1]

  blocks = weights(params)['intermediates']['blocks']
  shapes = {
    name: blocks[name]['attention']['attention_weights'][0].shape
    for name in blocks
  }
  # Layers, images times rows (or columns), heads, queries, keys.
  assert shapes == {'row': (1, 2 * 2, 2, 3, 3), 'column': (1, 2 * 3, 2, 2, 2)}

  # Without what the column blocks add, a token sees its row alone.
  for name in ('out', 'mlp_out'):
    part = params['blocks']['column']
    part = part['attention'] if name == 'out' else part
    part[name] = jax.tree.map(np.zeros_like, part[name])
  changed = IMAGES.copy()
  changed[:, :4] = 0  # the first of two rows of patches
  before, after = (
    apply(model, params, images)[1]['tokens'] for images in (IMAGES, changed)
  )
  np.testing.assert_allclose(before[:, 3:], after[:, 3:], atol=1e-6)
  assert abs(before[:, :3] - after[:, :3]).max() > 0.01


def test_stochastic_depth_drops_whole_branches_of_examples():
  x = jnp.ones((4000, 2, 3))
  y = layers.stochastic_depth(x, jnp.float32(0.25), jax.random.key(0))
  assert set(np.unique(y).round(5)) == {0, np.float32(4 / 3).round(5)}
  np.testing.assert_array_equal(y, jnp.broadcast_to(y[:, :1, :1], y.shape))
  assert abs((y == 0).mean() - 0.25) < 0.02
  model, params = init(stochastic_depth=0.5, depth=2)
  plain = models.build(**TINY | dict(depth=2))
  expected = apply(plain, params)[0]
  np.testing.assert_array_equal(apply(model, params)[0], expected)
  assert abs(apply(model, params, train=True)[0] - expected).max() > 0.01


def test_exact_gelu_and_epsilon():
  model, params = init()
  expected = apply(model, params)[0]
  for kwargs in (dict(gelu='exact'), dict(norm_epsilon=1e-2)):
    change = apply(models.build(**TINY, **kwargs), params)[0] - expected
    assert 1e-6 < abs(change).max() < 0.1


def test_hybrid_is_a_vit_on_a_feature_map():
  images = IMAGES.repeat(8, axis=1).repeat(8, axis=2)  # 64 x 96
  model, params = init(
    images, variant='Ti/2', stem_depths=(1, 1), stem_width=0.5, head='gap'
  )
  backbone = resnet.Backbone((1, 1), 0.5, version=1, dtype=jnp.float32)
  features = jax.jit(lambda p: backbone.apply({'params': p}, images, False))(
    params['stem']
  )
  assert features.shape == (2, 8, 12, 256)
  plain = models.build(**(TINY | dict(variant='Ti/2', head='gap')))
  rest = {name: params[name] for name in params if name != 'stem'}
  np.testing.assert_allclose(
    apply(model, params, images)[0], apply(plain, rest, features)[0], atol=1e-4
  )
  with pytest.raises(ValueError, match='5x5 features do not divide .* 2x2'):
    apply(model, params, images[:, :40, :40])
