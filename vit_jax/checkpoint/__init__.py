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
_BRIEF_SECONDS = 5


class Preempted(Exception):  # noqa: N818  (not an error)
  """The run was asked to stop, and has saved its state."""


class Manager:
  """Saves and restores a run's state; a context that waits for what it saves.

  Within the context, SIGTERM and Ctrl-C ask for a checkpoint instead of ending
  the process. A second Ctrl-C ends it at once; a second SIGTERM does nothing.

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
        No checkpoint in it is changed then.
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
    self._is_put_off = False  # whether a later one waits for `_write`'s end
    self._attempts = 0
    # After so many failures, the next try is at this step.
    self._failures, self._retry_step, self._error = 0, None, None
    self._interval = max(1, every // 10)
    self._snapshot, self._target = snapshot.Snapshot(), None
    run_folder.open_folder(
      self.workdir, config, self._items['inputs'], shapes, keep
    )

  def __enter__(self):
    self._notice.__enter__()
    return self

  def __exit__(self, kind, error, traceback):
    try:
      if error is None:
        self.wait()
      elif self._write is not None:
        # Other processes may not come here: nothing is agreed on any more.
        # A notebook may go on after Ctrl-C, in the same folder.
        is_brief = isinstance(error, KeyboardInterrupt)
        self._write.finish(_BRIEF_SECONDS if is_brief else PATIENCE_SECONDS)
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
      OSError: if a store does not say which there are.
    """
    self._target = jax.tree.map(
      lambda leaf, sharding: leaf.update(sharding=sharding),
      self._shapes,
      layout,
    )
    state, self._safe_step, news = restoring.latest(
      self._directory, self._target
    )
    self._news += news
    return state

  def due(self, step, total_steps):
    """Returns whether to save after update `step`; always after the last.

    Besides every so many steps, that is some time after a save has failed.
    """
    if self._target is not None:  # not earlier: some runs only evaluate
      self._snapshot.prepare(self._target)
    if self._write is not None and step % self._interval == 0:
      self._poll(step)
    is_retry = self._retry_step is not None and step >= self._retry_step
    return step == total_steps or step % self._every == 0 or is_retry

  def stop_requested(self):
    """Returns whether the run was asked to stop; the same on all processes.

    Call it after every step, and between the parts of what takes long. All
    processes must call it equally often.
    """
    return self._notice.reached()

  def news(self):
    """Returns lines on what went wrong since the last call."""
    news, self._news = self._news, []
    return news

  def save(self, step, state):
    """Starts to save a state; the arrays may be donated as soon as it returns.

    A failure is told by `news`, and another try is due some steps later; `wait`
    raises if nothing has helped. What was saved earlier is untouched. A step
    that is saved, or on its way, is not written again.
    """
    if step == self._safe_step:
      return
    self._unsaved = step, state
    if self._write is not None and self._write.step == step:
      return
    # The loop waits once for a store that does not answer, not at every try.
    patience = 0 if self._is_put_off else PATIENCE_SECONDS
    if self._settle(step, patience):
      self._start(step, state)
      return
    self._is_put_off, self._retry_step = True, None
    seconds = time.monotonic() - self._write.started
    self._news.append(
      f'The checkpoint of step {self._write.step:,} is still being written '
      f'after {seconds:.0f} s; that of step {step:,} is put off until then.'
    )

  def wait(self, say=None):
    """Returns when the last state that was given to `save` is on disk.

    Args:
      say: function of any number of lines, called with what goes wrong
        meanwhile, and with all news.

    Raises:
      OSError: if it could not be written, after some tries.
    """
    self._settle()
    for seconds in RETRY_SECONDS:
      if self._unsaved is None or snapshot.is_gone(self._unsaved[1]):
        break
      if self._failures:
        self._news.append(
          f'WARNING: the checkpoint of step {self._unsaved[0]:,} could not be '
          f'written ({self._error}); {self._safe()}. The next try is in '
          f'{seconds} s.'
        )
        if say is not None:
          say(*self.news())
        time.sleep(seconds)
      preemption.exchange(0)  # what the last try has left is removed by now
      self._start(*self._unsaved)
      self._settle()
    if say is not None:
      say(*self.news())
    if self._unsaved is not None:
      raise OSError(
        f'A checkpoint could not be written to {self._directory} '
        f'({self._safe()}): {self._error}. If the disk is full or broken, mend '
        'that; the same command then continues from the last checkpoint.'
      )

  def stop(self, step, say=None):
    """Raises Preempted, once the state of `step` is on disk; see `wait`."""
    self.wait(say)
    if self._safe_step is None:
      raise Preempted(
        f'Stopped by {self._notice.name}; there was nothing to save.'
      )
    raise Preempted(
      f'Stopped by {self._notice.name} after step {step:,}. The state is saved '
      f'in {self._directory}; the same command continues from there.'
    )

  def _start(self, step, state):
    copy, is_snapshot = self._snapshot.take(state)
    self._retry_step = None
    self._attempts += 1
    how = self._items, self._keep, is_snapshot, self._attempts
    self._write = writing.Write(self._directory, step, copy, *how)

  def _settle(self, step=None, timeout=None):
    """Returns whether no save is on its way, after waiting for it."""
    if self._write is None:
      return True
    until = time.monotonic() + (timeout or 0)

    def left():
      return None if timeout is None else max(0, until - time.monotonic())

    # First all parts, then process 0's work on all of them: whoever waits for
    # the second must know that nothing of the first is missing.
    self._write.written.wait(left())
    statuses = preemption.exchange(self._write.own_status)
    if writing.FAILED in statuses:
      self._write.give_up.set()
    if writing.BUSY in statuses:
      return False
    self._write.join(left())
    statuses = preemption.exchange(self._write.status)
    if writing.BUSY in statuses:
      return False
    self._conclude(statuses, step)
    return True

  def _poll(self, step):
    """Learns how the save on its way fares, together, without waiting."""
    statuses = preemption.exchange(self._write.status)
    if writing.FAILED in statuses:
      self._write.give_up.set()
    if writing.BUSY not in statuses:
      is_put_off = self._is_put_off
      delay = self._interval * 2 ** min(self._failures, 30)
      self._conclude(statuses, step + min(delay, self._every))
      if is_put_off and not self._failures:
        self._retry_step = step

  def _conclude(self, statuses, retry_step):
    """Takes note of how a save ended."""
    write, self._write, self._is_put_off = self._write, None, False
    if statuses[0] == writing.DONE:
      self._failures, self._safe_step = 0, write.step
      if self._unsaved is not None and self._unsaved[0] == write.step:
        self._unsaved = None
      if write.warning:
        self._news.append(f'WARNING: {write.warning}')
      return
    self._failures += 1
    reason = '' if write.error is None else files.in_short(write.error)
    reasons = preemption.exchange_text(reason)
    # Process 0's may only tell that another's part is missing.
    number = next((n for n, text in enumerate(reasons) if n and text), 0)
    self._error = reasons[number]
    if len(reasons) > 1:
      self._error = f'process {number}: {self._error}'
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
