"""A run's folder: whose run it is, and whether there is room for it.

It holds `config.json`, `checkpoints/`, `metrics.jsonl`, `tensorboard/`, and
`classes.txt` if the run trains on images of one's own.
"""

import json
import math
import re
import shutil

import jax

from vit_jax import names, storage
from vit_jax.checkpoint import files

# Fields that a run may change when it goes on: they say where and how it runs,
# not what it computes (but for the order of sums, and for other random numbers
# in each part of a batch).
_MAY_CHANGE = (
  r'log_every|(checkpoint|evals|mesh|profile|sharding|watchdog)(\..*)?'
  r'|model\.(unroll|remat)|step\.accum_steps|train\.max_bad_share'
)
_CLASSES = 'classes.txt'


def open_folder(workdir, config, inputs, shapes, keep):
  """Checks a run's folder, and only then makes it and writes the config.

  Args:
    workdir: absolute `epath.Path`.
    config: dict as JSON has it.
    inputs: dict, see `checkpoint.Manager`.
    shapes: tree of `jax.ShapeDtypeStruct` of the state.
    keep: how many checkpoints are kept.

  Raises:
    ValueError: if the folder holds the run of another config, cannot be
      written, or has no room. No checkpoint is changed then.
  """
  config_path = workdir / 'config.json'
  try:
    # Until there is a checkpoint, nothing is lost by another config.
    folders = files.saved(workdir / 'checkpoints')
    if folders:
      old = _read_config(config_path, folders)
      if old is not None:
        _check_same(old, config, workdir)
      old = _first_readable(folders, 'inputs')
      if old is not None:
        _check_data(old, inputs, workdir)
    if jax.process_index() == 0:
      # Of a run that was killed while it saved: it has no use, but takes room.
      files.remove_leftovers(workdir / 'checkpoints')
      _check_space(workdir, shapes, keep + 1 - len(folders))
      (workdir / 'checkpoints').mkdir(parents=True, exist_ok=True)
      with storage.whole_file(config_path) as file:
        file.write_text(json.dumps(config, indent=2) + '\n')
      if inputs.get('labels'):
        with storage.whole_file(workdir / _CLASSES) as file:
          file.write_text('\n'.join(inputs['labels']) + '\n')
  except ValueError:
    raise
  except Exception as error:  # an object store's client has kinds of its own
    if not (isinstance(error, OSError) or storage.is_remote(workdir)):
      raise
    raise _cannot_be_written(workdir, error) from None


def _cannot_be_written(workdir, error):
  if storage.is_remote(workdir):
    return ValueError(
      f'--workdir={workdir}: {storage.explain(error, workdir)}.'
    )
  return ValueError(
    f'--workdir={workdir} cannot be written ({error.strerror or error}); make '
    'it writable, or use another --workdir.'
  )


def _read_config(config_path, folders):
  """Returns the config of the run so far; None if no copy can be read."""
  if not config_path.exists():
    return _first_readable(folders, 'config')
  try:
    return json.loads(config_path.read_text())
  except ValueError as error:
    raise ValueError(
      f'{config_path} is damaged ({error}); restore it, or use another '
      '--workdir. Each folder of checkpoints/ holds a copy: '
      'STEP/config/metadata.'
    ) from None


def _first_readable(folders, item):
  """Returns an item of the last checkpoint where it is whole, or None."""
  for folder in folders:
    try:
      return files.read_item(folder, item)
    except files.DamagedError:
      continue  # restoring says so
  return None


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
  old, new = names.flatten(old), names.flatten(new)
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


def _check_space(workdir, shapes, missing):
  """Raises ValueError if the disk has no room for the checkpoints to come.

  Args:
    workdir: absolute path.
    shapes: of the state.
    missing: number of checkpoints to come. One more than are kept: the next one
      is complete before the oldest is removed.
  """
  if storage.is_remote(workdir):
    return
  existing = workdir
  while not existing.exists():
    existing = existing.parent
  size = sum(
    math.prod(leaf.shape) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(shapes)
  )
  total, _, free = shutil.disk_usage(existing)
  if free < size * missing and total:  # /proc and its like have no size
    raise ValueError(
      f'--workdir: {existing} has {free / 1e9:.2f} GB free, but {missing} more '
      f'checkpoints of {size / 1e9:.2f} GB each are to come; free some space, '
      'lower config.checkpoint.keep, or use another --workdir.'
    )
