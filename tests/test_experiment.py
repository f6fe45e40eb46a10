import jax
import numpy as np
import pytest

from configs import vit_h14_jft
from vit_jax import experiment
from vit_jax.data import described


def test_parts_of_a_run_whose_data_is_elsewhere(make_mesh):
  config = experiment.checked(vit_h14_jft.get_config())
  mesh = make_mesh(8)
  data = described.describe(mesh, config.seed, **config.train)
  parts = experiment.build(config, mesh, data)
  assert config.model.num_classes == 18_291
  assert parts.total_steps == 1_035_644  # 14 * 303e6 / 4096
  assert float(parts.learning_rate(10_000)) == pytest.approx(3e-4)
  # The model, the layer before its head, the head.
  count = sum(x.size for x in jax.tree.leaves(parts.shapes.params))
  assert count == 630_764_800 + 1280 * 1280 + 1280 + 1281 * 18_291
  assert {k: (x.shape, x.dtype) for k, x in parts.batch.items()} == {
    'image': ((4096, 224, 224, 3), np.uint8),
    'label': ((4096,), np.int32),
  }


def test_the_lowered_step_is_the_step(tiny_config, make_mesh):
  config, mesh = experiment.checked(tiny_config), make_mesh(8)
  data = described.describe(mesh, config.seed, **config.train)
  parts = experiment.build(config, mesh, data)
  compiled = parts.lower(mesh).compile()
  rng = jax.random.key(config.seed)
  batch = {
    name: jax.device_put(np.ones(x.shape, x.dtype), x.sharding)
    for name, x in parts.batch.items()
  }
  state = jax.jit(parts.init, out_shardings=parts.layout)(rng)
  state, stats = compiled(state, batch, rng)
  assert int(state.step) == 1
  assert float(stats['loss']) == pytest.approx(np.log(10), rel=1e-5)


def test_unknown_sections_are_explained(tiny_config):
  with tiny_config.unlocked():
    tiny_config.sharing = {}
  with pytest.raises(ValueError, match="did you mean 'sharding'"):
    experiment.checked(tiny_config)
