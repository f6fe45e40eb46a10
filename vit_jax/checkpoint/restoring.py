"""Which checkpoint is whole, for all processes, and its state."""

import time

import jax

from vit_jax import storage
from vit_jax.checkpoint import checksums, files, preemption

# After so long what seems damaged is read once more: it may have been the
# network's file system.
AGAIN_SECONDS = 1


def latest(directory, target):
  """Restores the last checkpoint that all processes find whole.

  Damaged ones after it are renamed. No process waits for another while it
  reads, so that what only one of them meets holds nobody up; then they agree.

  Args:
    directory: that of all checkpoints.
    target: tree of `jax.ShapeDtypeStruct` with shardings.

  Returns:
    (state, its step, lines that tell of damage); (None, None, []) if there is
    no checkpoint.

  Raises:
    ValueError: if there are checkpoints but none is whole, if one cannot be
      read for now, or is another model's. Nothing is renamed then.
    jax.errors.JaxRuntimeError: if the state does not fit into memory.
    OSError: if a store does not say which there are.
  """
  folders, damaged = [], {}
  if jax.process_index() == 0:
    with storage.errors(directory):
      folders = files.saved(directory)
  while True:
    folder = next((f for f in folders if f.name not in damaged), None)
    step = preemption.exchange(-1 if folder is None else int(folder.name))[0]
    if step < 0:
      break
    folder = directory / str(step)
    state, reason, is_checked = _read(folder, target)
    if state is None:
      time.sleep(AGAIN_SECONDS)
      state, reason, is_checked = _read(folder, target)
    if state is not None:
      news = _set_aside(directory, damaged)
      if not is_checked:
        news.append(f'{folder} is of an earlier version, without checksums.')
      return state, step, news
    damaged[folder.name] = reason
  if not damaged:
    return None, None, []
  reasons = ''.join(f'\n  {step}: {why}' for step, why in damaged.items())
  raise ValueError(
    f'No checkpoint in {directory} can be restored:{reasons}\nBring back a '
    'copy of one, or move all away to start from the beginning.'
  )


def _read(folder, target):
  """Returns the same on all processes, or raises the same.

  Returns:
    (state, None, whether its values were compared with checksums), or (None,
    why it is damaged, False).
  """
  state, sums, problem = None, None, ''
  try:
    state, sums = files.read_state(folder, target)
  except files.DamagedError as error:
    problem = f'damaged|{error}'
  except Exception as error:
    if _is_of_memory(error):
      problem = f'memory|{error}'
    elif isinstance(error, ValueError) and not files.is_unreadable(error):
      problem = f'other|{error}'
    else:
      problem = f'unreadable|{files.in_short(error)}'
  problems = preemption.exchange_text(problem)
  if not any(problems) and sums is not None:
    # The sums are over all processes, which have to come here together.
    problems = preemption.exchange_text(_compare(checksums.whole(state), sums))
  if not any(problems):
    return state, None, sums is not None
  number = next(i for i, problem in enumerate(problems) if problem)
  kind, _, reason = problems[number].partition('|')
  if kind == 'other':
    raise ValueError(reason)
  if kind == 'memory':
    raise jax.errors.JaxRuntimeError(reason)
  if len(problems) > 1:
    reason = f'process {number}: {reason}'
  if kind == 'unreadable':
    raise ValueError(
      f'{folder} cannot be read now ({reason}); try again when that is mended.'
    )
  return None, reason, False


def _is_of_memory(error):
  # A store that has no quota left uses the same word, in a ValueError.
  return isinstance(error, jax.errors.JaxRuntimeError) and (
    'RESOURCE_EXHAUSTED' in str(error)
  )


def _compare(found, saved):
  for name in found:
    if found[name] != saved.get(name):
      return f'damaged|the values of {name} are not those that were saved'
  return ''


def _set_aside(directory, damaged):
  """Returns lines that tell of it."""
  news = []
  if jax.process_index() > 0:
    return news
  for step, reason in damaged.items():
    folder = directory / step
    try:
      new = files.set_aside(folder)
    except Exception as error:
      raise ValueError(
        f'{folder} is damaged ({reason}) and cannot be renamed '
        f'({files.in_short(error)}); move it away.'
      ) from error
    news.append(
      f'WARNING: the checkpoint of step {int(step):,} is damaged ({reason}); '
      f'the one before it is used. It is now {new}.'
    )
  return news
