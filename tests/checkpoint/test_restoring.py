import errno
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import checkpoint, sharding
from vit_jax.checkpoint import files, restoring

SHAPES = {'w': jax.ShapeDtypeStruct((8,), jnp.float32)}


@pytest.fixture
def restore(tmp_path, make_mesh):
  """Returns a function that restores from the checkpoints 1 and 2."""
  with checkpoint.Manager(tmp_path, {}, SHAPES) as checkpoints:
    for step in (1, 2):
      checkpoints.save(step, {'w': jnp.full(8, step, jnp.float32)})
  target = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    SHAPES,
    sharding.layout(SHAPES, make_mesh(1)),
  )
  return lambda: restoring.latest(checkpoints.workdir / 'checkpoints', target)


@pytest.fixture
def fail(monkeypatch):
  """Lets reading raise an error so many times."""
  monkeypatch.setattr(restoring, 'AGAIN_SECONDS', 0.01)
  read = files.read_state

  def fail(error, times):
    left = [error] * times

    def failing(*args):
      if left:
        raise left.pop()
      return read(*args)

    monkeypatch.setattr(files, 'read_state', failing)

  return fail


def test_what_can_be_read_the_second_time_is_not_damaged(
  restore, fail, tmp_path
):
  fail(files.DamagedError('DATA_LOSS: ...'), times=1)
  state, step, news = restore()
  np.testing.assert_array_equal(state['w'], np.full(8, 2))
  assert (step, news) == (2, [])
  assert sorted(os.listdir(tmp_path / 'checkpoints')) == ['1', '2']


def test_values_are_compared_a_second_time(restore, monkeypatch, tmp_path):
  monkeypatch.setattr(restoring, 'AGAIN_SECONDS', 0.01)
  whole, wrong = restoring.checksums.whole, [{'w': 1}]
  monkeypatch.setattr(
    restoring.checksums,
    'whole',
    lambda state: wrong.pop() if wrong else whole(state),
  )
  assert restore()[1:] == (2, [])
  assert not wrong


def test_what_is_damaged_twice_is_set_aside(restore, fail, tmp_path):
  fail(files.DamagedError('DATA_LOSS: ...'), times=2)
  _, step, (line,) = restore()
  assert step == 1
  assert 'step 2 is damaged (DATA_LOSS: ...)' in line
  names = sorted(os.listdir(tmp_path / 'checkpoints'))
  assert names == ['1', 'damaged-2']


def test_running_out_of_memory_is_no_fault_of_the_files(restore, fail):
  text = 'RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.'
  fail(jax.errors.JaxRuntimeError(text), times=1)
  # As it is, so that the advice on what saves memory is given.
  with pytest.raises(jax.errors.JaxRuntimeError, match=text):
    restore()


@pytest.mark.parametrize(
  'error',
  [
    OSError(errno.EIO, os.strerror(errno.EIO)),
    ValueError('INTERNAL: a server was restarted'),
  ],
)
def test_a_disk_that_does_not_answer_damages_nothing(
  restore, fail, tmp_path, error
):
  fail(error, times=9)
  with pytest.raises(ValueError, match=r'/2 cannot be read now \((OS|Value)Er'):
    restore()
  assert sorted(os.listdir(tmp_path / 'checkpoints')) == ['1', '2']
