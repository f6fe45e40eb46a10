import pytest

from vit_jax import goodput


class Time:
  """A clock that moves when it is told to."""

  def __init__(self, start=100.0):
    self.seconds = start

  def __call__(self):
    return self.seconds


def test_the_parts_add_up_to_the_whole():
  time = Time()
  clock = goodput.Clock(time, time)
  time.seconds += 3  # start
  clock.switch('step')
  time.seconds += 10
  with clock.spending('evaluation'):
    time.seconds += 2
    with clock.spending('compile'):
      time.seconds += 4
    time.seconds += 1
  time.seconds += 5
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
  time = Time()
  clock = goodput.Clock(time, time)
  clock.switch('step')
  time.seconds += 4
  clock.switch('step')
  time.seconds += 3
  clock.charge('input')
  time.seconds += 1
  seconds = clock.seconds()
  assert (seconds['step'], seconds['input']) == (5, 3)


def test_what_was_lost_counts_as_restart():
  """Saved after 10 s, killed 7 s later, started again after another 20 s."""
  time = Time()
  first = goodput.Clock(time, time)
  first.switch('step')
  time.seconds += 10
  saved = first.scalars()
  time.seconds += 7 + 20
  second = goodput.Clock(time, time)
  time.seconds += 2
  second.resume(saved)
  second.switch('step')
  time.seconds += 1
  seconds = second.seconds()
  assert (seconds['step'], seconds['start']) == (11, 2)
  assert seconds['restart'] == 27
  assert sum(seconds.values()) == 40  # all the time since the beginning


def test_an_error_ends_what_is_counted():
  time = Time()
  clock = goodput.Clock(time, time)
  with pytest.raises(KeyError), clock.spending('checkpoint'):
    time.seconds += 1
    raise KeyError
  time.seconds += 2
  assert clock.seconds()['checkpoint'] == 1
  assert clock.seconds()['start'] == 2
