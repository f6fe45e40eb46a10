"""Where files lie: local folders, and buckets of Google Cloud Storage.

Paths at gs:// are read and written by gcsfs, whatever else is installed; only
the arrays of checkpoints (TensorStore) and packed shards (array_record) go
their own ways. gcsfs sends a request that fails (500 to 504, 408, 429, lost
connections) up to six times within about 35 seconds. One that is silent for 30
is such a request too: a silent store is given up after less than four minutes.
TensorStore sends a request up to 32 times within about 15 minutes.
"""

import contextlib
import functools
import logging
import os
import pathlib
import shutil
import tempfile

from etils import epath

# Left alone, epath takes TensorFlow's file system where that is installed: it
# takes seconds to import, raises errors of its own, and reads no emulator.
os.environ.setdefault('EPATH_USE_TF', 'false')
# gcsfs asks for the kind of every bucket otherwise, at every access.
os.environ.setdefault('GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT', 'false')

_CONNECT_SECONDS, _SILENT_SECONDS = 10, 30
_BLOCK = 2**24  # bytes
_SCOPES = ['https://www.googleapis.com/auth/devstorage.read_write']


def is_remote(path):
  """Returns whether a path is at gs://; `path` refuses all other schemes."""
  return '://' in os.fspath(path)


def path(name):
  """Returns the `epath.Path` of a path as a user gives it: '~' is expanded.

  Raises:
    ValueError: if it is a URL but not gs://, or what reads gs:// is not
      installed.
  """
  if is_remote(name) and not os.fspath(name).startswith('gs://'):
    raise ValueError(
      f'{name}: only local paths and gs:// can be used; download it first.'
    )
  result = epath.Path(name).expanduser()
  if is_remote(result):
    _set_up()
  return result


def absolute(name):
  """Returns `path(name)`, absolute."""
  result = path(name)
  # `resolve` would make a local folder of gs://.
  return result if is_remote(result) else result.resolve()


def check(name, field=None):
  """Raises ValueError if the bucket of a path cannot be used, and says why.

  The account has to be allowed to list it, which reading one file does not
  take. A store that answers nothing is given up after four minutes at most.

  Args:
    name: path of a folder; of a local one nothing is asked.
    field: of the config or flag that says it, for errors.
  """
  reason = problem(name)
  if reason:
    raise ValueError(
      f'{field}={name}: {reason}.' if field else f'{name}: {reason}.'
    )


def problem(name):
  """Returns why the bucket of a path cannot be used, as `check`, or None."""
  if not is_remote(name):
    return None
  name = os.fspath(path(name))
  import fsspec

  bucket, _, rest = name.partition('://')[2].partition('/')
  try:
    # Whoever may do anything with objects may list them; the prefix makes the
    # list short.
    fsspec.filesystem('gcs').ls(bucket, prefix=rest.partition('/')[0])
  except Exception as error:  # the store's kinds are many
    return _explain(error, bucket)
  return None


class StoreError(OSError):
  """A remote store refused, or failed for longer than is worth waiting."""


@contextlib.contextmanager
def errors(name, what='read'):
  """Makes what a remote store raises in the context a StoreError.

  Args:
    name: path of the file. Of a local one errors are what they are, and so are
      the FileNotFoundError and ValueErrors, as of content, of any.
    what: 'read' or 'written'.
  """
  try:
    yield
  except (FileNotFoundError, ValueError, StoreError):
    raise
  except Exception as error:
    if not is_remote(name):
      raise
    name, reason = os.fspath(name), explain(error, name)
    failure = StoreError(f'{name} cannot be {what}: {reason}.')
    failure.strerror = reason  # as those of the system have it, without a path
    raise failure from None


def explain(error, name):
  """Returns what an error at a path means, and what to do.

  Of a local path, and of a ValueError, it is the error's own text.
  """
  if isinstance(error, StoreError):
    return error.strerror
  if not is_remote(name) or isinstance(error, ValueError):
    return str(error)
  return _explain(error, os.fspath(name).partition('://')[2].partition('/')[0])


def upload(source, target):
  """Copies a local file to an `epath.Path`; an object appears when it is whole.

  Raises:
    StoreError: if it could not be written.
  """
  with errors(target, 'written'):
    with open(source, 'rb') as file, target.open('wb') as written:
      shutil.copyfileobj(file, written, _BLOCK)
    size, expected = target.stat().length, os.stat(source).st_size
    if size != expected:
      raise OSError(f'of {expected:,} bytes {size:,} arrived')


@contextlib.contextmanager
def local_copy(name):
  """Gives a local `pathlib.Path` to a file, for the time of the context.

  Raises:
    StoreError: if it cannot be read.
  """
  if not is_remote(name):
    yield pathlib.Path(name)
    return
  with tempfile.TemporaryDirectory() as folder:
    local = pathlib.Path(folder, path(name).name)
    with errors(name):
      path(name).copy(local)
    yield local


@contextlib.contextmanager
def whole_file(target):
  """Gives a local path to write to, and makes it the file `target` at the end.

  So it is there whole, or, if the context raises, not at all.

  Args:
    target: `epath.Path`; its folder is made.
  """
  if is_remote(target):
    with tempfile.TemporaryDirectory() as folder:
      partial = pathlib.Path(folder, target.name)
      yield partial
      upload(partial, target)
    return
  target.parent.mkdir(parents=True, exist_ok=True)
  partial = target.with_name(target.name + '.partial')
  try:
    yield partial
    partial.replace(target)
  finally:
    partial.unlink(missing_ok=True)


@functools.cache
def _set_up():
  """Tells gcsfs how to connect, once."""
  try:
    import aiohttp
    import fsspec
    import gcsfs  # noqa: F401
  except ImportError as error:
    raise ValueError(
      f"Paths at gs:// need {error.name}; run `pip install -e '.[gcs]'`."
    ) from None
  # What it logs, with a stack, is what it raises.
  logging.getLogger('gcsfs').setLevel(logging.CRITICAL)
  # No `total`: files of any size may take their time, if bytes go on coming.
  # gcsfs gives it with each request, so that the session's would not count.
  timeout = aiohttp.ClientTimeout(
    total=None, sock_connect=_CONNECT_SECONDS, sock_read=_SILENT_SECONDS
  )
  settings = fsspec.config.conf.setdefault('gcs', {})
  ours = dict(
    token=_credentials(),
    requests_timeout=timeout,
    # TensorStore and other processes write what a kept list would not show.
    use_listings_cache=False,
  )
  settings |= {k: v for k, v in ours.items() if k not in settings}


def _credentials():
  """Returns Google's default credentials, or 'anon': some buckets are public.

  It takes 15 seconds at most, where there are none.
  """
  if os.environ.get('STORAGE_EMULATOR_HOST'):
    return 'anon'
  import google.auth

  try:
    return google.auth.default(_SCOPES)[0]
  except google.auth.exceptions.GoogleAuthError:
    return 'anon'


def _explain(error, bucket):
  text = str(error).strip() or type(error).__name__
  if isinstance(error, FileNotFoundError):
    return (
      f'there is no bucket {bucket!r}; correct the name, or make it: '
      f'`gcloud storage buckets create gs://{bucket}`'
    )
  is_401 = str(getattr(error, 'code', '')) == '401'
  if is_401 or 'credential' in text.lower() or 'Reauth' in text:
    return (
      f'there are no valid credentials ({_first_line(text)}); run `gcloud auth '
      'application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS to '
      'the key file of a service account'
    )
  if text.startswith('Forbidden'):
    return (
      f'access is denied ({_first_line(text.partition(chr(10))[2])}); ask for '
      f'the role "Storage Object User" on gs://{bucket}, or log in as somebody '
      'else: `gcloud auth application-default login`'
    )
  return (
    f'the store fails or does not answer ({_first_line(text)}); run the same '
    'command again when it does (https://status.cloud.google.com)'
  )


def _first_line(text):
  lines = text.splitlines() or ['']
  return lines[0][:200]
