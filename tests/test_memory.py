"""Estimates of memory by hand, and what a run that does not fit is told."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import process_runner
import pytest

from configs import common
from vit_jax import experiment, memory, models, objectives, sharding
from vit_jax.data import described

DATA = described.Description(1000, 10, None, (32, 32, 3), False)


def config(**changes):
  c = common.base()
  c.total_steps = 10
  c.optimizer.warmup_steps = 1
  c.model.update(
    variant='Ti/4', hidden_size=128, depth=4, mlp_dim=512, num_heads=4
  )
  c.train.batch_size = 64
  c.update_from_flattened_dict(changes)
  return experiment.checked(c)


def estimate(**changes):
  c = config(**changes)
  mesh = sharding.make_mesh(**c.mesh)
  parts = experiment.build(c, mesh, DATA)
  return memory.estimate(parts, mesh, c.step.accum_steps)


def peak(function, *shapes):
  args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  return memory.peak_bytes(jax.make_jaxpr(function)(*args).jaxpr)


def test_the_peak_of_small_programs_by_hand():
  # [100] float32 is 400 bytes; inputs are not counted.
  assert peak(jnp.sin, (100,)) == 400
  assert peak(lambda x: jnp.cos(jnp.sin(x)), (100,)) == 800
  assert peak(lambda x: jnp.cos(jnp.cos(jnp.sin(x))), (100,)) == 800
  assert peak(lambda x: jnp.sin(x) + jnp.cos(x), (100,)) == 1200
  assert peak(jax.jit(lambda x: jnp.cos(jnp.sin(x))), (100,)) == 800

  def loop(x):
    return jax.lax.scan(lambda x, _: (jnp.sin(x), x), x, length=5)

  # The last x, and five that are collected; besides, the body's own.
  assert peak(loop, (100,)) == 6 * 400 + 400


def test_the_parts_of_an_estimate_by_hand():
  D, M, L, N = 128, 512, 4, 65
  block = 4 * (D * D + D) + 2 * D * M + D + M + 4 * D
  num_params = L * block + (48 * D + D) + D + N * D + 2 * D + (D * 10 + 10)
  whole, split = estimate(), estimate(**{'sharding.params': 'fsdp'})
  # Parameters and Adam's two moments; three counters.
  assert abs(whole.state - 3 * 4 * num_params) <= 12
  assert whole.batch == 8 * (32 * 32 * 3 + 4)
  assert split.state < whole.state / 3
  assert split.activations == whole.activations
  kept = estimate(**{'step.ema_decay': 0.9}).state
  assert kept - whole.state == 4 * num_params
  parted = estimate(**{'step.accum_steps': 4, 'train.batch_size': 256})
  assert parted.activations == whole.activations
  assert parted.gradients == 2 * whole.gradients == 2 * 4 * num_params
  # What the backward pass needs of 8 images, and what one block takes.
  stored = 8 * saved_bytes(dict(config().model), 'none')
  assert 0.9 * stored < whole.activations < 1.3 * stored
  assert str(whole).startswith(f'{whole.total / 1e6:.2f} MB per device: state ')


def saved_bytes(model, remat, size=32):
  """Returns the bytes an image that the backward pass finds stored."""
  model = models.build(**model | dict(num_classes=10, remat=remat))
  objective = objectives.build(model, 'classification')

  def stored(num_images):
    shape = (num_images, size, size, 3)
    batch = {
      'image': np.zeros(shape, 'u1'),
      'label': np.zeros(num_images, 'i4'),
    }

    def residuals(params):
      rng = jax.random.key(0)
      return jax.vjp(
        lambda p: objective.loss(p, batch, rng), params, has_aux=True
      )[1]

    params = jax.eval_shape(
      lambda rng: objective.init(rng, batch['image']), jax.random.key(0)
    )
    leaves = jax.tree.leaves(jax.eval_shape(residuals, params))
    return sum(x.size * x.dtype.itemsize for x in leaves)

  return stored(2) - stored(1)


MODELS = {
  'vit': dict(
    variant='Ti/4', hidden_size=64, depth=4, mlp_dim=256, num_heads=4,
  ),
  'resnet': dict(name='resnet', variant='R50x1', depths=(2, 2), width=0.5),
  'hybrid': dict(
    variant='Ti/2', hidden_size=64, depth=2, mlp_dim=256, num_heads=4,
    stem_depths=(2,), stem_width=0.5,
  ),
}  # fmt: skip


@pytest.mark.parametrize('name', MODELS)
def test_each_policy_stores_less(name):
  none, dots, full = (
    saved_bytes(MODELS[name], remat) for remat in ('none', 'dots', 'full')
  )
  assert dots < 0.6 * none
  assert full < 0.8 * dots


def test_dots_stores_the_outputs_of_dense_layers():
  dots, full = (saved_bytes(MODELS['vit'], r) for r in ('dots', 'full'))
  # Per token of 4 blocks: query, key, value, out and mlp_in. Nothing needs
  # mlp_out's again.
  assert dots - full == 4 * 65 * (3 * 64 + 64 + 256) * 4


@pytest.mark.slow
@pytest.mark.parametrize('name', MODELS)
def test_gradients_do_not_depend_on_the_policy(name):
  images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
  batch = {'image': images, 'label': np.arange(2)}
  results = []
  for remat in ('none', 'dots', 'full'):
    model = models.build(num_classes=10, remat=remat, **MODELS[name])
    objective = objectives.build(model, 'classification')
    params = jax.jit(objective.init)(jax.random.key(0), images)
    kernel = params['head']['kernel']
    params['head']['kernel'] = kernel + jnp.linspace(-1, 1, 10)[None]
    gradient = jax.jit(jax.grad(objective.loss, has_aux=True))
    results.append(gradient(params, batch, jax.random.key(0))[0])
  for other in results[1:]:
    for a, b in zip(*map(jax.tree.leaves, (other, results[0])), strict=True):
      np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * np.abs(b).max())


def savings(text):
  rows = re.findall(r'^  (.+): saves ([\d.]+) GB', text, re.MULTILINE)
  return {fields: float(size) for fields, size in rows}


def test_advice_says_what_each_knob_saves():
  changes = {'step.ema_decay': 0.9, 'train.batch_size': 4096}
  found = savings(memory.advice(config(**changes), DATA))
  before = estimate(**changes).total
  assert list(found) == [
    '--config.model.remat=dots',
    '--config.model.remat=full',
    '--config.step.accum_steps=2',
    '--config.step.accum_steps=4',
    '--config.train.batch_size=2048',
    'twice as many devices',
  ]
  after = estimate(**changes, **{'model.remat': 'full'}).total
  assert found['--config.model.remat=full'] == pytest.approx(
    (before - after) / 1e9, abs=0.006
  )


def test_advice_leaves_out_what_is_used_or_does_not_divide():
  changes = {
    'step.ema_decay': 0.9, 'step.accum_steps': 2, 'model.remat': 'full',
    'train.batch_size': 16, 'model.hidden_size': 1024, 'model.mlp_dim': 4096,
  }  # fmt: skip
  found = list(savings(memory.advice(config(**changes), DATA)))
  assert found[:3] == [
    '--config.sharding.params=fsdp',
    '--config.mesh.model=2 --config.sharding.params=tensor',
    '--config.step.ema_decay=0.0',
  ]
  changes['sharding.params'] = 'fsdp'
  found = savings(memory.advice(config(**changes), DATA))
  assert '--config.sharding.params=fsdp' not in found


def test_running_out_is_explained():
  text = 'RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.'
  c = config(**{'train.batch_size': 1024})
  message = r'(?s)does not fit .* to allocate 9 bytes\.\n.*model.remat=dots: sa'
  with (
    pytest.raises(memory.OutOfMemoryError, match=message),
    memory.explain_exhaustion(c, DATA),
  ):
    raise jax.errors.JaxRuntimeError(text)
  with (
    pytest.raises(jax.errors.JaxRuntimeError, match='INTERNAL: broken'),
    memory.explain_exhaustion(c, DATA),
  ):
    raise jax.errors.JaxRuntimeError('INTERNAL: broken')


@pytest.mark.parametrize(
  'text',
  [
    'RESOURCE_EXHAUSTED: Quota exceeded for quota metric reads',
    'INTERNAL: out of memory in the kernel',
  ],
)
def test_what_is_not_the_devices_memory_passes(text):
  with (
    pytest.raises(jax.errors.JaxRuntimeError, match=text[:20]),
    memory.explain_exhaustion(config(), DATA),
  ):
    raise jax.errors.JaxRuntimeError(text)


def test_an_evaluation_has_another_remedy():
  c = config()
  c.evals.test = common.classification('digits', 'test', '', batch_size=4096)
  with (
    pytest.raises(memory.OutOfMemoryError) as raised,
    memory.explain_exhaustion(c, DATA),
    memory.explain_exhaustion(c, DATA, evaluation='test'),
  ):
    raise jax.errors.JaxRuntimeError(
      'RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.'
    )
  assert str(raised.value) == (
    "Evaluation 'test' does not fit into memory. Out of memory while trying to "
    'allocate 9 bytes.\nLower config.evals.test.batch_size=4096; the results '
    'stay the same.'
  )


@pytest.mark.parametrize(
  ('params', 'saved'),
  [('replicate', 3.0), ('fsdp', 5.0), ('fsdp_tensor', 5.0), ([], 3.0)],
)
def test_more_devices_halve_the_state_where_it_is_split(
  monkeypatch, params, saved
):
  fixed = memory.Estimate(int(3e9), int(2e9), int(1e9), int(4e9))
  monkeypatch.setattr(memory.experiment, 'build', lambda *args: None)
  monkeypatch.setattr(memory, 'estimate', lambda *args: fixed)
  c = common.base()
  c.sharding.params = params
  found = savings(memory.advice(c, DATA))
  assert found == {'twice as many devices': saved}


def test_an_estimate_is_compared_with_the_device():
  small = memory.Estimate(int(2e9), 0, int(1e9), int(4.87e9))
  parts = 'state 2.00, batch 0.00, gradients 1.00, activations 4.87.'
  assert memory.describe(small, 'TPU v3') == (
    f'Estimated memory: 7.87 GB of 16.6 GB per device: {parts}'
  )
  assert memory.describe(small, 'cpu') == (
    f'Estimated memory: 7.87 GB per device: {parts}'
  )
  large = small._replace(activations=int(14e9))
  assert 'Warning: that is more than there is' in memory.describe(
    large, 'TPU v3'
  )
  assert 'Warning' not in memory.describe(large, 'TPU v4')


TOO_BIG = """
import jax
from jax.experimental import topologies
from configs import common
from vit_jax import experiment, memory, sharding
from vit_jax.data import described
topology = topologies.get_topology_desc(platform='tpu', topology_name='v3:2x2')
c = common.base()
c.model.variant, c.model.depth = 'Ti/16', 2
c.total_steps, c.train.batch_size = 20_000, 32_768
c = experiment.checked(c)
data = described.Description(1_281_167, 1000, None, (224, 224, 3), False)
mesh = sharding.make_mesh(**c.mesh, devices=topology.devices)
parts = experiment.build(c, mesh, data)
with memory.explain_exhaustion(c, data, topology.devices):
  parts.lower(mesh).compile()
"""


@pytest.mark.slow
def test_the_tpu_compilers_verdict_is_explained():
  pytest.importorskip('libtpu')
  result = process_runner.run('-c', TOO_BIG, **process_runner.FOR_TPUS)
  assert 'OutOfMemoryError: Training does not fit' in result.stderr
  assert re.search(r'memory. Ran out .*G\) exceeds .*15.48G', result.stderr)
  assert savings(result.stderr)['--config.model.remat=dots'] > 5
