"""States to save and restore, and how to open a run's folder for them."""

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import checkpoint

CONFIG = {
  'seed': 0,
  'log_every': 10,
  'model': {'name': 'vit', 'depth': None},
  'sharding': {'params': [('a', ('data',))]},
  'evals': {'test': {'every': 3}},
}


def manager(workdir, shapes, config=CONFIG, **kwargs):
  inputs = {'image_shape': (8, 8, 3)}
  return checkpoint.Manager(workdir, config, shapes, inputs, **kwargs)


def noise(step=1):
  """Returns a state that does not compress, of all kinds of numbers."""
  rng = np.random.default_rng(step)
  return {
    'step': jnp.asarray(step, jnp.int32),
    'w': jnp.asarray(rng.normal(size=(40, 500)), jnp.float32),
    'half': jnp.asarray(rng.normal(size=300), jnp.bfloat16),
    'flag': jnp.asarray(rng.integers(0, 2, 9), bool),
    'odd': jnp.array([np.nan, -0.0, np.inf]),
  }


NOISE_SHAPES = jax.eval_shape(noise)


def open_noise(workdir, **kwargs):
  return manager(workdir, NOISE_SHAPES, **kwargs)


def restore(workdir, layout):
  """Returns the state and the news."""
  with open_noise(workdir) as checkpoints:
    return checkpoints.restore_latest(layout), checkpoints.news()


def assert_same_bits(state, expected):
  for name, value in expected.items():
    assert np.asarray(state[name]).tobytes() == np.asarray(value).tobytes()
