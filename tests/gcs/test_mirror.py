import os
import time

import pytest
from gcs.flaky_proxy import Fault

from vit_jax import mirror, storage


def test_a_mirror_copies_what_is_new(folder, proxy):
  (folder / 'log').write_text('old\n')
  copies = mirror.Mirror(folder, every=0)
  copies.fetch('log')
  copies.fetch('missing')
  with (copies.folder / 'log').open('a') as file:
    file.write('new\n')
  (copies.folder / 'sub').mkdir()
  (copies.folder / 'sub' / 'other').write_text('other')
  assert copies.copy() == ''
  assert (folder / 'log').read_text() == 'old\nnew\n'
  assert (folder / 'sub' / 'other').read_text() == 'other'
  proxy.requests.clear()
  assert copies.copy() == ''
  assert not proxy.requests  # as nothing was new
  copies.close()
  assert not copies.folder.exists()


def test_a_mirror_copies_in_the_background(folder):
  copies = mirror.Mirror(folder, every=0)
  (copies.folder / 'log').write_text('new')
  assert copies.copy_soon() == ''
  deadline = time.monotonic() + 20
  while not (folder / 'log').exists():
    assert time.monotonic() < deadline
    time.sleep(0.01)
  copies.close()

  copies = mirror.Mirror(folder, every=3600)
  (copies.folder / 'log').write_text('newer')
  assert copies.copy_soon() == ''
  copies.close()  # what was not copied yet
  assert (folder / 'log').read_text() == 'newer'


def test_a_mirror_that_cannot_copy(folder, proxy):
  copies = mirror.Mirror(folder, every=0)
  (copies.folder / 'log').write_text('new')
  proxy.faults.append(Fault(403))
  assert 'log cannot be written: access is denied' in copies.copy()
  with pytest.raises(
    OSError, match=rf'kept: `gcloud storage cp -r {copies.folder}/\* {folder}/`'
  ):
    copies.close()
  assert (copies.folder / 'log').read_text() == 'new'
  copies.folder.rmtree()


def test_a_mirror_of_a_local_folder_is_that_folder(tmp_path):
  copies = mirror.Mirror(storage.path(tmp_path))
  assert os.fspath(copies.folder) == str(tmp_path)
  (tmp_path / 'log').write_text('kept')
  assert copies.copy() == copies.copy_soon() == ''
  copies.close()
  assert (tmp_path / 'log').read_text() == 'kept'
