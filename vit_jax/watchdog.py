"""Says where a run hangs: its threads' stacks when a step takes too long.

It never stops the run: what is slow today may go on.
"""

import collections
import contextlib
import faulthandler
import pathlib
import statistics
import sys
import threading
import time

import jax

_WINDOW = 20  # durations that the usual one is the median of


class Watchdog:
  """Watches how long a loop stays at one thing; a context.

  The loop says what it begins; within the context, a thread looks whether that
  takes longer than `factor` times the usual.
  """

  def __init__(
    self, workdir, factor=10, at_least=300, at_least_other=1800, every=1.0
  ):
    """Sets how long it waits.

    Args:
      workdir: the run's folder, where `stacks-PROCESS.txt` goes if it is on a
        disk; the stacks go to stderr in any case.
      factor: how many times the usual duration, a running median, is too long.
      at_least: seconds that no step is too long under.
      at_least_other: the same for all else: starting, compiling, evaluating,
        saving.
      every: seconds between two looks.

    Raises:
      ValueError: on numbers out of range.
    """
    if factor <= 1:
      raise ValueError(f'config.watchdog.factor={factor} is not above 1.')
    for name, value in dict(
      at_least=at_least, at_least_other=at_least_other, every=every
    ).items():
      if value <= 0:
        raise ValueError(f'config.watchdog.{name}={value} is not above 0.')
    self._path = None
    if '://' not in str(workdir):
      name = f'stacks-{jax.process_index()}.txt'
      self._path = pathlib.Path(workdir) / name
    self._factor, self._every = factor, every
    self._at_least, self._at_least_other = at_least, at_least_other
    self._durations = collections.defaultdict(
      lambda: collections.deque(maxlen=_WINDOW)
    )
    self._now = (None, 0, 0.0)  # what, since which step, since when
    self._step = self._synced_step = 0
    self._told = None
    self._end = threading.Event()

  def __enter__(self):
    # Until the first step: what restores, initialises, reads the first batch.
    self._now = ('starting', 0, time.monotonic())
    threading.Thread(target=self._watch, name='watchdog', daemon=True).start()
    return self

  def __exit__(self, *exception):
    self._end.set()

  def beat(self, step):
    """Notes that `step` begins. Costs well under a microsecond.

    JAX runs behind the loop: a beat says what the loop has asked for, and only
    `synced` how long that takes.
    """
    self._step = step

  def synced(self, step):
    """Notes that the devices have done all steps up to `step`."""
    now = time.monotonic()
    what, first, since = self._now
    if what == 'step' and step > first:
      self._durations['step'].append((now - since) / (step - first))
    self._now, self._step = ('step', step, now), step

  @contextlib.contextmanager
  def busy(self, what):
    """Within it, the loop does something else, with a patience of its own.

    Args:
      what: 'compiling', 'the evaluation test', 'saving'.
    """
    start, before = time.monotonic(), self._now
    self._now = (what, self._step, start)
    try:
      yield
    finally:
      now = time.monotonic()
      self._durations[what].append(now - start)
      kind, first, since = before
      # The time of this is none of the steps'.
      self._now = (kind, first, since + now - start) if kind else before

  def _watch(self):
    while not self._end.wait(self._every):
      self._look(time.monotonic())

  def _look(self, now):
    """Tells of a stall, once."""
    current = what, first, since = self._now
    if what is None or self._told == current:
      return
    patience = self._patience(what, self._step - first)
    if now - since < patience:
      return
    self._told = current
    doing = f'step {self._step:,}' if what == 'step' else what
    usual = self._usual(what)
    usual = f'{usual:.3g} s' if usual else 'not known yet'
    text = (
      f'Watchdog: process {jax.process_index()} has been at {doing} for '
      f'{now - since:,.0f} s (usual: {usual}), since step {first:,}. Where its '
      'threads are:'
    )
    # A notebook's stderr has no file that stacks could go to.
    with contextlib.suppress(OSError, ValueError, AttributeError):
      self._dump(sys.stderr, text)
    if self._path:
      # A disk that hangs must not take the watchdog with it: after stderr.
      with contextlib.suppress(OSError), self._path.open('a') as file:
        self._dump(file, f'{time.strftime("%F %T")} {text}')

  def _patience(self, what, num_steps):
    usual = self._usual(what)
    if what != 'step':
      return max(self._at_least_other, self._factor * usual)
    return max(self._at_least, self._factor * usual * max(num_steps, 1))

  def _usual(self, what):
    return statistics.median(list(self._durations.get(what, ())) or [0.0])

  def _dump(self, file, text):
    print(text, file=file, flush=True)
    faulthandler.dump_traceback(file, all_threads=True)
