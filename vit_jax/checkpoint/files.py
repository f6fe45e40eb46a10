"""One checkpoint in files: written by all processes, whole or not there.

  checkpoints/STEP/state/             the arrays, as Orbax has them
  checkpoints/STEP/config/metadata    JSON, and so are the next two
  checkpoints/STEP/inputs/metadata
  checkpoints/STEP/checksums/metadata of the arrays' values and of both others
  checkpoints/STEP.partial/           one that is being written
  checkpoints/damaged-STEP/           one that could not be read

A local folder is renamed when it is complete. Object stores cannot rename: one
is complete there when it holds commit_success.txt, as Orbax has it.
"""

import errno
import json
import os
import re
import zlib

import jax
import orbax.checkpoint as ocp

from vit_jax import storage
from vit_jax.checkpoint import checksums

COMMITTED = 'commit_success.txt'
_LEFTOVER = r'\d+\.(partial|orbax-checkpoint-tmp.*)'
# What keeps a whole file from being read, so that another try may succeed.
_UNREADABLE = (PermissionError, MemoryError, TimeoutError, ConnectionError)
_UNREADABLE_ERRNOS = (
  errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EMFILE,
  errno.ENFILE,
)  # fmt: skip
# TensorStore's and JAX's errors have the kind in the text alone.
_UNREADABLE_TEXT = '|'.join(
  (
    r'\b(UNAVAILABLE|DEADLINE_EXCEEDED|PERMISSION_DENIED|UNAUTHENTICATED'
    r'|RESOURCE_EXHAUSTED|INTERNAL|ABORTED|CANCELLED):',
    r'HTTP.*(401|403|429|50\d)',
    *(re.escape(os.strerror(number)) for number in _UNREADABLE_ERRNOS),
  )
)


class DamagedError(Exception):
  """A file of a checkpoint is not what was written."""


def saved(directory):
  """Returns the folders of the complete checkpoints, the last one first."""
  if not directory.exists():
    return []
  found = [p for p in directory.iterdir() if p.name.isdecimal()]
  found.sort(key=lambda p: int(p.name), reverse=True)
  return [p for p in found if is_complete(p)]


def is_complete(folder):
  """Returns whether a checkpoint is there and complete, by its final path."""
  if storage.is_remote(folder):
    return (folder / COMMITTED).exists()
  return folder.exists()


def remove_leftovers(directory):
  """Removes what a stopped process had begun to write or to remove."""
  if not directory.exists():  # object stores have no empty folders
    return
  complete = {p.name for p in saved(directory)}
  for path in directory.iterdir():
    is_begun = path.name.isdecimal() and path.name not in complete
    if is_begun or re.fullmatch(_LEFTOVER, path.name):
      path.rmtree()


def remove(folder):
  """Removes a checkpoint; one that is half removed is not taken for whole."""
  if storage.is_remote(folder):
    (folder / COMMITTED).unlink(missing_ok=True)
  else:
    folder = folder.rename(folder.with_name(f'{folder.name}.partial'))
  folder.rmtree()


def set_aside(folder):
  """Renames a checkpoint that cannot be read; returns its new path."""
  name, number = f'damaged-{folder.name}', 1
  while (new := folder.with_name(name)).exists():
    number += 1
    name = f'damaged-{folder.name}-{number}'
  folder.rename(new)
  return new


def read_item(folder, item):
  """Returns 'config' or 'inputs' of a checkpoint, as JSON has it.

  Raises:
    DamagedError: if it is not what was written.
  """
  sums = _read_checksums(folder)
  if item == 'inputs' and sums is None and not (folder / item).exists():
    return {}  # the first checkpoints had none
  text = _read(folder, item)
  if sums is not None and sums.get(item) != crc(text):
    raise DamagedError(f'{item}/metadata is not what was written')
  return _parse(text, item)


def read_state(folder, target):
  """Returns this process's arrays of a checkpoint; no other is waited for.

  Args:
    folder: of the checkpoint.
    target: tree of `jax.ShapeDtypeStruct` with shardings.

  Returns:
    The state and the checksums of its values by name, or None where an older
    checkpoint has none.

  Raises:
    DamagedError: if it cannot be what was written.
    ValueError: if it is the state of another model.
  """
  sums = _read_checksums(folder)
  for item in ('config', 'inputs'):
    read_item(folder, item)
  if sums is not None:
    _check_shapes(sums['shapes'], checksums.describe(target), folder)
  handler = ocp.StandardCheckpointHandler()
  try:
    state = handler.restore(
      folder / 'state', args=ocp.args.StandardRestore(target)
    )
    jax.block_until_ready(state)
  except Exception as error:  # tensorstore has many kinds
    if is_unreadable(error):
      raise
    raise DamagedError(in_short(error)) from error
  finally:
    handler.close()
  return state, None if sums is None else sums['values']


def is_unreadable(error):
  """Returns whether an error says nothing of the files themselves."""
  return (
    isinstance(error, _UNREADABLE)
    or getattr(error, 'errno', None) in _UNREADABLE_ERRNOS
    or bool(re.search(_UNREADABLE_TEXT, str(error)))
  )


def in_short(error):
  """Returns the kind of an error and what it says."""
  text = ' '.join(str(error).split())
  if len(text) > 300:  # the cause is often last
    text = f'{text[:120]} ... {text[-160:]}'
  return f'{type(error).__name__}: {text}'


def _read_checksums(folder):
  if (folder / '_CHECKPOINT_METADATA').exists():
    return None  # of an earlier version
  sums = _parse(_read(folder, 'checksums'), 'checksums')
  rest = {k: v for k, v in sums.items() if k != 'checksums'}
  if sums.get('checksums') != crc(json.dumps(rest, sort_keys=True)):
    raise DamagedError('checksums/metadata is not what was written')
  return rest


def _read(folder, item):
  try:
    return (folder / item / 'metadata').read_text()
  except (FileNotFoundError, NotADirectoryError):
    raise DamagedError(f'{item}/metadata is missing') from None
  except UnicodeDecodeError:
    raise DamagedError(f'{item}/metadata is not what was written') from None


def _parse(text, item):
  try:
    value = json.loads(text)
  except ValueError as error:
    raise DamagedError(f'{item}/metadata: {error}') from None
  if not isinstance(value, dict):
    raise DamagedError(f'{item}/metadata is not what was written')
  return value


def crc(text):
  """Returns the CRC-32 of a text."""
  return zlib.crc32(text.encode())


def _check_shapes(old, new, folder):
  different = [
    f'\n  {name}: {old.get(name, "absent")} there, '
    f'{new.get(name, "absent")} now'
    for name in sorted(old | new)
    if old.get(name) != new.get(name)
  ]
  if different:
    more = f'\n  and {len(different) - 5} more' if len(different) > 5 else ''
    raise ValueError(
      f'{folder} holds the state of another model:{"".join(different[:5])}'
      f'{more}\nUse another --workdir.'
    )
