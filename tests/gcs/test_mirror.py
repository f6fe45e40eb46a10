import os
import pathlib
import subprocess
import sys
import tempfile
import time

import pytest
from gcs.flaky_proxy import Fault

from vit_jax import mirror, storage


def eventually(is_so):
  deadline = time.monotonic() + 20
  while not is_so():
    assert time.monotonic() < deadline
    time.sleep(0.01)


def test_a_mirror_copies_what_is_new(folder, proxy):
  (folder / 'log').write_text('old\n')
  copies = mirror.Mirror(folder, every=0)
  copies.fetch('log')
  copies.fetch('missing')
  with (copies.folder / 'log').open('a') as file:
    file.write('new\n')
  (copies.folder / 'sub').mkdir()
  (copies.folder / 'sub' / 'other').write_text('other')
  copies.copy_soon()
  eventually((folder / 'sub' / 'other').exists)
  assert (folder / 'log').read_text() == 'old\nnew\n'
  assert (folder / 'sub' / 'other').read_text() == 'other'
  proxy.requests.clear()
  copies.close()
  assert not proxy.requests  # as nothing was new
  assert not copies.folder.exists()


def test_a_mirror_copies_in_the_background(folder):
  copies = mirror.Mirror(folder, every=0)
  (copies.folder / 'log').write_text('new')
  assert copies.copy_soon() == ''
  eventually((folder / 'log').exists)
  copies.close()

  copies = mirror.Mirror(folder, every=3600)
  (copies.folder / 'log').write_text('newer')
  assert copies.copy_soon() == ''
  copies.close()  # what was not copied yet
  assert (folder / 'log').read_text() == 'newer'


def test_a_store_that_is_slow_is_not_waited_for(folder, proxy):
  copies = mirror.Mirror(folder, patience=0.5)
  (copies.folder / 'log').write_text('new')
  proxy.faults.append(Fault('slow', method='POST|PUT', seconds=3))
  start = time.monotonic()
  assert copies.copy_soon(now=True) == ''
  assert time.monotonic() - start < 0.3
  eventually(lambda: any(method != 'GET' for method, _ in proxy.requests))
  assert not (folder / 'log').exists()
  for _ in range(20):  # none of which waits in a line
    assert copies.copy_soon(now=True) == ''
  assert time.monotonic() - start < 3
  with pytest.raises(
    OSError, match=f'{folder} took no files within 0.5 seconds. The files are'
  ):
    copies.close()
  assert time.monotonic() - start < 3
  assert (copies.folder / 'log').read_text() == 'new'
  proxy.faults.clear()
  eventually((folder / 'log').exists)
  copies.folder.rmtree()


def test_a_mirror_that_cannot_copy(folder, proxy):
  copies, told = mirror.Mirror(folder, every=0), []
  (copies.folder / 'log').write_text('new')
  proxy.faults.append(Fault(403))
  eventually(lambda: told.append(copies.copy_soon()) or told[-1])
  assert 'log cannot be written: access is denied' in told[-1]
  requests = len(proxy.requests)
  eventually(
    lambda: told.append(copies.copy_soon()) or len(proxy.requests) > requests
  )
  assert len(list(filter(None, told))) == 1  # once, not at each try
  with pytest.raises(
    OSError, match=rf'kept: `gcloud storage cp -r {copies.folder}/\* {folder}/`'
  ):
    copies.close()
  assert (copies.folder / 'log').read_text() == 'new'
  mirror.Mirror(folder).close()  # nor does the next one remove it
  assert (copies.folder / 'log').read_text() == 'new'
  copies.folder.rmtree()


def test_a_folder_that_a_killed_process_left_is_removed(folder):
  alive = mirror.Mirror(folder)
  other = mirror.Mirror(folder / 'other')
  code = (
    'import os; from vit_jax import mirror, storage\n'
    f'print(mirror.Mirror(storage.path("{folder}")).folder, flush=True)\n'
    'os._exit(1)'
  )
  command = [sys.executable, '-c', code]
  killed = subprocess.run(command, check=False, capture_output=True, text=True)
  left = pathlib.Path(killed.stdout.strip())
  assert left.parent == pathlib.Path(tempfile.gettempdir())
  assert left.stat().st_mode & 0o777 == 0o700
  assert left.exists()
  new = mirror.Mirror(folder)
  assert not left.exists()
  for used in (alive, other, new):
    assert used.folder.exists()
    used.close()


def test_a_mirror_of_a_local_folder_is_that_folder(tmp_path):
  copies = mirror.Mirror(storage.path(tmp_path))
  assert os.fspath(copies.folder) == str(tmp_path)
  (tmp_path / 'log').write_text('kept')
  assert copies.copy_soon() == copies.copy_soon(now=True) == ''
  copies.close()
  assert (tmp_path / 'log').read_text() == 'kept'
