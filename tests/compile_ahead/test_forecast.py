"""What a step takes on TPUs that are not here, said by their compiler."""

import jax
import numpy as np
import pytest

from configs import common, vit_b_jft, vit_h14_jft, vit_l16_jft
from vit_jax.compile_ahead import forecast

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


def test_a_step_that_fits(tiny):
  ahead = make(tiny)
  r = ahead.train_step()
  assert (r['fits'], r['num_devices'], r['batch_per_core']) == (True, 8, 8)
  assert r['device_kind'] == 'TPU v3'
  # Parameters and two moments in float32, and 8 images of 8 x 8 pixels.
  count = sum(x.size for x in jax.tree.leaves(ahead.parts.shapes.params))
  assert r['argument_bytes'] > 3 * 4 * count + 8 * 8 * 8 * 3
  assert r['peak_bytes'] == r['argument_bytes'] + r['temporary_bytes']
  assert r['hbm_bytes'] == round(15.48 * 2**30)
  assert r['hbm_share'] == r['peak_bytes'] / r['hbm_bytes'] < 0.01
  # Patches of 4 x 4, four layers of weights a block, attention, the head.
  matrices = 4 * 48 * D + N * L * (4 * D * D + 2 * D * 32)
  forward = 2 * (matrices + L * 2 * N * N * D + D * C)
  assert r['model_flops_per_core'] == 3 * forward * 8
  # The images need no gradient.
  assert r['flops_per_core'] == (3 * forward - 2 * 4 * 48 * D) * 8
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


def test_remat_computes_again(tiny):
  r = make(tiny, **{'model.remat': 'full'}).train_step()
  # All products of the blocks but the last, whose result nothing needs.
  again = 2 * (N * L * (4 * D * D + 32 * D) + L * 2 * N * N * D)
  forward, no_gradient = 50_624, 2 * 4 * 48 * D
  assert r['flops_per_core'] == (3 * forward - no_gradient + again) * 8
  assert r['recomputed_share'] == pytest.approx(0.18289, abs=1e-5)


def test_evaluations_are_compiled_too(tiny):
  memory = make(tiny).eval_step()
  assert (memory['fits'], memory['batch_size']) == (True, 64)
  assert 0 < memory['hbm_share'] < 0.01


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


@pytest.mark.slow
@pytest.mark.parametrize(
  ('config', 'topology', 'most'),
  [
    (vit_b_jft, 'v3:2x2', 0.55),
    (vit_l16_jft, 'v3:4x4', 0.35),
    (vit_h14_jft, 'v3:4x8', 0.35),
  ],
)
def test_pretraining_fits_with_remat(config, topology, most):
  c = config.get_config()
  c.model.remat = 'full'
  assert c.train.batch_size == 4096
  ahead = forecast.Forecast(c, topology)
  memory = ahead.train_memory()
  assert memory['fits']
  assert memory['hbm_share'] < most


@pytest.mark.slow
def test_shipped_recipe_fits_its_topology():
  memory = forecast.Forecast(vit_l16_jft.get_config(), 'v3:4x4').train_memory()
  assert memory['hbm_share'] < 0.9


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
