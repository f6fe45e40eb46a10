"""Files that grow, where files cannot: metrics at gs://."""

import contextlib
import os
import pathlib
import shutil
import tempfile
import threading
import time
from concurrent import futures

from etils import epath

from vit_jax import storage


class Mirror:
  """A folder for files that grow, such as metrics.

  Objects in a bucket cannot be appended to. Of a folder there, the files are
  written to a temporary one, and copied as a whole from time to time; a local
  folder is written to at once, and nothing is copied.

  Attributes:
    folder: `epath.Path` of the local folder.
  """

  def __init__(self, target, every=30.0):
    """Makes the local folder.

    Args:
      target: `epath.Path` of the folder.
      every: seconds between two copies, by `copy_soon`.
    """
    self._target, self._every = target, every
    self._remote = storage.is_remote(target)
    self.folder = target
    if self._remote:
      self.folder = epath.Path(tempfile.mkdtemp(prefix='vit_jax-'))
    self._copied = {}  # name -> (size, time) of what is there
    self._pool = futures.ThreadPoolExecutor(1, 'mirror')
    self._running, self._last = None, time.monotonic()
    self._lock = threading.Lock()

  def fetch(self, name):
    """Copies a file of the target, if there is one, into the local folder.

    Raises:
      OSError: if it cannot be read.
    """
    if not self._remote:
      return
    source = self._target / name
    with storage.errors(source), contextlib.suppress(FileNotFoundError):
      (self.folder / name).write_bytes(source.read_bytes())
      self._copied[name] = _version(self.folder / name)

  def copy_soon(self):
    """Starts to copy what is new, if the last time is long ago.

    Returns:
      Why the last copy failed, or '': its files will be copied with the next.
    """
    if not self._remote or (self._running and not self._running.done()):
      return ''
    failure = self._running.result() if self._running else ''
    self._running = None
    if time.monotonic() - self._last >= self._every:
      self._last = time.monotonic()
      self._running = self._pool.submit(self._copy)
    return failure

  def copy(self):
    """Copies what is new; returns why it failed, or ''."""
    return self._copy() if self._remote else ''

  def close(self):
    """Copies what is new, and removes the local folder.

    Raises:
      OSError: if files could not be copied. They are kept, and it says where.
    """
    self._pool.shutdown()
    if not self._remote:
      return
    if failure := self._copy():
      raise OSError(
        f'{failure} The files are kept: `gcloud storage cp -r {self.folder}/* '
        f'{self._target}/` copies them.'
      )
    shutil.rmtree(self.folder)

  def _copy(self):
    with self._lock:
      for file in sorted(pathlib.Path(self.folder).rglob('*')):
        name, version = file.relative_to(self.folder).as_posix(), _version(file)
        if not file.is_file() or self._copied.get(name) == version:
          continue
        target = self._target / name
        try:
          with storage.errors(target, 'written'):
            target.write_bytes(file.read_bytes())  # at once: it may grow
        except OSError as error:
          return str(error)
        self._copied[name] = version
    return ''


def _version(file):
  status = os.stat(file)
  return status.st_size, status.st_mtime_ns


def _version(file):
  status = os.stat(file)
  return status.st_size, status.st_mtime_ns
