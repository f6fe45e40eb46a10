"""How far the 19 VTAB tasks are, and preparing all that can be."""

import importlib.util
import re
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
_MODULES = {'OpenCV': 'cv2', 'h5py': 'h5py'}  # that vtab.Task.needs names


def show():
  """Prints a line for each task, then what is to be done by hand."""
  found = _statuses()
  width = max(map(len, vtab.TASKS))
  first = {task.tfds_name: name for name, task in _one_of_each()}
  for name, task in vtab.TASKS.items():
    status = found[task.tfds_name]
    size = ''
    if status.state == 'download' and name != first[task.tfds_name]:
      size = f', with {first[task.tfds_name]}'
    elif status.state == 'download' and status.num_bytes:
      size = f', {status.num_bytes / 1e9:.2f} GB'
    print(f'{name:{width}}  {task.group:11}  {_STATES[status.state]}{size}')
  total = sum(s.num_bytes for s in found.values() if s.state == 'download')
  if total:
    print(f'\nTo be downloaded: {total / 1e9:.2f} GB in all.')
  for name, task in _one_of_each():
    status = found[task.tfds_name]
    todo = [status.text] if status.state in ('manual', 'error') else []
    if _needs(task) and status.state not in ('ready', 'tfrecord'):
      todo.append(_needs(task))
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
      failed[name] = f'{error} {_needs(task)}'.strip()
      print(f'{name}: not prepared', file=sys.stderr)
  if failed:
    reasons = ''.join(f'\n\n{name}: {text}' for name, text in failed.items())
    sys.exit(f'Error: {len(failed)} data sets are not ready.{reasons}')
  print(f'All {len(vtab.TASKS)} tasks are ready.')


def _needs(task):
  """Returns what a task needs, less what TFDS says and what is installed."""
  sentences = re.split(r'(?<=\.) (?=[A-Z])', task.needs)
  return ' '.join(
    text
    for text in sentences
    if not text.startswith('Download ')
    and not (
      (package := re.match(r'TFDS builds it with (\w+):', text))
      and importlib.util.find_spec(_MODULES[package[1]])
    )
  )


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
