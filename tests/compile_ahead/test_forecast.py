"""What a step takes on TPUs that are not here, said by their compiler."""

import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from benchmarks import scaling_table
from configs import common, vit_b_jft, vit_h14_jft, vit_l16_jft
from vit_jax import sharding
from vit_jax.compile_ahead import __main__ as compile_ahead
from vit_jax.compile_ahead import forecast, topology
from vit_jax.evaluators import classification
from vit_jax.models import layers

pytest.importorskip('libtpu')
B, N, D, L, C = 64, 5, 16, 2, 10  # of tiny_config; N with the class token


@pytest.fixture(autouse=True)
def optimized():
  """Compiles as a run would, not as other tests do."""
  jax.config.update('jax_disable_most_optimizations', False)
  yield
  jax.config.update('jax_disable_most_optimizations', True)


def make(config, topology='v3:2x2', **changes):
  config.train.batch_size = B
  config.update_from_flattened_dict(changes)
  return forecast.Forecast(config, topology)


@pytest.fixture
def tiny(tiny_config):
  tiny_config.train.preprocess = 'resize(8)'
  return tiny_config


@pytest.mark.slow
def test_a_step_that_fits(tiny):
  ahead = make(tiny)
  r = ahead.train_step()
  assert (r['fits'], r['num_devices'], r['batch_per_core']) == (True, 8, 8)
  assert r['device_kind'] == 'TPU v3'
  # Parameters and two moments in float32, and 8 images of 8 x 8 pixels.
  count = sum(x.size for x in jax.tree.leaves(ahead.parts.shapes.params))
  assert r['argument_bytes'] > 3 * 4 * count + 8 * 8 * 8 * 3
  # Gradients, in float32, live beside all that.
  assert r['peak_bytes'] > r['argument_bytes'] + 4 * count
  assert r['allocated_bytes'] > r['argument_bytes'] + 4 * count
  assert r['hbm_bytes'] == round(15.48 * 2**30)
  assert r['hbm_share'] == r['peak_bytes'] / r['hbm_bytes'] < 0.01
  # Patches of 4 x 4, four layers of weights a block, attention, the head.
  matrices = 4 * 48 * D + N * L * (4 * D * D + 2 * D * 32)
  forward = 2 * (matrices + L * 2 * N * N * D + D * C)
  assert r['model_flops_per_core'] == 3 * forward * 8
  # The images need no gradient.
  assert r['flops_per_core'] == (3 * forward - 2 * 4 * 48 * D) * 8
  assert r['flops'] == r['flops_per_core'] * 8
  assert r['recomputed_share'] == 0
  # Gradients in float32, and a few sums.
  assert list(r['collective_bytes']) == ['all-reduce']
  assert r['collective_bytes']['all-reduce'] == pytest.approx(
    4 * count, rel=0.1
  )
  assert r['sent_ratio'] == pytest.approx(1, rel=0.1)
  assert r['step_seconds_bound'] == max(
    r[f'{name}_seconds_bound'] for name in ('flops', 'memory', 'links')
  )
  assert r['images_per_second_bound'] == B / r['step_seconds_bound']
  assert 0 < r['mfu_bound'] < 1
  assert r['total_steps'] == 4
  days = 4 * r['step_seconds_bound'] * 8 / 86_400
  assert r['core_days_bound'] == pytest.approx(days)
  assert r['paper_core_days'] is None  # not of this model
  assert r['unknown_loops'] == 0


def test_memory_by_hand(tiny, monkeypatch):
  compiled = SimpleNamespace(
    memory_analysis=lambda: SimpleNamespace(
      argument_size_in_bytes=100,
      output_size_in_bytes=60,
      temp_size_in_bytes=50,
      alias_size_in_bytes=55,
      peak_memory_in_bytes=120,
      generated_code_size_in_bytes=5,
    )
  )
  lowered = SimpleNamespace(compile=lambda: compiled)
  ahead = make(tiny)
  monkeypatch.setattr(type(ahead.parts), 'lower', lambda *args: lowered)
  memory = ahead.train_memory()
  assert memory['peak_bytes'] == 125  # the program is there, too
  assert memory['temporary_bytes'] == 25
  assert memory['allocated_bytes'] == 155  # 55 of the results are donated


@pytest.mark.slow
def test_remat_computes_again(tiny):
  r = make(tiny, **{'model.remat': 'full'}).train_step()
  # All products of the blocks but the last, whose result nothing needs.
  again = 2 * (N * L * (4 * D * D + 32 * D) + L * 2 * N * N * D)
  forward, no_gradient = 50_624, 2 * 4 * 48 * D
  assert r['flops_per_core'] == (3 * forward - no_gradient + again) * 8
  assert r['recomputed_share'] == pytest.approx(0.18289, abs=1e-5)


@pytest.mark.slow
def test_evaluations_are_compiled_too(tiny):
  ahead = make(tiny, **{'evals.test.batch_size': 128})
  ahead.config.evals.again = dict(ahead.config.evals.test)
  ahead = forecast.Forecast(ahead.config, 'v3:2x2')
  memory = ahead.eval_steps()
  assert memory['again'] == memory['test']  # compiled once
  test = memory['test']
  assert (test['fits'], test['batch_size']) == (True, 128)
  # Adam's two moments stay where they are, and two counters, and the step.
  count = sum(x.size for x in jax.tree.leaves(ahead.parts.shapes.params))
  assert test['resident_bytes'] == pytest.approx(2 * 4 * count, abs=12)
  # Parameters, and 16 images of 8 x 8 pixels.
  assert test['argument_bytes'] > 4 * count + 16 * 8 * 8 * 3
  assert test['peak_bytes'] > test['argument_bytes'] + test['resident_bytes']
  assert test['hbm_share'] == test['peak_bytes'] / test['hbm_bytes'] < 0.01


def test_the_state_takes_room_from_an_evaluation(tiny, monkeypatch):
  ahead = make(tiny)
  hbm = ahead.chip.hbm_bytes
  found = {'fits': True, 'peak_bytes': hbm - 1, 'hbm_bytes': hbm}
  monkeypatch.setattr(ahead, '_compile', lambda lower: (dict(found), None))
  assert not ahead.eval_steps()['test']['fits']
  found = {'fits': False, 'peak_bytes': None, 'hbm_bytes': hbm}
  assert ahead.eval_steps()['test']['peak_bytes'] is None


def test_the_batch_of_an_evaluation_is_checked_before_compiling(tiny):
  message = r'config.evals.test.batch_size=63 does not divide over 8 devices'
  with pytest.raises(ValueError, match=message):
    make(tiny, **{'evals.test.batch_size': 63})
  tiny.evals.test.batch_size = 64
  with pytest.raises(ValueError, match="config.evals.test.loss='soft' is unkn"):
    make(tiny, **{'evals.test.loss': 'soft'})


def test_without_evaluations_none_is_made_up(tiny):
  tiny.evals = {}
  assert make(tiny).eval_steps() == {}


def fail_to_compile(ahead, error, monkeypatch):
  def fail(*args):
    raise jax.errors.JaxRuntimeError(error)

  monkeypatch.setattr(type(ahead.parts), 'lower', fail)


@pytest.mark.parametrize(
  ('error', 'needed'),
  [
    ('RESOURCE_EXHAUSTED: Used 16.50G of 15.48G hbm.', 16.5 * 2**30),
    ('RESOURCE_EXHAUSTED: said in words to come', None),
  ],
)
def test_a_verdict_in_any_words_is_one(tiny, monkeypatch, error, needed):
  ahead = make(tiny)
  fail_to_compile(ahead, error, monkeypatch)
  r = ahead.train_step()
  assert (r['fits'], r['peak_bytes']) == (False, needed)
  assert r['hbm_share'] == (needed and needed / r['hbm_bytes'])
  assert 'DOES NOT FIT' in '\n'.join(compile_ahead.lines(r))


def test_other_errors_of_the_compiler_are_errors(tiny, monkeypatch):
  ahead = make(tiny)
  fail_to_compile(ahead, 'INTERNAL: broken', monkeypatch)
  with pytest.raises(jax.errors.JaxRuntimeError, match='INTERNAL: broken'):
    ahead.train_step()


def test_the_papers_core_days_are_those_of_its_epochs():
  for config in (vit_h14_jft.get_config(), vit_l16_jft.get_config()):
    key = (config.model.variant, 'jft300m', config.total_epochs)
    assert key in forecast.PAPER_CORE_DAYS
  assert ('L/16', 'jft300m', 7.0) not in forecast.PAPER_CORE_DAYS


@pytest.mark.slow
def test_a_step_that_does_not_fit(tiny):
  tiny.train.preprocess = 'resize(512)'
  tiny.model.hidden_size, tiny.model.mlp_dim = 512, 4096
  tiny.train.batch_size = B
  ahead = forecast.Forecast(tiny, 'v3:2x2')
  r = ahead.train_step()
  assert not r['fits']
  assert r['peak_bytes'] > r['hbm_bytes']
  assert r['hbm_share'] > 1
  assert r['model_flops_per_core'] > 0  # needs no compiler
  assert 'step_seconds_bound' not in r


def test_recipes_take_the_cheapest_policy_under_90_percent():
  # As docs/scaling.md says of TPU v3: (model, policy, layout) -> its cell.
  rows = re.findall(
    r'^\| ([BLH]/\d+) \| \d+ \| (\w+), (\w+) \| ([^|]+) \|',
    scaling_table.DOC.read_text(),
    re.MULTILINE,
  )
  measured = {tuple(row[:3]): row[3] for row in rows}
  policies = list(layers.REMAT_POLICIES)
  for recipe, variants in (
    (vit_b_jft, ('B/16', 'B/32')),
    (vit_l16_jft, ('L/16', 'L/32')),
    (vit_h14_jft, ()),
  ):
    for c in [recipe.get_config(v) for v in variants] or [recipe.get_config()]:
      remat, params = c.model.remat, c.sharding.params
      cheaper = policies[policies.index(remat) - 1]
      text = measured[c.model.variant, cheaper, params]
      share = re.search(r'(\d+)%', text)
      assert 'does not fit' in text or int(share[1]) >= 90
      own = measured.get((c.model.variant, remat, params))
      if c.model.variant != 'L/32':  # less than L/16
        assert int(re.search(r'(\d+)%', own)[1]) < 90


@pytest.mark.slow
@pytest.mark.parametrize(
  ('config', 'variant', 'policy'),
  [(vit_b_jft, 'B/32', 'none'), (vit_b_jft, 'B/16', 'dots')],
)
def test_the_next_cheaper_policy_does_not_fit(config, variant, policy):
  c = config.get_config(variant)
  c.model.remat = policy
  memory = forecast.Forecast(c, 'v3:2x2').train_memory()
  assert not memory['fits']
  assert memory['hbm_share'] > 1.3


@pytest.mark.slow
@pytest.mark.parametrize(
  ('config', 'topology', 'most', 'most_allocated', 'most_sent'),
  [
    (vit_b_jft, 'v3:2x2', 0.55, 0.6, 1.01),
    (vit_l16_jft, 'v3:4x4', 0.35, 0.35, 1.4),
    (vit_h14_jft, 'v3:4x8', 0.35, 0.35, 1.95),
  ],
)
def test_pretraining_fits_with_remat(
  config, topology, most, most_allocated, most_sent
):
  c = config.get_config()
  c.model.remat = 'full'
  assert c.train.batch_size == 4096
  ahead = forecast.Forecast(c, topology)
  r = ahead.train_step()
  assert r['fits']
  assert r['hbm_share'] < most
  # Were all temporaries that are laid out reserved, too.
  assert r['allocated_bytes'] < most_allocated * r['hbm_bytes']
  # The gradients' sum; with fsdp XLA sends more, see docs/scaling.md.
  assert 0.99 < r['sent_ratio'] < most_sent


def test_several_slices(tiny):
  ahead = forecast.Forecast(tiny, 'v3:2x2', num_slices=2)
  assert ahead.mesh.size == 16
  assert len({device.slice_index for device in ahead.mesh.devices.flat}) == 2
  assert np.prod(list(ahead.mesh.shape.values())) == 16


def test_mistakes_in_the_config_are_errors():
  config = common.base()
  config.total_steps = 20_000
  config.train.update(dataset='digits', preprocess='resize(32)', batch_size=9)
  with pytest.raises(ValueError, match='batch_size=9 does not divide over 8'):
    forecast.Forecast(config, 'v3:2x2')


def test_options_that_a_compiler_does_not_know_are_left_out(
  make_mesh, monkeypatch
):
  assert sharding.compiler_options(make_mesh(2)) is None  # no TPUs
  mesh = sharding.make_mesh(devices=topology.devices('v5p:2x2x1'))
  assert sharding.compiler_options(mesh) == sharding._TPU_OPTIONS
  monkeypatch.setattr(sharding, '_TPU_OPTIONS', {'xla_of_tomorrow': '1'})
  with pytest.warns(UserWarning, match='no option xla_of_tomorrow.* Install'):
    assert sharding.compiler_options(mesh) is None


def test_other_errors_of_the_options_pass(monkeypatch):
  mesh = sharding.make_mesh(devices=topology.devices('v3:2x2'))
  options = {'xla_jf_spmd_threshold_for_windowed_einsum_mib': 'many'}
  monkeypatch.setattr(sharding, '_TPU_OPTIONS', options)
  with pytest.raises(jax.errors.JaxRuntimeError):
    sharding.compiler_options(mesh)


def test_steps_are_compiled_with_the_options(tiny, monkeypatch):
  """Those of training and of evaluations, here and in a run."""
  asked = []

  def options(mesh):
    asked.append(mesh)

  monkeypatch.setattr(sharding, 'compiler_options', options)
  ahead = make(tiny)
  assert asked == [ahead.mesh]
  classification.make_sums(ahead.parts.objective.predict, None, ahead.mesh)
  assert asked == [ahead.mesh] * 2
