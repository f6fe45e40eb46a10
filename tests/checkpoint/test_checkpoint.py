import contextlib
import json
import os
import re
import resource
import shutil
import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint.states import (
  CONFIG,
  NOISE_SHAPES,
  assert_same_bits,
  manager,
  noise,
  open_noise,
  restore,
)
from etils import epath

from vit_jax import checkpoint, sharding
from vit_jax.checkpoint import writing

STATE = {'step': jnp.zeros((), jnp.int32), 'w': jnp.arange(8.0), 'none': None}
SHAPES = jax.eval_shape(lambda: STATE)

# Of Orbax's threads: where several of its reads or writes fail, some are never
# awaited.
pytestmark = [
  pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning'),
  pytest.mark.usefixtures('read_again_at_once', 'leave_nothing'),
]


def test_saves_keep_the_last_and_describe_themselves(tmp_path, make_mesh):
  layout = sharding.layout(SHAPES, make_mesh(1))
  with manager(tmp_path / 'run', SHAPES, keep=2) as checkpoints:
    assert checkpoints.restore_latest(layout) is None
    for step in (1, 2, 3):
      checkpoints.save(step, STATE | {'w': STATE['w'] * step})
  folder = tmp_path / 'run' / 'checkpoints'
  assert sorted(os.listdir(folder)) == ['2', '3']
  (config,) = (folder / '3' / 'config').glob('metadata')
  assert json.loads(config.read_text()) == json.loads(json.dumps(CONFIG))
  (inputs,) = (folder / '3' / 'inputs').glob('metadata')
  assert json.loads(inputs.read_text()) == {'image_shape': [8, 8, 3]}

  # Onto other devices: the layout is the new run's.
  layout = sharding.layout(SHAPES, make_mesh(4), [('w', ('data',))])
  with manager(tmp_path / 'run', SHAPES) as checkpoints:
    state = checkpoints.restore_latest(layout)
  np.testing.assert_array_equal(state['w'], np.arange(8.0) * 3)
  assert state['w'].sharding == layout['w']


def test_due(tmp_path):
  checkpoints = manager(tmp_path, SHAPES, every=3)
  due = [step for step in range(1, 9) if checkpoints.due(step, 8)]
  assert due == [3, 6, 8]


@pytest.mark.parametrize(
  ('data', 'params'), [(8, 'fsdp'), (4, 'replicate'), (1, 'fsdp'), (2, 'table')]
)
def test_states_go_onto_other_devices_and_layouts(
  tmp_path, make_mesh, data, params
):
  def layout_of(data, model, params):
    if params == 'table':
      params = [('w', (None, 'model'))]
    mesh = make_mesh(data, model)
    return sharding.layout(NOISE_SHAPES, mesh, params)

  with open_noise(tmp_path) as checkpoints:
    state = jax.device_put(noise(), layout_of(4, 2, 'table'))
    checkpoints.save(1, state)
  layout = layout_of(data, 1 if data == 8 else 2 if data < 8 else 1, params)
  state, news = restore(tmp_path, layout)
  assert news == []
  assert_same_bits(state, noise())
  assert jax.tree.map(lambda x: x.sharding, state) == layout


def test_a_state_may_be_donated_as_soon_as_save_returns(tmp_path, layout):
  step = jax.jit(lambda s: s | {'w': s['w'] + 1}, donate_argnums=0)
  with open_noise(tmp_path) as checkpoints:
    state = jax.device_put(noise(), layout)
    for number in (1, 2):
      checkpoints.save(number, state)
      state = step(state)
  expected = noise() | {'w': noise()['w'] + 1}
  assert_same_bits(restore(tmp_path, layout)[0], expected)


@contextlib.contextmanager
def full_disk():
  """Every write beyond 10 kB of a file fails."""
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def wait_for_part(checkpoints):
  checkpoints._write.join()
  # Where a write fails, the others that Orbax has begun go on for a moment.
  time.sleep(0.2)


def test_a_full_disk_does_not_stop_training(tmp_path, layout):
  with open_noise(tmp_path, every=20, keep=1) as checkpoints:
    checkpoints.save(20, noise(20))
    checkpoints.wait()
    with full_disk():
      checkpoints.save(40, noise(40))
      wait_for_part(checkpoints)
      due = [step for step in range(41, 45) if checkpoints.due(step, 100)]
      assert due == [44]  # learned at 42, and tried again 2 steps later
      (line,) = checkpoints.news()
      assert line.startswith('WARNING: the checkpoint of step 40 could not be')
      assert line.endswith('step 20 is safe. Training goes on; the next try is '
                           'after step 44.')  # fmt: skip
      # What it has left is gone; the last good one is not.
      assert os.listdir(tmp_path / 'checkpoints') == ['20']
      checkpoints.save(44, noise(44))
      wait_for_part(checkpoints)
      due = [step for step in range(45, 54) if checkpoints.due(step, 100)]
      assert due == [50, 51, 52, 53]  # 4 steps after it is learned at 46
    checkpoints.save(53, noise(53))
    wait_for_part(checkpoints)
    due = [step for step in range(54, 81) if checkpoints.due(step, 100)]
    assert due == [60, 80]
  assert os.listdir(tmp_path / 'checkpoints') == ['53']
  assert_same_bits(restore(tmp_path, layout)[0], noise(53))


def fail_twice(monkeypatch):
  """Lets the next two writes fail; returns a list that gets their steps."""
  start, failures = writing.Write._start, []

  def fail(self, state):
    if len(failures) < 2:
      failures.append(self.step)
      raise OSError(28, 'No space left on device')
    return start(self, state)

  monkeypatch.setattr(writing.Write, '_start', fail)
  return failures


def test_a_save_removes_what_a_failed_one_has_left_since(tmp_path):
  with open_noise(tmp_path) as checkpoints:
    (tmp_path / 'checkpoints' / '1.partial').mkdir()
    checkpoints.save(2, noise(2))
  assert os.listdir(tmp_path / 'checkpoints') == ['2']


def test_the_last_save_is_tried_again_in_place(tmp_path, layout, monkeypatch):
  monkeypatch.setattr(checkpoint, 'RETRY_SECONDS', (0, 0))
  with (
    pytest.raises(OSError, match=r'could not be written to .* \(step 1 is safe'
                  r'\): .*File too large.* mend that'),
    open_noise(tmp_path) as checkpoints,
  ):  # fmt: skip
    checkpoints.save(1, noise(1))
    checkpoints.wait()
    with full_disk():
      checkpoints.save(2, noise(2))
      checkpoints.wait()
  assert_same_bits(restore(tmp_path, layout)[0], noise(1))

  # With room again, the last try succeeds.
  failures = fail_twice(monkeypatch)
  with open_noise(tmp_path) as checkpoints:
    checkpoints.save(2, noise(2))
  assert failures == [2, 2]
  assert_same_bits(restore(tmp_path, layout)[0], noise(2))


def test_who_waits_is_told_of_each_try(tmp_path, monkeypatch):
  monkeypatch.setattr(checkpoint, 'RETRY_SECONDS', (0, 0.1))
  fail_twice(monkeypatch)
  said = []
  with open_noise(tmp_path) as checkpoints:
    checkpoints.save(2, noise(2))
    with pytest.raises(checkpoint.Preempted):
      checkpoints.stop(2, lambda *lines: said.extend(lines))
  first, second = said
  assert first.startswith('WARNING: the checkpoint of step 2 could not be writ')
  assert 'No space left on device); none was saved before.' in first
  assert second.endswith('The next try is in 0.1 s.')


def test_a_step_is_written_once(tmp_path, layout, monkeypatch):
  started, start = [], writing.Write._start

  def count(self, state):
    started.append(self.step)
    time.sleep(0.3)
    return start(self, state)

  monkeypatch.setattr(writing.Write, '_start', count)
  with open_noise(tmp_path) as checkpoints:
    for _ in range(3):
      checkpoints.save(2, noise(2))  # it is on its way
    checkpoints.wait()
    checkpoints.save(2, noise(2))  # it is safe
  assert started == [2]
  assert_same_bits(restore(tmp_path, layout)[0], noise(2))


def test_an_old_one_goes_only_when_the_new_one_is_complete(
  tmp_path, monkeypatch
):
  seen, rename = [], epath.backend.os_backend.rename

  def watch(source, target):
    folder = tmp_path / 'checkpoints'
    seen.append((os.path.basename(source), sorted(os.listdir(folder))))
    rename(source, target)

  monkeypatch.setattr(type(epath.backend.os_backend), 'rename',
                      lambda self, *paths: watch(*paths))  # fmt: skip
  with open_noise(tmp_path, keep=1) as checkpoints:
    for step in (1, 2):
      checkpoints.save(step, noise(step))
  assert [name for name in seen if name[0] in ('2.partial', '1')] == [
    ('2.partial', ['1', '2.partial']),
    ('1', ['1', '2']),
  ]


def test_what_a_killed_process_began_is_removed(run, layout):
  folder = run / 'checkpoints'
  shutil.copytree(folder / '2', folder / '3.partial')
  shutil.copytree(folder / '2', folder / '4.orbax-checkpoint-tmp')
  (folder / 'notes').mkdir()
  assert_same_bits(restore(run, layout)[0], noise(2))
  assert sorted(os.listdir(folder)) == ['1', '2', 'notes']


def test_a_slow_disk_puts_saves_off(tmp_path, monkeypatch):
  go_on = threading.Event()
  start = writing.Write._start

  def wait(self, state):
    if self.step == 2:
      go_on.wait()
    return start(self, state)

  monkeypatch.setattr(writing.Write, '_start', wait)
  monkeypatch.setattr(checkpoint, 'PATIENCE_SECONDS', 1)
  waits = []
  with open_noise(tmp_path, every=20) as checkpoints:
    checkpoints.save(2, noise(2))
    for step in range(3, 61):  # while the disk does not answer
      assert checkpoints.due(step, 100) == (step % 20 == 0)
      if step % 20 == 0:
        before = time.monotonic()
        checkpoints.save(step, noise(step))
        waits.append(time.monotonic() - before)
    # It is waited for once.
    assert waits[0] >= 1 and max(waits[1:]) < 0.5
    first, *others = checkpoints.news()
    assert re.fullmatch(
      r'The checkpoint of step 2 is still being written after [1-9] s; that of '
      r'step 20 is put off until then\.', first
    )  # fmt: skip
    assert len(others) == 2
    go_on.set()
    wait_for_part(checkpoints)
    due = [step for step in range(61, 65) if checkpoints.due(step, 100)]
    assert due[0] == 62  # the next time that they ask one another
    checkpoints.save(62, noise(62))
  assert sorted(os.listdir(tmp_path / 'checkpoints')) == ['2', '62']


def test_memory_is_reserved_when_there_is_something_to_save(tmp_path, layout):
  with open_noise(tmp_path) as checkpoints:
    before = len(jax.live_arrays())
    checkpoints.restore_latest(layout)
    assert len(jax.live_arrays()) == before
    checkpoints.due(1, 100)
    assert len(jax.live_arrays()) == before + len(NOISE_SHAPES)


def test_an_interrupt_does_not_wait(tmp_path, monkeypatch):
  go_on, start = threading.Event(), writing.Write._start

  def wait(self, state):
    go_on.wait(30)
    return start(self, state)

  monkeypatch.setattr(writing.Write, '_start', wait)
  before = time.monotonic()
  with pytest.raises(KeyboardInterrupt), open_noise(tmp_path) as checkpoints:
    checkpoints.save(2, noise(2))
    raise KeyboardInterrupt
  assert time.monotonic() - before < 20
  go_on.set()
  wait_for_part(checkpoints)


@pytest.mark.parametrize('name', ['SIGTERM', 'SIGINT'])
def test_signals_ask_to_stop(tmp_path, name):
  with manager(tmp_path, SHAPES) as checkpoints:
    assert not checkpoints.stop_requested()
    os.kill(os.getpid(), getattr(signal, name))
    assert checkpoints.stop_requested()
    checkpoints.save(1, STATE)
    with pytest.raises(checkpoint.Preempted, match=f'{name} after step 1.'):
      checkpoints.stop(1)
  assert (tmp_path / 'checkpoints' / '1').is_dir()


@pytest.mark.parametrize('kwargs', [dict(every=0), dict(keep=0)])
def test_mistakes_are_explained(tmp_path, kwargs):
  with pytest.raises(ValueError, match=r'config.checkpoint.\w+=0 is not at le'):
    manager(tmp_path / 'run', SHAPES, **kwargs)
  assert not (tmp_path / 'run').exists()
