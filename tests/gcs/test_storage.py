import os
import time

import fsspec
import pytest
from gcs.flaky_proxy import Fault

from vit_jax import storage

# gcsfs hands 5 MB to aiohttp at a time.
pytestmark = pytest.mark.filterwarnings('ignore:Sending a large body')


def test_paths(monkeypatch, tmp_path):
  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.chdir(tmp_path)
  assert os.fspath(storage.path('gs://b/run')) == 'gs://b/run'
  assert os.fspath(storage.absolute('gs://b/run')) == 'gs://b/run'
  assert os.fspath(storage.path('~/run')) == f'{tmp_path}/run'
  assert os.fspath(storage.path('run')) == 'run'
  assert os.fspath(storage.absolute('run')) == f'{tmp_path}/run'


@pytest.mark.parametrize('name', ['https://h/a.npz', 's3://b/run', 'file:///a'])
def test_other_schemes_are_refused(name):
  message = f'{name}: only local paths and gs:// can be used; download it first'
  for function in (storage.path, storage.absolute, storage.check):
    with pytest.raises(ValueError, match=message):
      function(name)


def test_a_bucket_that_can_be_used(folder):
  storage.check(folder, '--workdir')
  (folder / 'a').write_text('b')
  storage.check(folder, '--workdir')


def test_local_paths_are_not_asked_for():
  storage.check('/no/such/folder', '--workdir')


def test_a_missing_bucket(proxy):
  with pytest.raises(
    ValueError,
    match="--workdir=gs://other/run: there is no bucket 'other'; correct the "
    'name, or make it: `gcloud storage buckets create gs://other`.',
  ):
    storage.check('gs://other/run', '--workdir')
  # gcsfs would make it.
  assert not [p for m, p in proxy.requests if m != 'GET']


@pytest.mark.parametrize(
  ('status', 'message'),
  [
    (401, r'no valid credentials \(Anonymous caller.*`gcloud auth applicat'),
    (403, r'access is denied \(someone@example.com .* "Storage Object User"'),
  ],
)
def test_what_the_bucket_refuses(folder, proxy, status, message):
  proxy.faults.append(Fault(status))
  start = time.monotonic()
  with pytest.raises(ValueError, match=rf'--workdir={folder}: .*{message}'):
    storage.check(folder, '--workdir')
  assert time.monotonic() - start < 5


def test_metadata_servers_are_not_waited_for(monkeypatch, tmp_path):
  """Of a machine without credentials: nothing is told, nothing listens."""
  monkeypatch.delenv('STORAGE_EMULATOR_HOST', raising=False)
  monkeypatch.delenv('GOOGLE_APPLICATION_CREDENTIALS', raising=False)
  monkeypatch.setenv('CLOUDSDK_CONFIG', str(tmp_path))
  monkeypatch.setenv('GCE_METADATA_HOST', '127.0.0.1:9')
  monkeypatch.setenv('GCE_METADATA_IP', '127.0.0.1:9')
  start = time.monotonic()
  assert storage._credentials() == 'anon'
  assert time.monotonic() - start < 20


@pytest.mark.parametrize('kind', [503, 429, 'drop', 'slow'])
def test_short_failures_are_not_noticed(folder, proxy, kind):
  # Reads, and writes in one request or, over 5 MB, in several.
  proxy.faults.append(Fault(kind, times=1, method='POST|PUT'))
  proxy.faults.append(Fault(kind, times=1, method='GET'))
  small, large = b'small', os.urandom(6_000_000)
  (folder / 'small').write_bytes(small)
  (folder / 'large').write_bytes(large)
  assert (folder / 'small').read_bytes() == small
  assert (folder / 'large').read_bytes() == large
  assert [fault.done for fault in proxy.faults] == [1, 1]


def test_an_upload_goes_on_after_a_part_failed(folder, proxy):
  proxy.faults.append(Fault(503, method='POST|PUT', path='upload_id', every=2))
  large = os.urandom(12_000_000)
  (folder / 'large').write_bytes(large)
  assert proxy.faults[0].done
  proxy.faults.clear()
  assert (folder / 'large').read_bytes() == large


def test_an_answer_that_is_cut_short_is_read_again(folder, proxy):
  (folder / 'file').write_bytes(b'0123456789')
  proxy.faults.append(Fault('cut', method='GET', path='alt=media', times=1))
  assert (folder / 'file').read_bytes() == b'0123456789'
  assert proxy.faults[0].done == 1


@pytest.fixture
def impatient(proxy, monkeypatch):
  """Makes silence of one second too long."""
  monkeypatch.setattr(storage, '_SILENT_SECONDS', 1)
  monkeypatch.setitem(fsspec.config.conf, 'gcs', {})
  storage._set_up.cache_clear()
  storage._set_up()


@pytest.mark.usefixtures('impatient')
def test_what_goes_on_coming_may_take_its_time(folder, proxy):
  (folder / 'file').write_bytes(b'0123456789' * 10)
  proxy.faults.append(Fault('trickle', path='alt=media', seconds=3))
  start = time.monotonic()
  found = fsspec.filesystem('gcs').cat_file(os.fspath(folder / 'file'))
  assert found == b'0123456789' * 10
  assert time.monotonic() - start > 2.5
  assert proxy.faults[0].done == 1


@pytest.mark.usefixtures('impatient')
def test_silence_is_sent_again(folder, proxy):
  (folder / 'file').write_bytes(b'0123456789')
  proxy.faults.append(Fault('silent', path='alt=media', times=1))
  start = time.monotonic()
  fsspec.filesystem('gcs').cat_file(os.fspath(folder / 'file'))
  assert 1 < time.monotonic() - start < 10
  assert proxy.faults[0].done == 1


@pytest.mark.slow
@pytest.mark.usefixtures('impatient')
def test_a_store_that_stays_silent(folder, proxy):
  proxy.faults.append(Fault('silent'))
  start = time.monotonic()
  with pytest.raises(ValueError, match='the store fails or does not answer'):
    storage.check(folder, '--workdir')
  assert time.monotonic() - start < 60
  assert proxy.faults[0].done == 6


@pytest.mark.slow
def test_a_store_that_stays_down(folder, proxy):
  proxy.faults.append(Fault(503))
  start = time.monotonic()
  with pytest.raises(
    ValueError,
    match='the store fails or does not answer .*503.*; run the same command '
    r'again when it does \(https://status.cloud.google.com\)',
  ):
    storage.check(folder, '--workdir')
  assert time.monotonic() - start < 60


def test_errors_explain(folder, proxy):
  with pytest.raises(FileNotFoundError), storage.errors(folder / 'a'):
    (folder / 'a').read_text()
  proxy.faults.append(Fault(401))
  with (
    pytest.raises(OSError, match=f'{folder}/a cannot be written: there are no'),
    storage.errors(folder / 'a', 'written'),
  ):
    (folder / 'a').write_text('a')
