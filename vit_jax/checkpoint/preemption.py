"""What processes agree on: to stop when one is asked to, and small facts.

SIGTERM, Ctrl-C or a notice of maintenance at any process stops all of them
after the same step.
"""

import os
import signal
import threading

import jax
import numpy as np
from jax.experimental import multihost_utils


class Notice:
  """Whether the run was asked to stop; a context that handles signals.

  Within it, the first SIGTERM or Ctrl-C is remembered, and the second ends the
  process. Only the main thread may handle signals; elsewhere, such as in some
  notebooks, they do what they did before.

  Attributes:
    name: of the signal, such as 'SIGTERM', or None if there was none.
  """

  def __init__(self):
    self.name = None
    self._old_handlers = {}
    # jax.distributed has a handler of SIGTERM that tells all processes, and
    # which one of Python would replace.
    self._is_shared = jax.process_count() > 1

  def __enter__(self):
    if threading.current_thread() is threading.main_thread():
      numbers = (signal.SIGINT,) if self._is_shared else (
        signal.SIGTERM, signal.SIGINT
      )  # fmt: skip
      for number in numbers:
        self._old_handlers[number] = signal.signal(number, self._on_signal)
    return self

  def __exit__(self, *exception):
    self._restore_handlers()

  def reached(self, step):
    """Returns whether to stop after `step`; the same on all processes.

    Args:
      step: number of updates done. With several processes this must be called
        at every step: the first that all of them can still reach is agreed on.
    """
    if not self._is_shared:
      return self.name is not None
    if not multihost_utils.reached_preemption_sync_point(step):
      return False
    self.name = self.name or 'SIGTERM'
    return True

  def _on_signal(self, number, frame):
    del frame
    self.name = signal.Signals(number).name
    text = f'\n{self.name}: saving after the step that runs or compiles now.\n'
    os.write(2, text.encode())
    self._restore_handlers()
    if self._is_shared:
      os.kill(os.getpid(), signal.SIGTERM)

  def _restore_handlers(self):
    for number, handler in self._old_handlers.items():
      # None: what was there was not installed from Python.
      signal.signal(number, signal.SIG_DFL if handler is None else handler)
    self._old_handlers = {}


def exchange(number):
  """Returns all processes' numbers, a list of int; all call it together."""
  if jax.process_count() == 1:
    return [int(number)]
  numbers = multihost_utils.process_allgather(np.array(number, np.int32))
  return [int(number) for number in numbers]


def exchange_text(text):
  """Returns all processes' texts, each cut after 500 bytes."""
  if jax.process_count() == 1:
    return [text]
  padded = np.zeros(500, np.uint8)
  data = np.frombuffer(text.encode()[:500], np.uint8)
  padded[: len(data)] = data
  rows = np.asarray(multihost_utils.process_allgather(padded))
  return [row.tobytes().rstrip(b'\0').decode(errors='replace') for row in rows]
