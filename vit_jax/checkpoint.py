"""Checkpoints: saved while training goes on, whole or not at all.

A run's folder holds `config.json`, `checkpoints/STEP/{state,config,inputs}`,
and `classes.txt` if the run trains on images of one's own.
Orbax writes each into a temporary folder that is renamed when it is complete,
so that a process killed at any moment leaves the last complete one.
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
  r'|model\.(unroll|remat)|train\.max_bad_share'
)
_CLASSES = 'classes.txt'


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
      workdir: the folder.
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
    self.workdir = epath.Path(workdir).expanduser().resolve()
    self._config = json.loads(json.dumps(config))  # tuples are lists there
    self._inputs = inputs or {}
    self._shapes, self._every = shapes, every
    self._directory = self.workdir / 'checkpoints'
    self._signal, self._old_handlers = None, {}
    self._open(keep)
    self._manager = ocp.CheckpointManager(
      self._directory,
      options=ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        enable_async_checkpointing=True,
        cleanup_tmp_directories=True,
      ),
    )

  def _open(self, keep):
    """Checks the folder, and only then makes it and writes the config."""
    path = self.workdir / 'config.json'
    try:
      # Until there is a checkpoint, nothing is lost by another config.
      steps = _saved_steps(self._directory)
      if steps:
        last = self._directory / str(max(steps))
        copy = last / 'config' / 'metadata'
        old = _read_config(path if path.exists() else copy)
        _check_same(old, self._config, self.workdir)
        inputs = last / 'inputs' / 'metadata'
        old = _read_config(inputs) if inputs.exists() else {}
        _check_data(old, self._inputs, self.workdir)
      _check_space(self._directory, self._shapes, keep)
      self._directory.mkdir(parents=True, exist_ok=True)
      if jax.process_index() == 0:
        _write(path, json.dumps(self._config, indent=2))
        if self._inputs.get('labels'):
          _write(self.workdir / _CLASSES, '\n'.join(self._inputs['labels']))
    except OSError as error:
      raise ValueError(
        f'--workdir={self.workdir} cannot be written '
        f'({error.strerror or error}); make it writable, or use another '
        '--workdir.'
      ) from None

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

  def restore_latest(self, layout):
    """Returns the state of the last checkpoint, or None if there is none.

    Args:
      layout: tree of shardings, which need not be those of the saving run.
    """
    step = self._manager.latest_step()
    if step is None:
      return None
    target = jax.tree.map(
      lambda leaf, sharding: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=sharding
      ),
      self._shapes,
      layout,
    )
    args = ocp.args.Composite(state=ocp.args.StandardRestore(target))
    try:
      return self._manager.restore(step, args=args).state
    except Exception as error:
      raise ValueError(
        f'{self._directory / str(step)} cannot be restored '
        f'({type(error).__name__}: {error}); move it away to continue from the '
        'checkpoint before it.'
      ) from error

  def due(self, step, total_steps):
    """Returns whether to save after update `step`; always after the last."""
    return step == total_steps or step % self._every == 0

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
      inputs=ocp.args.JsonSave(self._inputs),
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
      f'{self._directory}; the same command continues from there.'
    )

  def _explain_failure(self, write):
    try:
      write()
    except Exception as error:
      step = self._manager.latest_step()
      last = 'none was saved before' if step is None else f'step {step} is safe'
      raise OSError(
        f'A checkpoint could not be written to {self._directory} ({last}): '
        f'{error}. If the disk is full or broken, mend that; the same command '
        'then continues from the last checkpoint.'
      ) from error

  def _on_signal(self, number, frame):
    del frame
    self._signal = signal.Signals(number).name
    text = (
      f'\n{self._signal}: saving after the step that runs or compiles now.\n'
    )
    os.write(2, text.encode())
    self._restore_handlers()

  def _restore_handlers(self):
    for number, handler in self._old_handlers.items():
      signal.signal(number, handler)
    self._old_handlers = {}


def _saved_steps(directory):
  """Returns the steps of the complete checkpoints."""
  if not directory.exists():
    return []
  return [int(p.name) for p in directory.iterdir() if p.name.isdecimal()]


def _read_config(path):
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    raise ValueError(
      f'{path} is damaged ({error}); restore it, or use another --workdir. '
      'Each folder of checkpoints/ holds a copy: STEP/config/metadata.'
    ) from None


def _write(path, text):
  partial = path.with_name(f'{path.name}.partial')
  partial.write_text(text + '\n')
  partial.replace(path)


def _check_data(old, new, workdir):
  """Raises ValueError if the training set is not what the run began with."""
  remedy = 'Take the change of the data back, or use another --workdir.'
  labels, new_labels = (list(x.get('labels') or ()) for x in (old, new))
  if labels != new_labels:
    changed = sorted(set(labels) ^ set(new_labels)) or new_labels
    raise ValueError(
      f'--workdir={workdir} holds a run whose classes are those of its '
      f'{_CLASSES}; the training set now has others '
      f'({", ".join(changed[:5])}). {remedy}'
    )
  size, new_size = (x.get('num_examples') for x in (old, new))
  if size != new_size and size is not None:
    raise ValueError(
      f'--workdir={workdir} holds a run on {size:,} images; the training set '
      f'now has {new_size:,}, which would come in another order. {remedy}'
    )


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


def _check_space(directory, shapes, keep):
  """Raises ValueError if the disk has no room for the checkpoints to come."""
  if '://' in str(directory):
    return
  existing = directory
  while not existing.exists():
    existing = existing.parent
  size = sum(
    math.prod(leaf.shape) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(shapes)
  )
  # The next one is complete before the oldest is removed.
  missing = keep + 1 - len(_saved_steps(directory))
  total, _, free = shutil.disk_usage(existing)
  if free < size * missing and total:  # /proc and its like have no size
    raise ValueError(
      f'--workdir: {existing} has {free / 1e9:.2f} GB free, but {missing} more '
      f'checkpoints of {size / 1e9:.2f} GB each are to come; free some space, '
      'lower config.checkpoint.keep, or use another --workdir.'
    )
