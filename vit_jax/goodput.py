"""Goodput: the share of a run's wall time that went into its steps.

The clock always counts for exactly one cause, so that the parts add up to the
whole. What a run that was killed had done since its last checkpoint is lost:
when it goes on, that time, and the time until it was started again, count as
`restart`.
"""

import contextlib
import time
from concurrent import futures

import jax

# Of these, `step` is good; `start` is reading data, restoring, initialising.
CAUSES = (
  'step', 'start', 'compile', 'input', 'evaluation', 'checkpoint', 'restart',
)  # fmt: skip


class Clock:
  """Counts seconds by cause, over all processes that have worked on a run."""

  def __init__(self, monotonic=time.monotonic, now=time.time):
    """Starts to count, for `start`.

    Args:
      monotonic: seconds of a clock that never goes back.
      now: seconds of a clock that goes on between two processes.
    """
    self._monotonic, self._now = monotonic, now
    self._seconds = dict.fromkeys(CAUSES, 0.0)
    self._cause, self._mark = 'start', monotonic()
    self._began = now()

  @contextlib.contextmanager
  def spending(self, cause):
    """Within it, time counts for another cause."""
    before = self.switch(cause)
    try:
      yield
    finally:
      self.switch(before)

  def switch(self, cause):
    """Counts for another cause from now on; returns the one before."""
    mark = self._monotonic()
    self._seconds[self._cause] += mark - self._mark
    before, self._cause, self._mark = self._cause, cause, mark
    return before

  def charge(self, cause, since):
    """Counts the time since a moment for this cause after all.

    Args:
      cause: one of CAUSES.
      since: seconds of the monotonic clock, after the last switch; what was
        before it counts as it did.
    """
    since = min(max(since, self._mark), self._monotonic())
    self._seconds[self._cause] += since - self._mark
    self._mark = since
    before, self._cause = self._cause, cause
    self.switch(before)

  def seconds(self):
    """Returns a dict from cause to seconds, up to now."""
    self.switch(self._cause)
    return dict(self._seconds)

  def scalars(self):
    """Returns the shares of all causes, and what `resume` needs, as metrics."""
    seconds = self.seconds()
    total = sum(seconds.values()) or 1.0
    shares = {cause: spent / total for cause, spent in seconds.items()}
    return shares | dict(seconds=total, unix_time=self._now())

  def resume(self, scalars, had_ended=False):
    """Adds what earlier processes spent on the run.

    Args:
      scalars: what `scalars` was last, at the state that the run goes on from.
        All time since then, up to this clock's start, was lost.
      had_ended: whether there was nothing left to do; then nothing was lost.
    """
    for cause in CAUSES:
      self._seconds[cause] += scalars[cause] * scalars['seconds']
    if not had_ended:
      self._seconds['restart'] += max(self._began - scalars['unix_time'], 0.0)


class Completion:
  """Learns when steps are done, without keeping the loop waiting."""

  def __init__(self):
    self._pool = futures.ThreadPoolExecutor(1, 'completion')

  def of(self, result):
    """Returns a future of when it was computed, by the monotonic clock.

    Args:
      result: tree of arrays of a step; an error of the step is the future's.
    """
    return self._pool.submit(_when_ready, result)


def _when_ready(result):
  jax.block_until_ready(result)
  return time.monotonic()


def in_words(scalars):
  """Returns it as text: '93% of the time in steps (compile 4%, input 2%)'."""
  causes = sorted(CAUSES, key=lambda cause: -scalars[cause])
  rest = ', '.join(
    f'{cause} {scalars[cause]:.0%}'
    for cause in causes
    if cause != 'step' and scalars[cause] >= 0.005
  )
  text = f'{scalars["step"]:.0%} of the time in steps'
  return f'{text} ({rest})' if rest else text
