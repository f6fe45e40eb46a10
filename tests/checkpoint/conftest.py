"""What the tests of checkpoints share: saved runs, and strictness."""

import gc
import shutil

import pytest
from checkpoint.states import NOISE_SHAPES, noise, open_noise

from vit_jax import sharding
from vit_jax.checkpoint import restoring


@pytest.fixture
def read_again_at_once(monkeypatch):
  monkeypatch.setattr(restoring, 'AGAIN_SECONDS', 0)


@pytest.fixture
def leave_nothing():
  """Lets that be told in the test that caused it."""
  yield
  gc.collect()


@pytest.fixture(scope='session')
def saved(tmp_path_factory):
  """A run's folder with the checkpoints 1 and 2."""
  workdir = tmp_path_factory.mktemp('saved')
  with open_noise(workdir) as checkpoints:
    for step in (1, 2):
      checkpoints.save(step, noise(step))
  return workdir


@pytest.fixture
def run(saved, tmp_path):
  return shutil.copytree(saved, tmp_path / 'run')


@pytest.fixture
def layout(make_mesh):
  return sharding.layout(NOISE_SHAPES, make_mesh(1))
