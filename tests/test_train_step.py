"""Steps: by hand, accumulated, on any number of devices."""

import re

import jax
import numpy as np
import optax
import pytest

from vit_jax import models, objectives, optimizers, sharding, train_step

IMAGES = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), np.uint8)
BATCH = {'image': IMAGES, 'label': np.arange(16, dtype=np.int32) % 10}


def parts(dropout=0.0, **optimizer):
  model = models.build(
    variant='Ti/4', num_classes=10, hidden_size=128, depth=2, mlp_dim=512,
    num_heads=2, dropout=dropout, pre_logits=True,
  )  # fmt: skip
  objective = objectives.build(model, 'classification')
  tx, _ = optimizers.build(
    total_steps=9, **(dict(lr=1e-3, weight_decay=0.1) | optimizer)
  )
  return objective, tx


def run(mesh, params='replicate', num_steps=3, **step):
  """Returns the losses of a few steps and the last state."""
  objective, tx = parts(dropout=0.2)

  def init(rng):
    ema_decay = step.get('ema_decay', 0.0)
    return train_step.init_state(objective, tx, (8, 8, 3), rng, ema_decay)

  rng = jax.random.key(0)
  layout = sharding.layout(jax.eval_shape(init, rng), mesh, params)
  with sharding.activations(mesh):
    state = jax.jit(init, out_shardings=layout)(rng)
    update = jax.jit(
      train_step.make_train_step(objective, tx, **step),
      out_shardings=(layout, None),
    )
    losses = []
    for _ in range(num_steps):
      batch = sharding.global_batch(BATCH, mesh)
      state, stats = update(state, batch, rng)
      losses.append(float(stats['loss']))
  return losses, state


@pytest.fixture(scope='module')
def one_device():
  mesh = jax.sharding.Mesh(
    np.array(jax.devices()[:1]).reshape(1, 1), ('data', 'model')
  )
  return run(mesh)


TENSOR_PARALLEL = [
  ('qkv/kernel', (None, None, None, 'model')),
  ('mlp_in/kernel', (None, None, 'model')),
  ('mlp_out/kernel', (None, 'model')),
]


@pytest.mark.parametrize(
  ('sizes', 'params'),
  [((8, 1), 'replicate'), ((8, 1), 'fsdp'), ((4, 2), TENSOR_PARALLEL)],
)
def test_eight_devices_give_the_losses_of_one(
  one_device, make_mesh, sizes, params
):
  losses, state = run(make_mesh(*sizes), params)
  np.testing.assert_allclose(losses, one_device[0], rtol=1e-5)
  assert losses[2] < losses[0] - 0.02
  kernel = state.params['blocks']['mlp_in']['kernel']
  kept = kernel.addressable_shards[0].data.size / kernel.size
  expected = 1 if params == 'replicate' else 1 / (8 if params == 'fsdp' else 2)
  assert kept == expected
  momentum = jax.tree.leaves(state.opt_state, is_leaf=is_adam)[0].mu
  assert momentum['blocks']['mlp_in']['kernel'].sharding == kernel.sharding


def is_adam(x):
  return isinstance(x, optax.ScaleByAdamState)


def test_accumulation_gives_the_update_of_the_whole_batch(make_mesh):
  objective, tx = parts()  # no dropout: its masks differ between parts
  state = jax.jit(
    lambda rng: train_step.init_state(objective, tx, (8, 8, 3), rng)
  )(jax.random.key(0))
  rng = jax.random.key(1)
  whole, stats = jax.jit(train_step.make_train_step(objective, tx))(
    state, BATCH, rng
  )
  step = train_step.make_train_step(objective, tx, accum_steps=4)
  mesh = make_mesh(4)
  with sharding.activations(mesh):
    batch = sharding.global_batch(BATCH, mesh)
    parted, parted_stats = jax.jit(step)(state, batch, rng)
  for name in ('loss', 'accuracy', 'gradient_norm'):
    np.testing.assert_allclose(parted_stats[name], stats[name], rtol=1e-5)
  # Adam's first update is the gradient's sign: compare what it averages.
  for a, b in zip(
    *(jax.tree.leaves(s.opt_state) for s in (parted, whole)), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-7)


def test_polyak_average_by_hand():
  objective, tx = parts(name='sgd')
  state = jax.jit(
    lambda rng: train_step.init_state(objective, tx, (8, 8, 3), rng, 0.9)
  )(jax.random.key(0))
  step = jax.jit(train_step.make_train_step(objective, tx, ema_decay=0.9))
  expected = np.asarray(state.params['head']['kernel'])
  for _ in range(3):
    state, _ = step(state, BATCH, jax.random.key(0))
    expected = 0.9 * expected + 0.1 * np.asarray(state.params['head']['kernel'])
  np.testing.assert_allclose(state.average['head']['kernel'], expected, 1e-5)
  assert state.weights is state.average
  assert state._replace(average=None).weights is state.params
  assert state.step == 3


def test_a_step_is_the_gradients_update_by_hand():
  objective, tx = parts(name='sgd', lr=0.5, decay='constant', weight_decay=0.0)
  state = train_step.init_state(objective, tx, (8, 8, 3), jax.random.key(0))
  # With the head's zero weights only its own gradient is not zero; that of the
  # bias is the mean of softmax - target = 1/10 - target.
  after, stats = jax.jit(train_step.make_train_step(objective, tx))(
    state, BATCH, jax.random.key(0)
  )
  gradient = (0.1 - np.eye(10)[BATCH['label']]).mean(0)
  np.testing.assert_allclose(
    after.params['head']['bias'], -0.5 * gradient, atol=1e-6
  )
  np.testing.assert_allclose(stats['loss'], np.log(10), rtol=1e-6)


@pytest.mark.parametrize(
  ('kwargs', 'message'),
  [
    (dict(accum_steps=0), 'config.step.accum_steps=0 is less than 1'),
    (dict(ema_decay=1.0), r'config.step.ema_decay=1.0 is not in \[0, 1\)'),
  ],
)
def test_step_mistakes_are_explained(kwargs, message):
  with pytest.raises(ValueError, match=message):
    train_step.make_train_step(*parts(), **kwargs)


def test_activations_are_constrained_to_the_batch_axis(make_mesh):
  objective, tx = parts()
  state = jax.eval_shape(
    lambda: train_step.init_state(objective, tx, (8, 8, 3), jax.random.key(0))
  )
  step = jax.jit(train_step.make_train_step(objective, tx))
  with sharding.activations(make_mesh(8)):
    text = step.lower(state, BATCH, jax.random.key(0)).as_text()
  constraints = re.findall(r'sharding_constraint .*', text)
  assert len(constraints) >= 4  # stem, blocks, logits, and their gradients
  assert all('{"replica", "data"}' in line for line in constraints), constraints
