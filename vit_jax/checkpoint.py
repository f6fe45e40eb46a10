"""Checkpoints: saved while training goes on, whole or not at all.

A run's folder holds `config.json` and `checkpoints/STEP/{state,config}`. Orbax
writes each into a temporary folder that is renamed when it is complete, so that
a process killed at any moment leaves the last complete one.
"""

import json
import math
import os
import re
import shutil
import signal
import threading

import jax
import orbax.checkpoint as ocp
from etils import epath

# Fields that a run may change when it goes on: they say where and how it runs,
# not what it computes.
_MAY_CHANGE = (
  r'log_every|(checkpoint|evals|mesh|sharding)(\..*)?'
  r'|model\.(unroll|remat)|step\.accum_steps'
)


class Preempted(Exception):  # noqa: N818  (not an error)
  """The run was asked to stop, and has saved its state."""


def open_run(workdir, config):
  """Makes a run's folder, or checks that it is this run's.

  Args:
    workdir: the folder.
    config: dict, as JSON holds it.

  Returns:
    The folder's absolute path, an `epath.Path`.

  Raises:
    ValueError: if the folder cannot be written, or holds the run of another
      config (with the fields that differ). Nothing in it is changed then.
  """
  config = json.loads(json.dumps(config))  # tuples are lists there
  workdir = epath.Path(workdir).expanduser().resolve()
  path = workdir / 'config.json'
  try:
    if path.exists():
      _check_same(json.loads(path.read_text()), config, workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
      partial = workdir / 'config.json.partial'
      partial.write_text(json.dumps(config, indent=2) + '\n')
      partial.replace(path)
  except OSError as error:
    raise ValueError(
      f'--workdir={workdir} cannot be written ({error.strerror or error}); '
      'make it writable, or use another --workdir.'
    ) from None
  return workdir


def _check_same(old, new, workdir):
  old, new = _flatten(old), _flatten(new)
  different = [
    f'\n  config.{name}: {old.get(name, "absent")!r} there, '
    f'{new.get(name, "absent")!r} now'
    for name in sorted(old | new)
    if old.get(name, ...) != new.get(name, ...)
    and not re.fullmatch(_MAY_CHANGE, name)
  ]
  if different:
    raise ValueError(
      f'--workdir={workdir} holds the run of another config:'
      f'{"".join(different)}\n'
      'Use another --workdir for this one, or take these changes back.'
    )


def _flatten(tree, prefix=''):
  if not isinstance(tree, dict) or not tree:
    return {prefix[:-1]: tree}
  flat = {}
  for name, value in tree.items():
    flat |= _flatten(value, f'{prefix}{name}.')
  return flat


class Manager:
  """Saves and restores a run's state; a context that waits for what it saves.

  Within the context, SIGTERM and Ctrl-C ask for a checkpoint instead of ending
  the process; a second one ends it.
  """

  def __init__(self, workdir, config, every=1000, keep=2):
    """Opens the checkpoints of a run.

    Args:
      workdir: the run's folder, from `open_run`.
      config: dict, saved beside the arrays so that a checkpoint describes
        itself.
      every: number of steps between two checkpoints.
      keep: how many of the last ones are kept.

    Raises:
      ValueError: on numbers below 1.
    """
    for name, value in dict(every=every, keep=keep).items():
      if value < 1:
        raise ValueError(f'config.checkpoint.{name}={value} is not at least 1.')
    self._every, self._keep, self._config = every, keep, config
    self.directory = epath.Path(workdir) / 'checkpoints'
    self._manager = ocp.CheckpointManager(
      self.directory,
      options=ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        enable_async_checkpointing=True,
        cleanup_tmp_directories=True,
      ),
    )
    self._signal = None
    self._old_handlers = {}

  def __enter__(self):
    # Only the main thread may handle signals; a notebook's may be another.
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGTERM, signal.SIGINT):
        self._old_handlers[number] = signal.signal(number, self._on_signal)
    return self

  def __exit__(self, *exception):
    try:
      self.wait()
    finally:
      self._restore_handlers()
      self._manager.close()

  def restore_latest(self, shapes, layout):
    """Returns the state of the last checkpoint, or None if there is none.

    Args:
      shapes: tree of `jax.ShapeDtypeStruct` of the state.
      layout: tree of shardings, which need not be those of the saving run.
    """
    step = self._manager.latest_step()
    if step is None:
      return None
    target = jax.tree.map(
      lambda leaf, sharding: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=sharding
      ),
      shapes,
      layout,
    )
    restored = self._manager.restore(
      step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target))
    )
    return restored.state

  def check_space(self, shapes):
    """Raises ValueError if the disk has no room for the checkpoints to come.

    Args:
      shapes: tree of `jax.ShapeDtypeStruct` of the state.
    """
    size = sum(
      math.prod(leaf.shape) * leaf.dtype.itemsize
      for leaf in jax.tree.leaves(shapes)
    )
    # The next one is complete before the oldest is removed.
    missing = self._keep + 1 - len(self._manager.all_steps())
    if '://' in str(self.directory) or missing < 1:
      return
    free = shutil.disk_usage(self.directory).free
    if free < size * missing:
      raise ValueError(
        f'--workdir: {self.directory} has {free / 1e9:.2f} GB free, but '
        f'{missing} more checkpoints of {size / 1e9:.2f} GB each are to come; '
        'free some space, lower config.checkpoint.keep, or use another '
        '--workdir.'
      )

  def due(self, step, total_steps):
    """Returns whether to save after update `step`; always after the last."""
    return step == total_steps or step % self._every == 0 or self.preempted

  @property
  def preempted(self):
    """Whether the run was asked to stop."""
    return self._signal is not None

  def save(self, step, state):
    """Starts to save a state; the arrays may be donated as soon as it returns.

    Raises:
      OSError: if this or the checkpoint before could not be written. What was
        saved earlier is untouched.
    """
    args = ocp.args.Composite(
      state=ocp.args.StandardSave(state),
      config=ocp.args.JsonSave(self._config),
    )
    self._explain_failure(lambda: self._manager.save(step, args=args))

  def wait(self):
    """Returns when all that was saved is on disk; raises as `save`."""
    self._explain_failure(self._manager.wait_until_finished)

  def stop(self, step):
    """Raises Preempted, once the state of `step` is on disk."""
    self.wait()
    raise Preempted(
      f'Stopped by {self._signal} after step {step:,}. The state is saved in '
      f'{self.directory}; the same command continues from there.'
    )

  def _explain_failure(self, write):
    try:
      write()
    except Exception as error:
      step = self._manager.latest_step()
      last = 'none was saved before' if step is None else f'step {step} is safe'
      raise OSError(
        f'A checkpoint could not be written to {self.directory} ({last}): '
        f'{error}. Free some space or mend the disk; the same command then '
        'continues from the last checkpoint.'
      ) from error

  def _on_signal(self, number, frame):
    del frame
    self._signal = signal.Signals(number).name
    os.write(
      2, f'\n{self._signal}: finishing this step, then saving.\n'.encode()
    )
    self._restore_handlers()

  def _restore_handlers(self):
    for number, handler in self._old_handlers.items():
      signal.signal(number, handler)
    self._old_handlers = {}
