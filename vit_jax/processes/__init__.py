"""Several processes that train as one: they start, agree and stop together.

Process 0 is the middle of a line to all others (`channel`, `hub`). With
--coordinator the line is there before JAX: the processes call the roll on it.
On a TPU pod, under Slurm or on GKE, JAX finds the processes, and then they open
the line. A process that dies, fails or falls silent makes all others stop, with
a last line that says which one it was.

With several processes JAX takes SIGTERM, from its start on: it is heeded by the
train loop alone, which saves and stops. Before that, and in a run that only
evaluates, it does nothing: launchers follow it by SIGKILL after their time of
grace, and the run goes on from its last checkpoint. Ctrl-C ends it even then.
"""

import contextlib
import os
import socket
import sys
import threading
import time
import traceback
import types

import jax

from vit_jax.processes import joining

_GRACE = 3  # seconds that news of another process take, at most
_SHUTDOWN_SECONDS = 60  # that JAX may take to end
_all_failed = threading.Event()  # in the same way
_ending = threading.Lock()  # held by the thread that ends this process
_failing = []  # what this process is about to say that it stops for
_member = None  # this process's end of the line, if there are several


@contextlib.contextmanager
def joined(
  coordinator=None,
  num_processes=None,
  process_id=None,
  start_timeout=300,
  lost_timeout=60,
):
  """Makes this process one of several, if it is; a context for all it does.

  Enter it before JAX is used. An error within ends this process and all others,
  none of which waits for those that are gone: it prints what it was, and
  exits. Without error, the processes end when all have come to the end.

  Args:
    coordinator: 'HOST:PORT' of process 0. Without this and the next two, a TPU
      pod, Slurm or GKE is asked, if the environment says that this is one; else
      the process is alone.
    num_processes: how many there are.
    process_id: which this is, from 0.
    start_timeout: seconds for all processes to come.
    lost_timeout: seconds of silence after which a process is lost. The end of a
      process is noticed at once, only that of its machine is silent.

  Yields:
    an object whose `status`, 0 at first, is the exit code that this process has
    if JAX does not let it end; set it to the one that it will end with.

  Raises:
    ValueError: on arguments that do not fit together.
    OSError: if a process does not come, or comes with other numbers.
  """
  given = joining.is_given(coordinator, num_processes, process_id)
  for name, value in dict(start=start_timeout, lost=lost_timeout).items():
    if value <= 0:
      raise ValueError(f'--{name}_timeout={value} is not above 0.')
  how = dict(
    start_timeout=start_timeout, lost_timeout=lost_timeout, on_stop=_stopped
  )
  if given:
    line = joining.join(coordinator, num_processes, process_id, **how)
  elif joining.in_cluster():
    line = joining.join_cluster(**how)
  else:
    line = None
  ending = types.SimpleNamespace(status=0)
  if line is None:
    yield ending
    return
  global _member  # noqa: PLW0603  (what `gather` talks through)
  _member, center = line
  try:
    yield ending
  except BaseException as error:
    if not isinstance(error, SystemExit) or error.code:
      _fail(error, center)
  try:
    _end(center, ending.status)
  except Exception as error:
    _fail(error, center)
  _member = None


def several():
  """Returns whether this process is one of several, as `joined` made it."""
  return _member is not None


def gather(name, value, timeout=300):
  """Returns the value of each process, in order; all have to call it.

  Args:
    name: of this gathering, the same everywhere.
    value: anything that is JSON.
    timeout: seconds for all to come.

  Raises:
    TimeoutError: naming those that did not come.
  """
  if _member is None:
    return [value]
  return _member.gather(name, value, timeout)


def barrier(name, timeout=300):
  """Returns when all processes have come to it; see `gather`."""
  gather(name, None, timeout)


def _end(center, status):
  """Waits for all others to come to the end, and leaves them."""
  # What ends this process from now on may not do so.
  sys.stdout.flush()
  sys.stderr.flush()
  _member.gather('end', None, timeout=3600)
  # All is done and saved: whatever happens to JAX now does no harm.
  with joining.ends_after(_SHUTDOWN_SECONDS, '', code=status):
    jax.distributed.shutdown()
  _member.leave(timeout=_GRACE)
  if center:
    center.close(timeout=_GRACE)


def _fail(error, center):
  """Says what the error was, here and to the others, and exits."""
  is_told = isinstance(error, SystemExit)  # in a line of its own
  text = str(error.code) if is_told else _in_words(error)
  told = ' '.join(text.removeprefix('Error: ').split())[:500]
  told = told if told.endswith('.') else f'{told}.'
  _failing.append(told)
  # It may come of the end of another process, and JAX raises many kinds then.
  # News of that end are on their way, and `_stopped` ends this one.
  _all_failed.wait(_GRACE)
  _ending.acquire()
  _member.fail(told)
  if is_told:
    print(text, file=sys.stderr)
  else:
    traceback.print_exception(error)
    who = f'{_member.number} ({socket.gethostname()})'
    print(
      f'Error: process {who} stopped, for what is said above; all others stop '
      'too.',
      file=sys.stderr,
    )
  sys.stdout.flush()
  sys.stderr.flush()
  _exit(center is not None)


def _in_words(error):
  """Returns 'ValueError: what it says'."""
  return f'{type(error).__name__}: {error}'.removesuffix(': ')


def _stopped(is_center, text):
  """Ends this process because of another, wherever its main thread waits."""
  # What all found, each says itself, in full.
  is_ours_too = any(text.endswith(f' stopped: {told}') for told in _failing)
  if is_ours_too:
    _all_failed.set()
    return
  if not _ending.acquire(blocking=False):
    return  # by an error of its own
  more = ''
  if several():
    more = (
      ' This process stops too; the same command continues from the last '
      'checkpoint.'
    )
  # Past all locks that the main thread may hold.
  os.write(2, f'Error: {text}{more}\n'.encode())
  _exit(is_center)


def _exit(is_center):
  if is_center:
    time.sleep(1)  # until the others have read why
  # Not sys.exit: JAX and Orbax would wait for processes that are gone.
  os._exit(1)
