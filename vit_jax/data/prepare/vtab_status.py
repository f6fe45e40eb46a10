"""How far the 19 VTAB tasks are, and preparing all that can be."""

import sys
import textwrap

from vit_jax.data import vtab
from vit_jax.data.prepare import tfds_building

# What is said of a tfds_building.Status.
_STATES = {
  'ready': 'ready',
  'tfrecord': 'prepared as tfrecord, to be converted',
  'download': 'to be downloaded',
  'manual': 'needs files by hand',
  'error': 'cannot be prepared',
}


def show():
  """Prints a line for each task, then what is to be done by hand."""
  found = _statuses()
  width = max(map(len, vtab.TASKS))
  for name, task in vtab.TASKS.items():
    status = found[task.tfds_name]
    size = f', {status.num_bytes / 1e9:.2f} GB' if status.num_bytes else ''
    if status.state in ('ready', 'tfrecord'):
      size = ''
    print(f'{name:{width}}  {task.group:11}  {_STATES[status.state]}{size}')
  for name, task in _one_of_each():
    status = found[task.tfds_name]
    todo = [status.text] if status.state in ('manual', 'error') else []
    if task.needs and status.state not in ('ready', 'tfrecord'):
      todo.append(task.needs)
    if todo:
      print(f'\n{name}:')
      print(textwrap.indent(textwrap.fill(' '.join(todo), 76), '  '))
  num_ready = sum(
    found[task.tfds_name].state == 'ready' for task in vtab.TASKS.values()
  )
  print(f'\n{num_ready} of the {len(vtab.TASKS)} tasks are ready.')
  if num_ready < len(vtab.TASKS):
    print(
      '`python -m vit_jax.data.prepare vtab --all` prepares those that need no '
      'files by hand.'
    )


def prepare_all():
  """Prepares every data set of the tasks; exits with 1 if some are not ready.

  One that fails does not keep the others from being tried.
  """
  failed = {}
  for name, task in _one_of_each():
    try:
      tfds_building.prepare(task.tfds_name)
    except ValueError as error:
      failed[name] = f'{error} {task.needs}'.strip()
      print(f'{name}: not prepared', file=sys.stderr)
  if failed:
    reasons = ''.join(f'\n\n{name}: {text}' for name, text in failed.items())
    sys.exit(f'Error: {len(failed)} data sets are not ready.{reasons}')
  print(f'All {len(vtab.TASKS)} tasks are ready.')


def _statuses():
  return {
    task.tfds_name: tfds_building.status(task.tfds_name)
    for _, task in _one_of_each()
  }


def _one_of_each():
  """Returns (task's name, task) for each data set: some have two tasks."""
  first = {}
  for name, task in vtab.TASKS.items():
    first.setdefault(task.tfds_name, (name, task))
  return list(first.values())
