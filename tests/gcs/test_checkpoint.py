"""Checkpoints in a bucket that are damaged, begun, or cannot be written."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gcs.flaky_proxy import Fault

from vit_jax import checkpoint, sharding
from vit_jax.checkpoint import files

SHAPES = {'w': jax.ShapeDtypeStruct((64, 50), jnp.float32)}


def state(step):
  values = np.random.default_rng(step).normal(size=(64, 50))
  return {'w': jnp.asarray(values, jnp.float32)}


@pytest.mark.slow
def test_a_damaged_one_is_set_aside(folder, proxy, make_mesh):
  layout = sharding.layout(SHAPES, make_mesh(1))
  with checkpoint.Manager(folder, {}, SHAPES, keep=2) as checkpoints:
    for step in (1, 2):
      checkpoints.save(step, state(step))
  last = folder / 'checkpoints' / '2'
  assert (last / 'commit_success.txt').exists()
  (path,) = (last / 'state' / 'd').iterdir()
  path.write_bytes(path.read_bytes()[:-40])
  # And one that was never completed.
  (folder / 'checkpoints' / '3' / 'state' / 'd' / 'a').write_text('a')

  with checkpoint.Manager(folder, {}, SHAPES, keep=2) as checkpoints:
    restored = checkpoints.restore_latest(layout)
    (line,) = checkpoints.news()
    assert 'the checkpoint of step 2 is damaged (' in line
    assert f'It is now {folder}/checkpoints/damaged-2' in line
    np.testing.assert_array_equal(restored['w'], state(1)['w'])
    for step in (2, 3):
      checkpoints.save(step, state(step))
  names = {path.name for path in (folder / 'checkpoints').iterdir()}
  assert names == {'2', '3', 'damaged-2'}
  whole = files.saved(folder / 'checkpoints')
  assert [path.name for path in whole] == ['3', '2']


@pytest.mark.slow
def test_a_store_that_refuses_does_not_stop_training(folder, proxy):
  with checkpoint.Manager(folder, {}, SHAPES, every=10) as checkpoints:
    checkpoints.save(10, state(10))
    checkpoints.wait()
    proxy.faults[:] = [Fault(403, method='POST|PUT')]
    checkpoints.save(20, state(20))
    checkpoints._write.join()
    due = [step for step in range(21, 25) if checkpoints.due(step, 100)]
    assert due == [22, 23, 24]
    (line,) = checkpoints.news()
    assert 'step 20 could not be written' in line
    assert 'step 10 is safe' in line
    proxy.faults.clear()
    checkpoints.save(24, state(24))
  whole = files.saved(folder / 'checkpoints')
  assert [path.name for path in whole] == ['24', '10']
