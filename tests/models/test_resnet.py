import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import models
from vit_jax.models import bottleneck

TINY = dict(name='resnet', variant='R14x0.5', num_classes=5, depths=(1, 2))
IMAGES = np.random.default_rng(0).uniform(-1, 1, (2, 22, 30, 3)).astype('f4')


def init(images=IMAGES, **kwargs):
  """Returns a tiny model and parameters of which none is 0."""
  model = models.build(**(TINY | kwargs))
  params = jax.jit(model.init)(jax.random.key(0), images)['params']
  noise = np.random.default_rng(1)
  return model, jax.tree.map(
    lambda x: np.asarray(x) + 0.1 * noise.normal(size=x.shape).astype('f4'),
    params,
  )


@functools.partial(jax.jit, static_argnames='model')
def apply(model, params, images=IMAGES):
  return model.apply({'params': params}, images)


@pytest.mark.parametrize(
  ('variant', 'number'),
  [  # with 1000 classes: of timm's resnetv2_*_bit
    ('R50x1', 25_549_352),
    ('R50x3', 217_319_080),
    ('R101x1', 44_541_480),
    ('R101x3', 387_934_888),
    ('R152x2', 236_335_208),
    ('BiT-R152x4', 936_533_224),
    # Not published; of this code.
    ('R50x2', 97_988_712),
    ('R152x1', 60_185_128),
    ('R200x3', 568_633_000),
    ('AxialResNet50', 24_355_192),
  ],
)
def test_parameter_counts(variant, number):
  model = models.build(name='resnet', variant=variant, num_classes=1000)
  image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), image)
  assert sum(x.size for x in jax.tree.leaves(shapes)) == number


@pytest.mark.parametrize('version', [1, 2])
def test_forward_is_the_equations(version):
  model, params = init(version=version)
  logits, features = apply(model, params)
  assert features['tokens'].shape == (2, 3 * 4, 256)
  expected = numpy_resnet(params, IMAGES, version)
  np.testing.assert_allclose(
    features['representation'], expected, atol=1e-4, rtol=1e-4
  )
  head = params['head']
  np.testing.assert_allclose(
    logits, expected @ head['kernel'] + head['bias'], atol=1e-3, rtol=1e-4
  )


def numpy_resnet(params, images, version):
  """The network in float64, one output pixel of a convolution at a time."""
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

  def pad(x, size, stride, value=0.0):
    if version == 2:
      amounts = [(size // 2, size // 2)] * 2
    else:  # SAME: as much as is needed, more at the end
      needed = [
        max((-(-n // stride) - 1) * stride + size - n, 0) for n in x.shape[1:3]
      ]
      amounts = [(n // 2, n - n // 2) for n in needed]
    return np.pad(x, [(0, 0), *amounts, (0, 0)], constant_values=value)

  def windows(x, size, stride):
    rows = range(0, x.shape[1] - size + 1, stride)
    columns = range(0, x.shape[2] - size + 1, stride)
    return np.stack([
      np.stack([x[:, i : i + size, j : j + size] for j in columns], 1)
      for i in rows
    ], 1)  # fmt: skip

  def conv(x, w, stride=1):
    kernel = w['kernel']
    kernel = kernel - kernel.mean((0, 1, 2))
    std = kernel.std((0, 1, 2))
    kernel /= std + 1e-5 if version == 1 else np.sqrt(std**2 + 1e-10)
    x = windows(pad(x, len(kernel), stride), len(kernel), stride)
    return np.einsum('bijhwc,hwco->bijo', x, kernel)

  def norm_relu(x, w, relu=True):
    groups = x.reshape(*x.shape[:3], 32, -1)
    mean, var = (
      f(groups, axis=(1, 2, 4), keepdims=True) for f in (np.mean, np.var)
    )
    epsilon = {1: 1e-6, 2: 1e-5}[version]
    x = ((groups - mean) / np.sqrt(var + epsilon)).reshape(x.shape)
    x = x * w['scale'] + w['bias']
    return np.maximum(x, 0) if relu else x

  def unit(x, w, stride):
    if version == 1:
      residual = x
      if 'conv_proj' in w:
        residual = norm_relu(
          conv(x, w['conv_proj'], stride), w['norm_proj'], relu=False
        )
      x = norm_relu(conv(x, w['conv1']), w['norm1'])
      x = norm_relu(conv(x, w['conv2'], stride), w['norm2'])
      x = norm_relu(conv(x, w['conv3']), w['norm3'], relu=False)
      return np.maximum(x + residual, 0)
    y = norm_relu(x, w['norm1'])
    residual = conv(y, w['conv_proj'], stride) if 'conv_proj' in w else x
    y = conv(norm_relu(conv(y, w['conv1']), w['norm2']), w['conv2'], stride)
    return conv(norm_relu(y, w['norm3']), w['conv3']) + residual

  backbone = p['backbone']
  x = conv(images.astype(np.float64), backbone['root']['conv'], 2)
  if version == 1:
    x = norm_relu(x, backbone['root']['norm'])
  x = windows(pad(x, 3, 2, -np.inf if version == 1 else 0), 3, 2).max((3, 4))
  x = unit(x, backbone['stage1_first'], 1)
  x = unit(x, backbone['stage2_first'], 2)
  x = unit(x, jax.tree.map(lambda w: w[0], backbone['stage2_rest']), 1)
  if version == 2:
    x = norm_relu(x, p['norm'])
  return x.mean((1, 2))


@pytest.mark.parametrize('kwargs', [dict(unroll=2), dict(remat='full')])
def test_unroll_and_remat_change_nothing(kwargs):
  model, params = init(depths=(3,))

  def gradient(model):
    return jax.jit(jax.grad(lambda p: (apply(model, p)[0] ** 2).sum()))(params)

  expected = gradient(model)
  actual = gradient(models.build(**(TINY | dict(depths=(3,)) | kwargs)))
  for a, b in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * abs(b).max())


def test_axial_attention_replaces_the_3x3_convolutions():
  model, params = init(IMAGES[:, :16, :16], variant='AxialResNet50', width=0.5)
  unit = params['backbone']['stage2_first']
  assert 'conv2' not in unit
  assert set(unit['attention']) == {'row', 'column'}
  assert unit['attention']['row']['relative_embedding'].shape == (7, 8)
  _, features = apply(model, params, IMAGES[:, :16, :16])
  assert features['tokens'].shape == (2, 2 * 2, 256)
  with pytest.raises(ValueError, match='relative_embedding for 7 positions'):
    apply(model, params, IMAGES[:, :16, :30])


def test_features_without_classes():
  model, params = init(num_classes=0)
  logits, features = apply(model, params)
  assert logits is None
  assert 'head' not in params
  assert features['representation'].shape == (2, 256)


def test_bfloat16_is_close():
  model, params = init()
  expected, _ = apply(model, params)
  logits, features = apply(models.build(**TINY, dtype='bfloat16'), params)
  assert logits.dtype == features['representation'].dtype == jnp.float32
  assert features['tokens'].dtype == jnp.bfloat16
  np.testing.assert_allclose(logits, expected, atol=0.1 * abs(expected).max())


def test_pooling_and_stride_of_axial_attention():
  attention = bottleneck.AxialAttention(stride=2, num_heads=1)
  x = jnp.ones((1, 3, 5, 4))
  y, _ = jax.jit(attention.init_with_output)(jax.random.key(0), x)
  assert y.shape == (1, 2, 3, 4)
  # Equal inputs stay equal: the padding does not count in the mean.
  np.testing.assert_allclose(y, jnp.broadcast_to(y[:, :1, :1], y.shape), 1e-5)


@pytest.mark.parametrize(
  ('kwargs', 'message'),
  [
    (dict(variant='R51x1'), "'R51x1' is unknown; write RDEPTHxWIDTH .* 14, 26"),
    (dict(variant='resnet50'), "such as 'R50x1', or 'AxialResNet50'"),
    (dict(variant='R50x0.3'), 'width=0.3 gives 19.2 channels.*multiple of 0.5'),
    (dict(depths=(3, 0)), r'config.model.depths\[1\]=0 is not at least 1'),
    (dict(version=3), 'config.model.version=3 is unknown; choose one of 1, 2'),
    (dict(num_classes=-1), 'config.model.num_classes=-1 is not at least 0'),
    (dict(remat='some'), 'choose one of dots, full, none'),
  ],
)
def test_build_explains_mistakes(kwargs, message):
  with pytest.raises(ValueError, match=message):
    models.build(**(TINY | kwargs))


def test_images_have_to_be_floats():
  model, params = init()
  with pytest.raises(ValueError, match='images are uint8'):
    apply(model, params, IMAGES.astype(np.uint8))
