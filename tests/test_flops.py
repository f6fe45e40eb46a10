"""Functions that can be counted by hand, and XLA's own count."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from vit_jax import chips, flops


def shape(*sizes):
  return jax.ShapeDtypeStruct(sizes, 'float32')


def conv(stride=1, padding='SAME', **kwargs):
  """Returns a convolution of [B, height, width, in] with [k, k, in, out]."""

  def function(image, kernel):
    return lax.conv_general_dilated(
      image, kernel, (stride, stride), padding,
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'), **kwargs
    )  # fmt: skip

  return function


def by_turns(x, w):
  return lax.scan(lambda x, _: (x @ w, None), x, length=5)[0]


def by_nested_turns(x, w):
  return lax.scan(lambda x, _: (by_turns(x, w), None), x, length=3)[0]


def by_cases(x, w):
  return lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: by_turns(x, w))


@jax.custom_vjp
def with_own_gradient(x, w):
  return x @ w


with_own_gradient.defvjp(
  lambda x, w: (x @ w, (x, w)),
  lambda saved, g: (g @ saved[1].T, saved[0].T @ g),
)

# Of [4, 4] with [4, 4].
PRODUCT = 2 * 4 * 4 * 4


@pytest.mark.parametrize(
  ('function', 'products', 'outputs'),
  [
    (jnp.matmul, 1, 1),
    (lambda x, w: jnp.tanh(x @ w + 1), 1, 1),
    (jax.jit(lambda x, w: jax.jit(jnp.matmul)(x, w) @ w), 2, 2),
    (jax.checkpoint(jnp.matmul), 1, 1),
    (lambda x, w: jax.nn.relu(x @ w), 1, 1),  # a custom_jvp
    (with_own_gradient, 1, 1),
    (by_turns, 5, 5),
    (by_nested_turns, 15, 15),
    (lambda x, w: lax.fori_loop(0, 7, lambda _, x: x @ w, x), 7, 7),
    (by_cases, 5, 5),
    (lambda x, w: x + w, 0, 0),
    # Forward, and the gradients of both arguments.
    (jax.grad(lambda x, w: ((x @ w) ** 2).sum(), (0, 1)), 3, 3),
    (jax.grad(lambda x, w: (with_own_gradient(x, w) ** 2).sum(), (0, 1)), 3, 3),
    (jax.grad(lambda x, w: (by_turns(x, w) ** 2).sum(), (0, 1)), 15, 15),
    # remat computes the products again.
    (
      jax.grad(
        jax.checkpoint(lambda x, w: ((x @ w) ** 2).sum()),
        (0, 1),
      ),
      4,
      4,
    ),
  ],
)  # fmt: skip
def test_products_are_counted_as_often_as_they_run(function, products, outputs):
  count = flops.count(function, shape(4, 4), shape(4, 4))
  assert count == (products * PRODUCT, 0, outputs * 16)


def test_batched_product():
  count = flops.count(
    lambda q, k: jnp.einsum('bqhd,bkhd->bhqk', q, k),
    shape(2, 5, 3, 8),
    shape(2, 7, 3, 8),
  )
  outputs = 2 * 3 * 5 * 7
  assert count == (2 * 8 * outputs, 0, outputs)


@pytest.mark.parametrize(
  ('function', 'outputs', 'taps', 'on_image'),
  [  # images of 8 x 6 pixels, kernels of 3 x 3
    (conv(), (8, 6), 9, 22 * 16),
    (conv(padding='VALID'), (6, 4), 9, 18 * 12),
    (conv(stride=2), (4, 3), 9, 11 * 8),  # pads 1 on the right and below
    (conv(padding=((1, 1), (1, 1))), (8, 6), 9, 22 * 16),
    (conv(rhs_dilation=(2, 2), padding='VALID'), (4, 2), 9, 12 * 6),
  ],
)
def test_convolutions(function, outputs, taps, on_image):
  count = flops.count(function, shape(2, 8, 6, 4), shape(3, 3, 4, 10))
  height, width = outputs
  each = 2 * 2 * 4 * 10  # multiply-add, two images, channels in and out
  assert count.flops == each * height * width * taps
  assert count.flops - count.padding_flops == each * on_image
  assert count.activations == 2 * height * width * 10


def test_groups_see_only_their_channels():
  whole = flops.count(conv(), shape(2, 8, 6, 4), shape(3, 3, 4, 10))
  halves = flops.count(
    conv(feature_group_count=2), shape(2, 8, 6, 4), shape(3, 3, 2, 10)
  )
  assert halves.flops * 2 == whole.flops
  assert halves.activations == whole.activations


@pytest.mark.parametrize('stride', [1, 2, 3])
@pytest.mark.parametrize('groups', [1, 2])
@pytest.mark.parametrize('argument', [None, 0, 1])
def test_xla_counts_what_is_not_padding(stride, groups, argument):
  function = conv(stride, feature_group_count=groups)
  args = (shape(2, 8, 7, 4), shape(3, 3, 4 // groups, 6))
  forward = flops.count(function, *args)
  count, compiled = forward, function
  if argument is not None:
    compiled = jax.grad(lambda *args: function(*args).sum(), argument)
    # Tracing a gradient traces the forward pass, which XLA drops.
    count = flops.count(compiled, *args)
    count = flops.Count(*(a - b for a, b in zip(count, forward, strict=True)))
  expected = jax.jit(compiled).lower(*args).cost_analysis()['flops']
  # XLA adds the sum of the loss's gradient, or nothing.
  assert count.flops - count.padding_flops == pytest.approx(expected, rel=0.01)


def test_loops_without_a_known_end_are_an_error():
  def function(x):
    return lax.while_loop(lambda x: x.sum() < 3, lambda x: x @ x, x)

  with pytest.raises(ValueError, match='while cannot be counted: .* lax.scan'):
    flops.count(function, shape(4, 4))


def test_loops_without_products_are_free():
  def function(x, w):
    return (x @ w) * jax.random.gamma(jax.random.key(0), 2.0)

  assert flops.count(function, shape(4, 4), shape(4, 4)).flops == PRODUCT


def test_step_at_the_peak_of_all_devices(monkeypatch):
  mesh = jax.make_mesh((4,), ('data',), devices=jax.devices()[:4])
  w = jax.ShapeDtypeStruct((12, 5), 'float32')

  def predict(w, images):
    x = images.reshape(len(images), -1).astype('float32')
    return x @ w, {}

  arguments = predict, w, (8, 2, 2, 3), mesh
  assert flops.step_seconds_at_peak(*arguments) is None  # of a CPU
  kind = jax.devices()[0].device_kind
  chip = chips.Chip(1000.0, 1, 1, 1, 1)
  monkeypatch.setitem(chips.CHIPS, kind, chip)
  seconds = flops.step_seconds_at_peak(*arguments)
  assert seconds == 3 * (2 * 8 * 12 * 5) / (1000 * 4)
