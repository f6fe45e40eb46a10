"""What processes agree on: to stop when one is asked to, and small facts.

SIGTERM or Ctrl-C at any process stops all of them after the same step.
"""

import os
import signal
import threading

import jax
import numpy as np
from jax.experimental import multihost_utils


class Notice:
  """Whether the run was asked to stop; a context that handles signals.

  Within it, the first SIGTERM or Ctrl-C is remembered. A second Ctrl-C does
  what it did before, which is to end the process. Further SIGTERMs change
  nothing: some schedulers send several, and SIGKILL when they will wait no
  longer. Only the main thread may handle signals; elsewhere, such as in some
  notebooks, they do what they did before.

  Attributes:
    name: of the signal, such as 'SIGTERM', or None if there was none.
  """

  def __init__(self):
    self.name, self._calls = None, 0
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
    for number in list(self._old_handlers):
      self._restore(number)

  def reached(self):
    """Returns whether to stop now; the same on all processes.

    All of them must call it equally often, after each step at least: the first
    call that all can still reach is agreed on.
    """
    if not self._is_shared:
      return self.name is not None
    self._calls += 1
    if not multihost_utils.reached_preemption_sync_point(self._calls):
      return False
    self.name = self.name or 'SIGTERM'
    return True

  def _on_signal(self, number, frame):
    del frame
    if number == signal.SIGINT:
      self._restore(number)
    if self.name is not None:
      return
    self.name = signal.Signals(number).name
    text = f'\n{self.name}: saving after the step that runs or compiles now.\n'
    os.write(2, text.encode())
    if self._is_shared:
      os.kill(os.getpid(), signal.SIGTERM)

  def _restore(self, number):
    handler = self._old_handlers.pop(number)
    # None: what was there was not installed from Python.
    signal.signal(number, signal.SIG_DFL if handler is None else handler)


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
