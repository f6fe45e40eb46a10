import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from vit_jax import models

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
    ('H/14', 632_045_800),
  ],
)
def test_published_parameter_counts(variant, number):
  assert count(variant=variant, num_classes=1000) == number


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
    (dict(head='tokn'), "config.model.head='tokn'.*mean 'token'"),
    (dict(remat='some'), 'choose one of dots, full, none'),
    (dict(dtype='float23'), "config.model.dtype='float23'"),
    (dict(position_embedding='3d'), 'choose one of 1d, none'),
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
  with pytest.raises(ValueError, match='for 7 tokens, but the images make 5'):
    apply(model, params, IMAGES[:, :, :8])
  with pytest.raises(ValueError, match='hidden_size=16 .* num_heads=3'):
    init(num_heads=3)


def test_pixels_are_scaled_to_minus_one_and_one():
  pixels = models.scale_pixels(np.array([0, 255], np.uint8))
  np.testing.assert_array_equal(pixels, np.array([-1, 1], np.float32))
