import time

import jax.numpy as jnp
import pytest

from vit_jax import goodput


class Time:
  """A clock that moves when it is told to."""

  def __init__(self, start=100.0):
    self.seconds = start

  def __call__(self):
    return self.seconds


def test_the_parts_add_up_to_the_whole():
  clock_time = Time()
  clock = goodput.Clock(clock_time, clock_time)
  clock_time.seconds += 3  # start
  clock.switch('step')
  clock_time.seconds += 10
  with clock.spending('evaluation'):
    clock_time.seconds += 2
    with clock.spending('compile'):
      clock_time.seconds += 4
    clock_time.seconds += 1
  clock_time.seconds += 5
  assert clock.seconds() == dict(
    step=15, start=3, compile=4, input=0, evaluation=3, checkpoint=0, restart=0
  )
  scalars = clock.scalars()
  assert scalars['step'] == 15 / 25
  assert scalars['seconds'] == 25
  assert sum(scalars[cause] for cause in goodput.CAUSES) == pytest.approx(1)
  assert goodput.in_words(scalars) == (
    '60% of the time in steps (compile 16%, start 12%, evaluation 12%)'
  )


def test_what_a_wait_was_for_may_be_known_later():
  clock_time = Time()
  clock = goodput.Clock(clock_time, clock_time)
  clock.switch('step')
  clock_time.seconds += 4
  clock.switch('step')
  clock_time.seconds += 3
  clock.charge('input', since=clock_time.seconds - 2)
  clock_time.seconds += 1
  clock.charge('input', since=0)  # not before what was counted already
  clock_time.seconds += 1
  seconds = clock.seconds()
  assert (seconds['step'], seconds['input']) == (4 + 1 + 1, 2 + 1)


@pytest.mark.parametrize('batch', [0.02, 0.09, 0.15])
def test_input_is_what_the_devices_waited_for(batch):
  """A step of 0.1 s on a device that works while the next batch is made."""
  clock_time = Time()
  clock = goodput.Clock(clock_time, clock_time)
  clock.switch('step')
  free = clock_time.seconds  # when the device has nothing left to do
  for _ in range(100):
    clock.switch('step')
    asked = clock_time.seconds
    clock_time.seconds += batch
    if free < clock_time.seconds:
      clock.charge('input', since=max(free, asked))
    before, free = free, max(free, clock_time.seconds) + 0.1
    clock_time.seconds = max(clock_time.seconds, before)  # two under way
  seconds = clock.seconds()
  share = seconds['input'] / (seconds['input'] + seconds['step'])
  assert share == pytest.approx(max(1 - 0.1 / batch, 0), abs=0.02)


def test_completion_tells_when_and_what_went_wrong():
  completion = goodput.Completion()
  start = time.monotonic()
  done = completion.of(jnp.zeros(3) + 1)
  done.result()
  assert start <= done.result() <= time.monotonic()

  class Broken:
    def block_until_ready(self):
      raise RuntimeError('the step failed')

  with pytest.raises(RuntimeError, match='the step failed'):
    completion.of(Broken()).result()


def test_what_was_lost_counts_as_restart():
  """Saved after 10 s, killed 7 s later, started again after another 20 s."""
  clock_time = Time()
  first = goodput.Clock(clock_time, clock_time)
  first.switch('step')
  clock_time.seconds += 10
  saved = first.scalars()
  clock_time.seconds += 7 + 20
  second = goodput.Clock(clock_time, clock_time)
  clock_time.seconds += 2
  second.resume(saved)
  second.switch('step')
  clock_time.seconds += 1
  seconds = second.seconds()
  assert (seconds['step'], seconds['start']) == (11, 2)
  assert seconds['restart'] == 27
  assert sum(seconds.values()) == 40  # all the time since the beginning


def test_a_run_that_had_ended_lost_nothing():
  clock_time = Time()
  first = goodput.Clock(clock_time, clock_time)
  clock_time.seconds += 10
  saved = first.scalars()
  clock_time.seconds += 60
  second = goodput.Clock(clock_time, clock_time)
  clock_time.seconds += 2
  second.resume(saved, had_ended=True)
  seconds = second.seconds()
  assert (seconds['start'], seconds['restart']) == (12, 0)


def test_an_error_ends_what_is_counted():
  clock_time = Time()
  clock = goodput.Clock(clock_time, clock_time)
  with pytest.raises(KeyError), clock.spending('checkpoint'):
    clock_time.seconds += 1
    raise KeyError
  clock_time.seconds += 2
  assert clock.seconds()['checkpoint'] == 1
  assert clock.seconds()['start'] == 2
