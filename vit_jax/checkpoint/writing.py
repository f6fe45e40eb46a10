"""Writing one checkpoint, in a thread, while training goes on."""

import asyncio
import contextlib
import json
import os
import threading
import time
from concurrent import futures

import jax
import orbax.checkpoint as ocp

from vit_jax import storage
from vit_jax.checkpoint import checksums, files

BUSY, DONE, FAILED = range(3)  # of what one process has to do
# How long a process that fails waits for process 0 to complete a checkpoint.
_COMPLETE_SECONDS = 30


class Write:
  """Writes a checkpoint in a thread of its own.

  Every process writes its part of the arrays and leaves a report of it; process
  0 waits for all reports, completes the checkpoint, and removes old ones.

  Attributes:
    step: number of updates done.
    error: what went wrong here, or None.
    warning: what went wrong when it was complete, or ''.
    started: when, on the clock `time.monotonic`.
    written: event, set when this process's part is done and reported, or has
      failed.
    give_up: event that ends the wait for reports which will not come.
  """

  def __init__(self, directory, step, state, items, keep, is_snapshot, attempt):
    """Starts it.

    Args:
      directory: that of all checkpoints.
      step: number of updates done.
      state: tree of arrays.
      items: dict of 'config' and 'inputs', each a dict.
      keep: how many checkpoints are kept.
      is_snapshot: whether the arrays are left alone until this is over. If not,
        they may be donated as soon as this returns, which takes until they are
        in the host's memory.
      attempt: number that no other save of this run has, the same on all
        processes: reports that a failed one has left are not taken for its.
    """
    self.step, self.error, self.warning = step, None, ''
    self.started, self._attempt = time.monotonic(), attempt
    self.written, self.give_up = threading.Event(), threading.Event()
    self._final = directory / str(step)
    self._place = self._final
    if not storage.is_remote(directory):
      self._place = directory / f'{step}.partial'
    self._items, self._keep = items, keep
    # Compressed, parameters take 10% less room and five times as long.
    self._handler = ocp.PyTreeCheckpointHandler(use_compression=False)
    self._shapes, started = checksums.describe(state), None
    if not is_snapshot:
      # A thread, because a notebook's has an event loop that runs already.
      with futures.ThreadPoolExecutor(1) as thread:
        started = thread.submit(
          lambda: (checksums.start_part(state), self._start(state))
        )
        futures.wait([started])
      state = None
    self._thread = threading.Thread(
      target=self._run, args=(state, started), name=f'checkpoint-{step}'
    )
    self._thread.start()

  def join(self, timeout=None):
    """Waits until this process has no more to do, but for `timeout` seconds."""
    self._thread.join(timeout)

  def finish(self, timeout):
    """Waits until the checkpoint is complete, or hardly will be.

    Nothing is agreed on, and no process is waited for but process 0.

    Args:
      timeout: seconds for what this process has to do.
    """
    self.join(timeout)
    if jax.process_index() == 0 or self.status != DONE:
      return
    deadline, seconds = time.monotonic() + _COMPLETE_SECONDS, 0.05
    while time.monotonic() < deadline:
      with contextlib.suppress(Exception):  # the store may answer later
        if files.is_complete(self._final):
          return
      time.sleep(seconds)
      seconds = min(2 * seconds, 2)

  @property
  def own_status(self):
    """BUSY, DONE or FAILED: this process's part of the arrays."""
    if not self.written.is_set():
      return BUSY
    return DONE if self.error is None else FAILED

  @property
  def status(self):
    """BUSY, DONE or FAILED: all that this process has to do."""
    if self._thread.is_alive():
      return BUSY
    return DONE if self.error is None else FAILED

  def clean(self):
    """Tries to remove what a failed write has left, when all have ended it."""
    with contextlib.suppress(Exception):  # the next start tries again
      self._place.rmtree(missing_ok=True)

  def _run(self, state, started):
    values = {}
    try:
      if started:
        sums, writes = started.result()
        _wait_for(writes)
      else:
        _wait_for(self._start(state))
        # Not at the same time: where the device is the CPU, it takes the cores
        # from the step that runs beside it.
        sums = checksums.start_part(state)
      values = checksums.part(sums)
    except Exception as error:
      self.error = error
    if jax.process_count() > 1:
      try:
        self._report(values)
      except Exception as error:
        self.error = self.error or error
    # Not before the report: process 0 would wait for ever for one that failed.
    self.written.set()
    if jax.process_index() == 0 and self.error is None:
      try:
        self._complete(self._collect(values))
      except Exception as error:
        self.error = error
    self._handler.close()

  def _start(self, state):
    """Returns the writes of the arrays, which go on."""
    self._place.mkdir(parents=True, exist_ok=True)
    started = asyncio.run(
      self._handler.async_save(
        self._place / 'state', args=ocp.args.PyTreeSave(state)
      )
    )
    return started or []

  def _report(self, values):
    error = files.in_short(self.error) if self.error else ''
    with storage.whole_file(self._report_path(jax.process_index())) as file:
      file.write_text(json.dumps({'error': error, 'values': values}))

  def _report_path(self, number):
    return self._place / 'reports' / f'{self._attempt}-{number}.json'

  def _collect(self, values):
    """Returns the checksums of all processes' parts together."""
    for number in range(1, jax.process_count()):
      path = self._report_path(number)
      seconds = 0.02
      while not path.exists():
        if self.give_up.wait(seconds):
          raise OSError(f'process {number} has not written its part')
        seconds = min(2 * seconds, 2)
      report = json.loads(path.read_text())
      if report['error']:
        raise OSError(f'process {number}: {report["error"]}')
      values = checksums.add(values, report['values'])
    return values

  def _complete(self, values):
    if jax.process_count() > 1:
      (self._place / 'reports').rmtree()
    self._handler.finalize(self._place / 'state')
    sums = {'shapes': self._shapes, 'values': values}
    for item, value in self._items.items():
      sums[item] = files.crc(_write(self._place, item, value))
    sums['checksums'] = files.crc(json.dumps(sums, sort_keys=True))
    _write(self._place, 'checksums', sums)
    if self._place == self._final:
      (self._final / files.COMMITTED).write_text('complete\n')
    else:
      self._place.rename(self._final)
    try:
      # A write that failed may have gone on for a moment after `clean`.
      files.remove_leftovers(self._final.parent)
      for old in files.saved(self._final.parent)[self._keep :]:
        files.remove(old)
    except Exception as error:  # this one is whole, whatever comes of others
      self.warning = (
        f'an old checkpoint could not be removed ({files.in_short(error)}).'
      )


def _write(folder, item, value):
  """Writes JSON that survives a loss of power; returns its text."""
  path, text = folder / item / 'metadata', json.dumps(value)
  path.parent.mkdir(exist_ok=True)
  with path.open('w') as file:
    file.write(text)
    if not storage.is_remote(path):
      file.flush()
      os.fsync(file.fileno())
  return text


def _wait_for(writes):
  for write in writes:
    write.result()
