"""Layouts by name; all of them compute the same."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from vit_jax import (
  experiment,
  layouts,
  models,
  objectives,
  sharding,
  train,
  train_step,
)
from vit_jax.data import described

TABLE = (
  ('mlp_in/kernel', (None, ('replica', 'data'), 'model')),
  ('(mlp_out|head)/kernel', ('model',)),
  ('embedding/kernel', (None, None, None, ['data', 'model'])),
)
RNG = np.random.default_rng(0)
BATCH = {
  'image': RNG.integers(0, 256, (8, 16, 16, 3), np.uint8),
  'label': np.arange(8, dtype=np.int32),
}
MODELS = {
  'vit': dict(variant='Ti/8', hidden_size=32, depth=2, mlp_dim=64, num_heads=4),
  'resnet': dict(name='resnet', variant='R50x1', depths=(2,), width=0.5),
  'hybrid': dict(
    variant='Ti/2', hidden_size=32, depth=1, mlp_dim=64, num_heads=4,
    stem_depths=(1,), stem_width=0.5, head='map',
  ),
}  # fmt: skip


def shapes_of(**model):
  model = models.build(num_classes=10, **model)
  return jax.eval_shape(
    lambda rng: model.init(rng, jnp.zeros((1, 224, 224, 3))), jax.random.key(0)
  )['params']


def specs(shapes, mesh, params):
  return {
    '/'.join(key.key for key in path): tuple(s.spec)
    for path, s in jax.tree_util.tree_leaves_with_path(
      sharding.layout(shapes, mesh, params)
    )
    if s.spec != PartitionSpec()
  }


def test_tensor_splits_heads_and_hidden_units(make_mesh):
  shapes = shapes_of(variant='B/16', head='map')
  assert specs(shapes, make_mesh(2, 4), 'tensor') == {
    'blocks/attention/qkv/kernel': (None, None, None, 'model'),
    'blocks/attention/qkv/bias': (None, None, 'model'),
    'blocks/attention/out/kernel': (None, 'model'),
    'blocks/mlp_in/kernel': (None, None, 'model'),
    'blocks/mlp_in/bias': (None, 'model'),
    'blocks/mlp_out/kernel': (None, 'model'),
    'attention_pool/query/kernel': (None, 'model'),
    'attention_pool/query/bias': ('model',),
    'attention_pool/key_value/kernel': (None, None, 'model'),
    'attention_pool/key_value/bias': (None, 'model'),
    'attention_pool/out/kernel': ('model',),
    'attention_pool/mlp_in/kernel': (None, 'model'),
    'attention_pool/mlp_in/bias': ('model',),
    'attention_pool/mlp_out/kernel': ('model',),
  }


def test_tensor_splits_the_channels_of_a_resnets_units(make_mesh):
  shapes = shapes_of(name='resnet', variant='R50x1', depths=(2,))
  assert specs(shapes, make_mesh(2, 4), 'tensor') == {
    'backbone/stage1_first/conv2/kernel': (None, None, None, 'model'),
    'backbone/stage1_first/conv3/kernel': (None, None, 'model'),
    'backbone/stage1_rest/conv2/kernel': (None, None, None, None, 'model'),
    'backbone/stage1_rest/conv3/kernel': (None, None, None, 'model'),
  }


def test_fsdp_tensor_splits_what_is_left_over_data(make_mesh):
  layout = specs(shapes_of(variant='B/16'), make_mesh(2, 4), 'fsdp_tensor')
  assert layout['blocks/attention/qkv/kernel'] == (
    None, 'data', None, 'model',
  )  # fmt: skip
  assert layout['blocks/mlp_in/kernel'] == (None, 'data', 'model')
  assert layout['blocks/mlp_out/kernel'] == (None, 'model', 'data')
  assert layout['embedding/kernel'] == (None, None, None, 'data')


def test_heads_that_do_not_divide_are_explained(make_mesh):
  with pytest.raises(ValueError) as error:
    specs(shapes_of(variant='Ti/16'), make_mesh(4, 2), 'tensor')
  assert str(error.value) == (
    'config.mesh.model=2 does not divide the 3 heads of blocks/attention/out/'
    'kernel, which config.sharding.params splits over it; use a divisor of 3, '
    "or config.sharding.params='fsdp'."
  )


def test_the_table_counts_bytes_by_hand(make_mesh):
  params = {
    'mlp_in': {
      'kernel': jax.ShapeDtypeStruct((2, 256, 512), jnp.float32),
      'bias': jax.ShapeDtypeStruct((2, 512), jnp.float32),
    }
  }
  state = train_step.TrainState(
    jax.ShapeDtypeStruct((), jnp.int32), params, {'mu': params}, None
  )
  layout = sharding.layout(state, make_mesh(2, 4), 'fsdp_tensor')
  assert layouts.table(state, layout).splitlines() == [
    'parameter      shape / axis                  dtype    bytes per device',
    'mlp_in/bias    [2, 512 / model]              float32             1,024',
    'mlp_in/kernel  [2, 256 / data, 512 / model]  float32           131,072',
    'step: 4 bytes per device of 4 in all',
    'params: 132,096 bytes per device of 1,052,672 in all',
    'opt_state: 132,096 bytes per device of 1,052,672 in all',
    'all: 264,196 bytes per device of 2,105,348 in all',
  ]
  assert layouts.bytes_per_device(state, layout) == 264_196
  for leaf, where in zip(
    jax.tree.leaves(params), jax.tree.leaves(layout.params), strict=True
  ):
    held = jax.device_put(np.zeros(leaf.shape, leaf.dtype), where)
    sizes = {shard.data.nbytes for shard in held.addressable_shards}
    assert sizes == {layouts.bytes_per_device(leaf, where)}


def parts(name):
  """Returns (initial state, train step) of a tiny model."""
  model = models.build(num_classes=10, **MODELS[name])
  objective = objectives.build(model, 'classification')
  # The epsilon is far above rounding: where a gradient is zero but for it, as
  # along the scale of a standardised kernel, Adam would take its sign.
  tx = optax.adam(1e-2, eps=1e-2)
  state = jax.jit(
    lambda rng: train_step.init_state(objective, tx, (16, 16, 3), rng)
  )(jax.random.key(0))
  # A head of zeros would keep gradients from all else.
  head = state.params['head']['kernel']
  state.params['head']['kernel'] = 0.1 * RNG.standard_normal(head.shape, 'f4')
  return jax.device_get(state), train_step.make_train_step(objective, tx)


def two_steps(state, step, mesh, params):
  """Returns the losses of two steps, and the states after them."""
  layout = sharding.layout(state, mesh, params)
  with sharding.activations(mesh):
    step = jax.jit(step, out_shardings=(layout, None))
    state, batch = (
      jax.device_put(state, layout),
      sharding.global_batch(BATCH, mesh),
    )
    first, stats = step(state, batch, jax.random.key(0))
    second, later = step(first, batch, jax.random.key(0))
  return [stats['loss'], later['loss']], jax.device_get([first, second])


@pytest.fixture(scope='module')
def on_one_device():
  """Returns a function from a model's name to its parts and two steps."""
  mesh, known = sharding.make_mesh(devices=jax.devices()[:1]), {}

  def get(name):
    if name not in known:
      state, step = parts(name)
      result = two_steps(state, step, mesh, 'replicate')
      known[name] = state, step, result
    return known[name]

  return get


@pytest.mark.parametrize(
  ('model', 'sizes', 'params'),
  [
    ('vit', (1, 8, 1), 'fsdp'),
    ('vit', (2, 2, 2), 'fsdp_tensor'),
    ('resnet', (2, 2, 2), 'fsdp_tensor'),
    ('vit', (2, 2, 2), TABLE),
    *(
      pytest.param(model, sizes, params, marks=pytest.mark.slow)
      for model, sizes, params in [
        ('vit', (8, 1, 1), 'fsdp'),
        ('vit', (2, 1, 4), 'tensor'),
        ('resnet', (1, 8, 1), 'fsdp'),
        ('hybrid', (1, 4, 2), 'tensor'),
        ('hybrid', (2, 2, 2), 'fsdp_tensor'),
      ]
    ),
  ],
)
def test_all_layouts_compute_the_same(
  on_one_device, make_mesh, monkeypatch, model, sizes, params
):
  monkeypatch.setattr(layouts, '_FSDP_MIN_SIZE', 1)  # split all that divides
  state, step, (losses, expected) = on_one_device(model)
  replica, data, model_axis = sizes
  mesh = make_mesh(data, model_axis, replica)
  layout = sharding.layout(state, mesh, params)
  split = layouts.bytes_per_device(state, layout)
  whole = sum(x.nbytes for x in jax.tree.leaves(state))
  assert split < 0.9 * whole or data * model_axis == 1
  got_losses, got = two_steps(state, step, mesh, params)
  # Sums over 8 parts are rounded in another order: about sqrt(terms) times
  # 2^-24 of float32, with at most some 10^4 terms.
  np.testing.assert_allclose(got_losses, losses, rtol=1e-5)
  for a, b in zip(got, expected, strict=True):
    compare(a, b)


def compare(state, expected):
  """Moments are gradients: compared to the largest of each array's."""
  for a, b in zip(
    jax.tree.leaves(state), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * np.abs(b).max() + 1e-9)


def test_a_config_may_hold_a_table(tiny_config, make_mesh):
  mesh = make_mesh(2, 2, 2)
  table = [('mlp_in/kernel', (None, ['replica', 'data'], 'model'))]
  for params in (table, tuple(table)):
    tiny_config.sharding.params = params
    config = experiment.checked(tiny_config)
    data = described.describe(mesh, config.seed, **config.train)
    layout = experiment.build(config, mesh, data).layout
    for part in (layout.params, layout.opt_state):
      found = [
        place.spec
        for path, place in jax.tree_util.tree_leaves_with_path(part)
        if jax.tree_util.keystr(path).endswith("['mlp_in']['kernel']")
      ]
      assert set(found) == {PartitionSpec(None, ('replica', 'data'), 'model')}
  tiny_config.sharding.params = 'replicate'  # a name again


@pytest.mark.slow
def test_a_run_on_a_table_goes_on(tiny_config, tmp_path):
  tiny_config.evals = {}
  tiny_config.total_steps, tiny_config.checkpoint.every = 2, 1
  tiny_config.mesh.model = 2
  tiny_config.sharding.params = [('mlp_in/kernel', (None, ('data',), 'model'))]
  first = train.train(tiny_config, tmp_path)
  spec = first.params['blocks']['mlp_in']['kernel'].sharding.spec
  assert spec == PartitionSpec(None, ('data',), 'model')
  # Its own folder, where the table is JSON now, takes it for the same run.
  again = train.train(tiny_config, tmp_path)
  assert int(again.step) == 2


def test_print_layout_shows_every_parameter_and_the_memory(tiny_config):
  tiny_config.mesh.model = 2
  tiny_config.sharding.params = [
    ('mlp_in/kernel', (None, None, ('data', 'model')))
  ]
  text = train.dry_run(tiny_config)
  # 2 layers of 16 x 32 float32, split over all 8 devices.
  row = 'mlp_in/kernel [2, 16, 32 / data model] float32 512'
  assert row in ' '.join(text.split())
  # The traces of JAX's versions differ in the rest.
  memory = re.search(r'Estimated memory: (.*) MB per device: state 0.06', text)
  assert float(memory[1]) == pytest.approx(0.175, abs=0.01)
