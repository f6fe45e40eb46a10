"""Writes, reads and deletes a file in a folder; a process of its own.

Without credentials or network, an object store can keep one waiting. Prints one
line of JSON.
"""

import json
import os
import pathlib
import shutil
import sys
import time
import uuid

from vit_jax import storage

TEXT = 'vit_jax.doctor was here, and could not delete this file.\n'


def main():
  """Prints the times, or the step that failed and its error."""
  workdir = sys.argv[1]
  try:
    remote = storage.is_remote(workdir)
    result = _remote(workdir) if remote else _local(workdir)
  except Exception as error:
    # Libraries raise what they like; it is what the report is about.
    result = {'error': storage.explain(error, workdir)}
  print(json.dumps(result))


def _remote(workdir):
  return {'seconds': _round_trip(storage.path(workdir))}


def _local(workdir):
  path = pathlib.Path(workdir).expanduser().absolute()
  existing = path
  while not existing.exists():
    existing = existing.parent
  if not existing.is_dir():
    return {'error': f'{existing} is a file'}
  # Nothing is written outside of the folder: a missing one is not made.
  if existing == path:
    seconds = _round_trip(path)
  elif os.access(existing, os.W_OK | os.X_OK):
    seconds = None
  else:
    return {'error': f'{existing} is not writable'}
  return {'seconds': seconds, 'free': shutil.disk_usage(existing).free}


def _round_trip(folder):
  """Returns the seconds it took to write, read and delete a file."""
  file = folder / f'.doctor-{uuid.uuid4().hex}'
  start = time.perf_counter()
  file.write_text(TEXT)
  try:
    if file.read_text() != TEXT:
      raise OSError('what was read is not what was written')
  finally:
    file.unlink()
  if file.exists():
    raise OSError(f'{file} is still there after it was deleted')
  return time.perf_counter() - start


if __name__ == '__main__':
  main()
