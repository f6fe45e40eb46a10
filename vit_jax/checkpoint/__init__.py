"""Checkpoints: saved while training goes on, whole or not at all.

What can go wrong is expected to: a process is killed at any moment, a disk
fills up, a file is damaged. `docs/architecture.md`, "Checkpoints", says what
happens then. All processes of a run call the same methods after the same steps,
and decide alike.
"""

import json
import time

import jax

from vit_jax import storage
from vit_jax.checkpoint import (
  files,
  preemption,
  restoring,
  run_folder,
  snapshot,
  writing,
)

# The last save is worth waiting for: seconds before each of its tries again.
RETRY_SECONDS = (1, 5, 30)
# How long the loop waits for the save before; then it goes on without this one.
PATIENCE_SECONDS = 60


class Preempted(Exception):  # noqa: N818  (not an error)
  """The run was asked to stop, and has saved its state."""


class Manager:
  """Saves and restores a run's state; a context that waits for what it saves.

  Within the context, SIGTERM and Ctrl-C ask for a checkpoint instead of ending
  the process; a second one ends it.

  Attributes:
    workdir: the run's folder, an absolute `epath.Path`.
  """

  def __init__(self, workdir, config, shapes, inputs=None, every=1000, keep=2):
    """Opens a run's folder, or makes it.

    Args:
      workdir: the folder, local or gs://.
      config: dict, saved beside the arrays so that a checkpoint describes
        itself.
      shapes: tree of `jax.ShapeDtypeStruct` of the state.
      inputs: dict, saved likewise: 'image_shape', (height, width, channels),
        and maybe 'labels', the names of the classes of one's own images, and
        'num_examples', of the training set.
      every: number of steps between two checkpoints.
      keep: how many of the last ones are kept.

    Raises:
      ValueError: on numbers below 1; if the folder holds the run of another
        config (with the fields that differ), cannot be written, or has no room.
        Nothing in it is changed then.
    """
    for name, value in dict(every=every, keep=keep).items():
      if value < 1:
        raise ValueError(f'config.checkpoint.{name}={value} is not at least 1.')
    self.workdir = storage.absolute(workdir)
    config = json.loads(json.dumps(config))  # tuples are lists there
    self._items = {'config': config, 'inputs': inputs or {}}
    self._shapes, self._every, self._keep = shapes, every, keep
    self._directory = self.workdir / 'checkpoints'
    self._notice, self._news = preemption.Notice(), []
    self._write = None  # the save that is on its way
    self._unsaved = None  # (step, state) of the last one that was asked for
    self._safe_step = None  # of the last complete one
    # After so many failures, the next try is at this step.
    self._failures, self._retry_step, self._error = 0, None, None
    # With several processes, they ask one another so often.
    self._interval = max(1, every // 10)
    self._snapshot = snapshot.Snapshot()
    run_folder.open_folder(
      self.workdir, config, self._items['inputs'], shapes, keep
    )
    if jax.process_index() == 0:
      files.remove_leftovers(self._directory)

  def __enter__(self):
    self._notice.__enter__()
    return self

  def __exit__(self, kind, error, traceback):
    try:
      if error is None:
        self.wait()
      elif self._write is not None:
        # Other processes may not come here: nothing is agreed on any more.
        self._write.join(PATIENCE_SECONDS)
        self._write.give_up.set()
    finally:
      self._notice.__exit__(kind, error, traceback)

  def restore_latest(self, layout):
    """Returns the state of the last whole checkpoint, or None if there is none.

    Damaged ones after it are renamed to checkpoints/damaged-STEP; see `news`.

    Args:
      layout: tree of shardings, which need not be those of the saving run.

    Raises:
      ValueError: if there are checkpoints but none is whole, if one cannot be
        read for now, or is another model's. Nothing is renamed then.
    """
    target = jax.tree.map(
      lambda leaf, sharding: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=sharding
      ),
      self._shapes,
      layout,
    )
    self._snapshot.prepare(target)
    state, self._safe_step, news = restoring.latest(self._directory, target)
    self._news += news
    return state

  def due(self, step, total_steps):
    """Returns whether to save after update `step`; always after the last.

    Besides every so many steps, that is some time after a save has failed.
    """
    if self._write is not None and step % self._interval == 0:
      self._poll(step)
    is_retry = self._retry_step is not None and step >= self._retry_step
    return step == total_steps or step % self._every == 0 or is_retry

  def stop_requested(self, step):
    """Returns whether the run was asked to stop; call it at every step."""
    return self._notice.reached(step)

  def news(self):
    """Returns lines on what went wrong since the last call."""
    news, self._news = self._news, []
    return news

  def save(self, step, state):
    """Starts to save a state; the arrays may be donated as soon as it returns.

    A failure is told by `news`, and another try is due some steps later; `wait`
    raises if nothing has helped. What was saved earlier is untouched.
    """
    if step == self._safe_step:
      return
    self._unsaved = step, state
    if not self._settle(step, PATIENCE_SECONDS):
      self._retry_step = step + self._interval
      self._news.append(
        f'The checkpoint of step {self._write.step:,} is still being written '
        f'after {PATIENCE_SECONDS} more seconds; that of step {step:,} is put '
        f'off to step {self._retry_step:,}.'
      )
      return
    self._start(step, state)

  def wait(self):
    """Returns when the last state that was given to `save` is on disk.

    Raises:
      OSError: if it could not be written, after some tries.
    """
    self._settle()
    for seconds in RETRY_SECONDS:
      if self._unsaved is None or _is_gone(self._unsaved[1]):
        break
      if self._failures:
        time.sleep(seconds)
      preemption.exchange(0)  # what the last try has left is removed by now
      self._start(*self._unsaved)
      self._settle()
    if self._unsaved is not None:
      raise OSError(
        f'A checkpoint could not be written to {self._directory} '
        f'({self._safe()}): {self._error}. If the disk is full or broken, mend '
        'that; the same command then continues from the last checkpoint.'
      )

  def stop(self, step):
    """Raises Preempted, once the state of `step` is on disk."""
    self.wait()
    raise Preempted(
      f'Stopped by {self._notice.name} after step {step:,}. The state is saved '
      f'in {self._directory}; the same command continues from there.'
    )

  def _start(self, step, state):
    copy, is_snapshot = self._snapshot.take(state)
    self._retry_step = None
    self._write = writing.Write(
      self._directory, step, copy, self._items, self._keep, is_snapshot
    )

  def _settle(self, step=None, timeout=None):
    """Returns whether no save is on its way, after waiting for it."""
    if self._write is None:
      return True
    # First all parts, then process 0's work on all of them: whoever waits for
    # the second must know that nothing of the first is missing.
    self._write.written.wait(timeout)
    statuses = preemption.exchange(self._write.own_status)
    if writing.FAILED in statuses:
      self._write.give_up.set()
    if writing.BUSY in statuses:
      return False
    self._write.join(timeout)
    statuses = preemption.exchange(self._write.status)
    if writing.BUSY in statuses:
      return False
    self._conclude(statuses, step)
    return True

  def _poll(self, step):
    """Learns how the save that is on its way fares, without waiting for it."""
    statuses = preemption.exchange(self._write.status)
    if writing.FAILED in statuses:
      self._write.give_up.set()
    if writing.BUSY not in statuses:
      delay = self._interval * 2 ** min(self._failures, 30)
      self._conclude(statuses, step + min(delay, self._every))

  def _conclude(self, statuses, retry_step):
    """Takes note of how a save ended."""
    write, self._write = self._write, None
    if statuses[0] == writing.DONE:
      self._failures, self._safe_step = 0, write.step
      if self._unsaved is not None and self._unsaved[0] == write.step:
        self._unsaved = None
      if write.warning:
        self._news.append(f'WARNING: {write.warning}')
      return
    self._failures += 1
    number = statuses.index(writing.FAILED)
    self._error = f'process {number} could not write its part'
    if write.error is not None:
      self._error = files.in_short(write.error)
    if jax.process_index() == 0:
      write.clean()
    self._retry_step = retry_step
    if retry_step is not None:
      self._news.append(
        f'WARNING: the checkpoint of step {write.step:,} could not be written '
        f'({self._error}); {self._safe()}. Training goes on; the next try is '
        f'after step {retry_step:,}.'
      )

  def _safe(self):
    if self._safe_step is None:
      return 'none was saved before'
    return f'step {self._safe_step:,} is safe'


def _is_gone(state):
  return any(leaf.is_deleted() for leaf in jax.tree.leaves(state))
