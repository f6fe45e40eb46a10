"""Checkpoints in a bucket that are damaged, begun, or cannot be written."""

import time

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


@pytest.mark.slow
def test_a_store_that_does_not_answer_does_not_stop_training(
  folder, proxy, monkeypatch
):
  """TensorStore tries for 15 minutes; the steps do not wait for it."""
  monkeypatch.setattr(checkpoint, 'PATIENCE_SECONDS', 1)
  with checkpoint.Manager(folder, {}, SHAPES, every=10) as checkpoints:
    checkpoints.save(10, state(10))
    checkpoints.wait()
    proxy.faults[:] = [Fault(503, method='POST|PUT')]
    checkpoints.save(20, state(20))
    begun, slowest = time.monotonic(), 0
    for step in range(21, 41):
      before = time.monotonic()
      if checkpoints.due(step, 100):
        assert step in (30, 40)
        checkpoints.save(step, state(step))
      slowest = max(slowest, time.monotonic() - before)
      time.sleep(0.2)
    assert slowest < 3  # of which 1 is patience, once
    assert time.monotonic() - begun < 15
    first, second = checkpoints.news()
    assert 'that of step 30 is put off' in first
    assert 'that of step 40 is put off' in second
    assert proxy.faults[0].done  # it was met
    proxy.faults.clear()
    deadline = time.monotonic() + 60
    while not checkpoints.due(41, 100):
      assert time.monotonic() < deadline
      time.sleep(0.1)
    checkpoints.save(41, state(41))
  whole = files.saved(folder / 'checkpoints')
  assert [path.name for path in whole] == ['41', '20']


def test_a_store_that_lists_nothing_is_explained(folder, proxy, make_mesh):
  layout = sharding.layout(SHAPES, make_mesh(1))
  with checkpoint.Manager(folder, {}, SHAPES) as checkpoints:
    proxy.faults[:] = [Fault(403)]
    with pytest.raises(OSError, match='checkpoints cannot be read: access is '):
      checkpoints.restore_latest(layout)
