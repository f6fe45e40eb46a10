"""Files that grow: on a disk that is full for a while, and at gs://."""

import contextlib
import fcntl
import hashlib
import os
import pathlib
import shutil
import tempfile
import threading
import time

from etils import epath

from vit_jax import storage

_KEEP = '.keep'  # in a folder that holds what is nowhere else


class Mirror:
  """A folder for files that grow, such as metrics.

  Objects in a bucket cannot be appended to. Of a folder there, the files are
  written to a temporary one, and copied as a whole from time to time, by a
  thread that nothing waits for; a local folder is written to at once, and
  nothing is copied.

  Attributes:
    folder: `epath.Path` of the local folder.
  """

  def __init__(self, target, every=30.0, patience=60.0):
    """Makes the local folder.

    Args:
      target: `epath.Path` of the folder.
      every: seconds between two copies, by `copy_soon`.
      patience: seconds that `close` waits at most.
    """
    self._target, self._every, self._patience = target, every, patience
    self._remote = storage.is_remote(target)
    self.folder, self._owned = target, None
    if self._remote:
      self.folder, self._owned = _temporary_folder(target)
    self._copied = {}  # name -> (size, time) of what is there
    self._threads, self._last = [], time.monotonic()
    self._failure = self._untold = ''
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

  def copy_soon(self, now=False):
    """Starts to copy what is new, if the last time is long ago.

    Args:
      now: whether to start it even if that is not long ago.

    Returns:
      Why copies began to fail, once each time they do, or ''. What failed is
      copied with the next.
    """
    if not self._remote:
      return ''
    if now or time.monotonic() - self._last >= self._every:
      self._threads = [t for t in self._threads if t.is_alive()]
      if len(self._threads) < 2:  # one that copies, one that will
        self._start()
    untold, self._untold = self._untold, ''
    return untold

  def close(self):
    """Copies what is new, and removes the local folder.

    Raises:
      OSError: if files could not be copied. They are kept, and it says where.
    """
    if not self._remote:
      return
    last = self._start()
    last.join(self._patience)
    failure = self._failure
    if last.is_alive():
      failure = (
        f'{self._target} took no files within {self._patience:g} seconds.'
      )
    if failure:
      with contextlib.suppress(OSError):
        (self.folder / _KEEP).touch()
    else:
      shutil.rmtree(self.folder)
    if self._owned is not None:
      os.close(self._owned)
      self._owned = None
    if failure:
      raise OSError(
        f'{failure} The files are kept: `gcloud storage cp -r {self.folder}/* '
        f'{self._target}/` copies them.'
      )

  def _start(self):
    # A daemon: a store that hangs does not keep the process from its end.
    thread = threading.Thread(target=self._copy, name='mirror', daemon=True)
    thread.start()
    self._threads.append(thread)
    self._last = time.monotonic()
    return thread

  def _copy(self):
    with self._lock:
      failure = self._copy_what_is_new()
      if failure and not self._failure:
        self._untold = failure
      self._failure = failure

  def _copy_what_is_new(self):
    """Returns why it failed, or ''."""
    for file in sorted(pathlib.Path(self.folder).rglob('*')):
      name = file.relative_to(self.folder).as_posix()
      target = self._target / name
      try:
        version = _version(file)
        if not file.is_file() or self._copied.get(name) == version:
          continue
        with storage.errors(target, 'written'):
          target.write_bytes(file.read_bytes())  # at once: it may grow
      except OSError as error:
        return str(error)
      self._copied[name] = version
    return ''


class Outlasting:
  """Writes entries in their order, and keeps those that it cannot write yet.

  A sink has a `path`, `write`, which takes a list of entries and raises OSError
  if not all of them are written, and `close`.

  Attributes:
    waiting: list of the entries that are not written.
  """

  def __init__(self, sink, retry_seconds=0):
    self._sink, self._retry_seconds = sink, retry_seconds
    self.waiting, self._failed_at = [], None

  def add(self, entry):
    """Writes an entry; returns why none can be written from now on, or ''."""
    self.waiting.append(entry)
    now, before = time.monotonic(), self._failed_at
    if before is not None and now - before < self._retry_seconds:
      return ''
    failure = self._write()
    self._failed_at = now if failure else None
    return failure if before is None else ''

  def close(self):
    """Returns why the entries that wait can still not be written, or ''."""
    failure = self._write() if self.waiting else ''
    self._sink.close()
    return failure

  def _write(self):
    try:
      self._sink.write(self.waiting)
    except OSError as error:
      return f'{self._sink.path} cannot be written: {error.strerror or error}.'
    self.waiting = []
    return ''


class Lines:
  """Text at the end of a file: all lines of a call, or, at the next, none."""

  def __init__(self, path):
    self.path = path
    self._end = None  # of the whole lines, in bytes, if there is more

  def write(self, lines):
    # Closed each time: some file systems only then say that they are full.
    with open(self.path, 'ab') as file:
      if self._end is not None:
        file.truncate(min(self._end, file.tell()))
        file.seek(0, os.SEEK_END)
      self._end = file.tell()
      file.write(''.join(lines).encode())
    self._end = None

  def close(self):
    pass


def _temporary_folder(target):
  """Makes a temporary folder; those that killed processes left are removed.

  Returns:
    Its `epath.Path`, and what makes it this process's as long as it is open.
  """
  name = hashlib.sha256(os.fspath(target).encode()).hexdigest()[:12]
  prefix = f'vit_jax-{name}-'
  for left in pathlib.Path(tempfile.gettempdir()).glob(prefix + '*'):
    if (left / _KEEP).exists() or (owned := _own(left)) is None:
      continue
    shutil.rmtree(left, ignore_errors=True)
    os.close(owned)
  folder = tempfile.mkdtemp(prefix=prefix)
  return epath.Path(folder), _own(folder)


def _own(folder):
  """Returns a file descriptor that locks a folder of this user, or None."""
  try:
    found = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
  except OSError:
    return None
  with contextlib.suppress(OSError):
    if os.fstat(found).st_uid == os.getuid():
      fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
      return found
  os.close(found)
  return None


def _version(file):
  status = os.stat(file)
  return status.st_size, status.st_mtime_ns
