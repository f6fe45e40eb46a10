import errno
import os

import pytest

from vit_jax import storage
from vit_jax.checkpoint import files


@pytest.mark.parametrize(
  'error',
  [
    *(
      OSError(number, os.strerror(number))
      for number in (
        errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EACCES,
      )
    ),
    OSError(errno.EIO, 'as the system says it'),
    ValueError('UNAVAILABLE: CURL error[7] Connection refused'),
    RuntimeError('INTERNAL: Failed to execute'),
    RuntimeError('Error reading "x": CANCELLED: was cancelled'),
    ValueError('ABORTED: generation mismatch'),
    # As TensorStore says it.
    ValueError('UNKNOWN: Failed to read [OS error 5: EIO Input/output error]'),
  ],
)  # fmt: skip
def test_what_says_nothing_of_the_files(error):
  assert files.is_unreadable(error)


@pytest.mark.parametrize(
  'error',
  [
    ValueError('DATA_LOSS: CRC-32C checksum verification failed'),
    ValueError('FAILED_PRECONDITION: Error opening "zarr" driver'),
    ValueError('NOT_FOUND: /runs/INTERNAL/checkpoints/2/state/d/1'),
    FileNotFoundError(errno.ENOENT, 'No such file or directory'),
  ],
)
def test_what_is_damage(error):
  assert not files.is_unreadable(error)


def test_a_checkpoint_is_complete_when_it_has_its_name(tmp_path):
  folder = storage.absolute(tmp_path)
  (folder / '3.partial').mkdir()
  assert not files.is_complete(folder / '3')
  (folder / '3.partial').rename(folder / '3')
  assert files.is_complete(folder / '3')
  assert files.saved(folder) == [folder / '3']
