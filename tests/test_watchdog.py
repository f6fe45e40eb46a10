"""The watchdog, with a clock that the test turns."""

import pathlib
import threading
import time
import timeit

import pytest

from vit_jax import watchdog


@pytest.fixture
def clock(monkeypatch):
  """Returns a function that lets seconds pass."""
  now = [1000.0]
  monkeypatch.setattr(time, 'monotonic', lambda: now[0])

  def advance(seconds):
    now[0] += seconds

  return advance


@pytest.fixture
def make(tmp_path, capfd):
  """Returns a function to a watchdog, and one to what it has said since."""

  def make(**kwargs):
    dog = watchdog.Watchdog(tmp_path, **kwargs)

    def said():
      dog._look(time.monotonic())
      return capfd.readouterr().err

    return dog, said

  return make


def train(dog, clock, seconds, first=1, last=100, log_every=10):
  """Steps that cost nothing to ask for, and `seconds` each to wait for."""
  for step in range(first, last + 1):
    dog.beat(step)
    if step % log_every == 0:
      clock(seconds * log_every)
      dog.synced(step)


def test_a_step_that_hangs_is_told_once(make, clock, tmp_path):
  dog, said = make(factor=10, at_least=300)
  dog.synced(0)
  train(dog, clock, seconds=50)
  dog.beat(101)
  clock(499)
  assert said() == ''
  clock(2)
  text = said()
  assert text.startswith(
    'Watchdog: process 0 has been at step 101 for 501 s (usual: 50 s), since '
    'step 100. Where its threads are:\n'
  )
  # faulthandler's: this thread is here.
  assert 'Current thread 0x' in text
  assert f'File "{__file__}", line' in text
  assert 'in test_a_step_that_hangs_is_told_once' in text
  in_file = (tmp_path / 'stacks-0.txt').read_text()
  assert 'at step 101 for 501 s' in in_file
  assert 'in test_a_step_that_hangs_is_told_once' in in_file
  clock(1000)
  assert said() == ''

  dog.synced(101)  # it went on after all; the next stall is another
  clock(501)
  assert 'has been at step 101 for 501 s' in said()
  assert (tmp_path / 'stacks-0.txt').read_text().count('Watchdog') == 2


def test_fast_steps_have_at_least_so_long(make, clock):
  dog, said = make(factor=10, at_least=300)
  dog.synced(0)
  train(dog, clock, seconds=0.1)
  clock(299)
  assert said() == ''
  clock(2)
  assert 'for 301 s (usual: 0.1 s)' in said()


def test_what_was_asked_for_ahead_is_waited_for(make, clock):
  dog, said = make(factor=10, at_least=1)
  dog.synced(0)
  train(dog, clock, seconds=1)
  for step in range(101, 151):  # 50 steps are under way
    dog.beat(step)
  clock(499)
  assert said() == ''
  clock(2)
  assert 'at step 150 for 501 s (usual: 1 s), since step 100' in said()


def test_other_things_have_their_own_patience(make, clock):
  dog, said = make(factor=10, at_least=300, at_least_other=1800)
  dog.synced(0)
  train(dog, clock, seconds=1)
  for seconds in (400, 500, 300):
    with dog.busy('evaluation test'):
      clock(seconds)
      assert said() == ''
  # None of that was the step's.
  clock(299)
  assert said() == ''
  with dog.busy('evaluation test'):
    clock(3999)
    assert said() == ''
    clock(2)
    assert 'at evaluation test for 4,001 s (usual: 400 s)' in said()
  with dog.busy('compiling'):
    clock(1801)
    assert 'at compiling for 1,801 s (usual: not known yet)' in said()


def test_the_time_before_the_first_step_is_watched(make, clock):
  dog, said = make(at_least=300, at_least_other=1800, every=1000)
  clock(10**6)  # before the context, nothing is expected
  assert said() == ''
  with dog:
    clock(1000)
    with dog.busy('compiling'):
      clock(1000)  # which has its own patience
    clock(799)
    assert said() == ''
    clock(2)
    assert 'at starting for 1,801 s (usual: not known yet)' in said()
    dog.synced(0)
    clock(299)
    assert said() == ''


def test_the_thread_looks_by_itself(tmp_path, capfd):
  with watchdog.Watchdog(tmp_path, at_least=0.1, every=0.02) as dog:
    dog.synced(7)
    deadline = time.monotonic() + 10
    err = ''
    while 'has been at step 7' not in err and time.monotonic() < deadline:
      time.sleep(0.02)
      err += capfd.readouterr().err
  assert 'has been at step 7' in err
  assert 'test_the_thread_looks_by_itself' in err
  for thread in threading.enumerate():
    if thread.name == 'watchdog':
      thread.join(10)
      assert not thread.is_alive()


def test_an_object_store_gets_no_file(clock, capfd, monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  dog = watchdog.Watchdog('gs://bucket/run')
  dog.synced(0)
  clock(301)
  dog._look(time.monotonic())
  assert 'has been at step 0' in capfd.readouterr().err
  assert not list(pathlib.Path().iterdir())


def test_a_beat_costs_microseconds(tmp_path):
  with watchdog.Watchdog(tmp_path) as dog:
    dog.synced(0)
    seconds = min(timeit.repeat(lambda: dog.beat(1), number=1000, repeat=20))
  assert seconds / 1000 < 5e-6


@pytest.mark.parametrize(
  ('field', 'value', 'message'),
  [
    ('factor', 1, 'config.watchdog.factor=1 is not above 1.'),
    ('at_least', 0, 'config.watchdog.at_least=0 is not above 0.'),
    ('at_least_other', -1, 'config.watchdog.at_least_other=-1 is not above 0.'),
  ],
)
def test_numbers_are_checked(tmp_path, field, value, message):
  with pytest.raises(ValueError) as error:
    watchdog.Watchdog(tmp_path, **{field: value})
  assert str(error.value) == message
