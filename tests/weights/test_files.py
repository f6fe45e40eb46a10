import json
import struct
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from vit_jax.weights import files

# What the formats can hold; the values survive in each dtype.
ARRAYS = {
  'params/head/kernel': np.arange(6, dtype='float32').reshape(2, 3),
  'half': np.array([0.5, -2.0], 'float16'),
  'brain': np.array([[1.5], [-3.0]], ml_dtypes.bfloat16),
  'step': np.array(7, 'int64'),
  'mask': np.array([True, False]),
  'empty': np.zeros((0, 3), 'float32'),
  'file': np.ones(1, 'float64'),  # the name of an argument of np.savez
  'turned': np.arange(6, dtype='float32').reshape(2, 3).T,
}
SUFFIXES = ('.npz', '.safetensors')


def header(shape, descr="'<f4'", fortran='False', version=1):
  """Returns an npy header that may say anything."""
  text = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}}}\n"
  length = struct.pack('<H' if version == 1 else '<I', len(text))
  return b'\x93NUMPY' + bytes([version, 0]) + length + text.encode()


SCALAR = header(()) + bytes(4)


def npz(path, *members, compression=zipfile.ZIP_STORED):
  """Writes a zip of (name, bytes); returns its path."""
  with zipfile.ZipFile(path, 'w', compression) as archive:
    for name, data in members:
      archive.writestr(name, data)
  return path


def safetensors_bytes(length, **changes):
  """Returns a file of one array, whose entry may say anything."""
  entry = {'dtype': 'F32', 'shape': [1], 'data_offsets': [0, 4], **changes}
  text = json.dumps({'a': entry}).encode()
  return struct.pack('<Q', len(text)) + text + bytes(length)


def check_equal(left, right):
  assert left.keys() == right.keys()
  for name, array in right.items():
    assert left[name].dtype == array.dtype, name
    np.testing.assert_array_equal(left[name], array, strict=True)


def fails(path, message):
  """Checks that a file is refused with its name, in little memory."""
  tracemalloc.start()
  try:
    with pytest.raises(ValueError, match=message) as error:
      files.read(path)
    assert tracemalloc.get_traced_memory()[1] < 2**26
  finally:
    tracemalloc.stop()
  assert str(path) in str(error.value)
  assert error.value.__context__ is None or error.value.__suppress_context__


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_what_is_written_is_read(tmp_path, suffix):
  path = tmp_path / 'new' / f'model{suffix}'
  files.write(path, ARRAYS)
  check_equal(files.read(path), ARRAYS)
  assert files.headers(path) == {
    name: (array.shape, array.dtype) for name, array in ARRAYS.items()
  }
  assert [p.name for p in path.parent.iterdir()] == [path.name]
  files.read(path)['half'][0] = 1  # may be changed in place


def test_npz_is_what_numpy_reads(tmp_path):
  files.write(tmp_path / 'model.npz', ARRAYS)
  with np.load(tmp_path / 'model.npz') as loaded:
    check_equal(dict(loaded), ARRAYS | {'brain': ARRAYS['brain'].view('V2')})


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_reads_what_numpy_writes(tmp_path, save):
  arrays = {name: ARRAYS[name] for name in ARRAYS if name != 'file'}
  arrays['fortran'] = np.asfortranarray(np.arange(6.0).reshape(2, 3))
  arrays['big_endian'] = np.arange(3, dtype='>f4')
  save(tmp_path / 'model.npz', **arrays)
  arrays['big_endian'] = np.arange(3, dtype='<f4')
  check_equal(files.read(tmp_path / 'model.npz'), arrays)


def test_safetensors_is_what_its_library_reads(tmp_path):
  path = tmp_path / 'model.safetensors'
  files.write(path, ARRAYS, {'grid': '14x14'})
  with safetensors.safe_open(path, framework='np') as file:
    check_equal({name: file.get_tensor(name) for name in ARRAYS}, ARRAYS)
    assert file.metadata() == {'grid': '14x14'}


def test_write_replaces_only_when_told(tmp_path):
  path = tmp_path / 'model.npz'
  files.write(path, {'a': np.zeros(1)})
  with pytest.raises(
    ValueError, match='model.npz cannot be written: it exists'
  ):
    files.write(path, {'a': np.ones(1)})
  assert files.read(path)['a'] == 0
  files.write(path, {'a': np.ones(1)}, overwrite=True)
  assert files.read(path)['a'] == 1


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_write_leaves_the_old_file_when_it_fails(tmp_path, suffix, monkeypatch):
  def fail(*_, **__):
    raise OSError(28, 'No space left on device')

  path = tmp_path / f'model{suffix}'
  files.write(path, {'a': np.zeros(1)})
  monkeypatch.setattr(np.lib.format, 'write_array', fail)
  monkeypatch.setattr(safetensors.numpy, 'save_file', fail)
  with pytest.raises(ValueError, match='written: .*No space left'):
    files.write(path, {'a': np.ones(1)}, overwrite=True)
  assert files.read(path)['a'] == 0
  assert len(list(tmp_path.iterdir())) == 1


def test_write_refuses_what_it_could_not_read(tmp_path):
  with pytest.raises(ValueError, match="'a' has dtype object; convert it to"):
    files.write(tmp_path / 'm.npz', {'a': np.array([None])})
  with pytest.raises(ValueError, match=r'm\.npz cannot hold metadata; name it'):
    files.write(tmp_path / 'm.npz', {}, {'grid': '14x14'})
  with pytest.raises(ValueError, match=r'm\.h5 is neither \.npz nor'):
    files.write(tmp_path / 'm.h5', {})
  assert not list(tmp_path.iterdir())


def test_refuses_other_suffixes(tmp_path):
  for suffix in ('.pth', '.pt', '.bin', '.ckpt', '.pkl', '.h5', '.NPZ', ''):
    path = tmp_path / f'model{suffix}'
    fails(path, 'pickles are never read.*safetensors.torch.save_file')


def test_names_what_is_there_instead_of_a_missing_file(tmp_path):
  (tmp_path / 'vit_b16.npz').touch()
  fails(tmp_path / 'vit_b_16.npz', 'it does not exist; its folder has vit_b16')
  fails(
    tmp_path / 'a' / 'b.npz', r'b\.npz cannot be read: it does not exist\.$'
  )
  (tmp_path / 'folder.npz').mkdir()
  fails(tmp_path / 'folder.npz', 'is a folder; name a file in it')


@pytest.mark.parametrize('suffix', SUFFIXES)
@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'', 'it is empty'),
    (b'<!DOCTYPE html>\n<html>', "a text, '<!DOCTYPE html>.*was refused"),
    (b'Entry not found', "a text, 'Entry not found'"),
    (b'\x80\x04\x95\x00pickle', 'cannot be read: .*download it again'),
    (b'\xff' * 100, 'cannot be read: .*download it again'),
  ],
)
def test_refuses_failed_downloads(tmp_path, suffix, content, message):
  path = tmp_path / f'model{suffix}'
  path.write_bytes(content)
  fails(path, message)


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_refuses_truncated_files(tmp_path, suffix):
  path = tmp_path / f'model{suffix}'
  files.write(path, ARRAYS)
  data = path.read_bytes()
  for length in (3, 100, len(data) // 2, len(data) - 1):
    path.write_bytes(data[:length])
    fails(path, 'cannot be read: ')


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_refuses_flipped_bits(tmp_path, save):
  path = tmp_path / 'model.npz'
  save(path, a=np.arange(1000, dtype='float32'))
  data = bytearray(path.read_bytes())
  data[300] ^= 1
  path.write_bytes(data)
  fails(path, "its array 'a' is damaged .*(CRC|decompress|invalid)")


@pytest.mark.parametrize(
  ('data', 'message'),
  [
    (header((10**12,)), 'needs 4,000,000,000,0.. bytes, it has 7.'),
    (header((2**31, 2**31, 2**31)), 'bytes, it has'),
    (header((0, 10**30)), r'its shape \(0, 10+\) is impossible'),
    (header((-1, -1)) + bytes(4), r'its shape \(-1, -1\) is impossible'),
    (header((2,)) + bytes(4), r'needs \d+ bytes, it has'),
    (header((2,)) + bytes(12), r'needs \d+ bytes, it has'),
    (header((1,) * 100) + bytes(4), r'its shape \(.*\) is impossible'),
    (header((1,), "'|O'") + bytes(8), 'Python objects; pickles are never read'),
    (header((1,), "'<U2'") + bytes(8), 'its dtype <U2 is not one of bool'),
    (header((1,), "'<M8[s]'") + bytes(8), 'is not one of bool'),
    (header((1,), "'<c8'") + bytes(8), 'its dtype complex64 is not one of'),
    (header((1,), "[('x', '|i2')]") + bytes(2), 'is not one of bool'),
    (header((1,), "('|i1', (2,))") + bytes(2), 'is not one of bool'),
    (header((1,), version=3) + bytes(4), 'version .3, 0. of the npy format'),
    (header('(' * 5000), 'array .a. is damaged'),
    (header('1,' * 50000, version=2), 'is large'),
    (b'\x93NUMPY', 'magic string'),
    (b'', "its array 'a' is damaged .*magic string"),
    (b'\x80\x04K\x01 is a pickle', 'magic string'),
  ],
)
def test_refuses_hostile_arrays(tmp_path, data, message):
  path = npz(tmp_path / 'model.npz', ('a.npy', data))
  fails(path, message)
  with pytest.raises(ValueError, match=message):
    files.headers(path)


@pytest.mark.filterwarnings('ignore:Duplicate name')
def test_refuses_strange_members(tmp_path):
  path = npz(tmp_path / 'model.npz', ('data.pkl', b'\x80\x04K\x01.'))
  fails(path, "holds 'data.pkl', which is no array; it may be a PyTorch file")
  npz(path, ('a.npy', SCALAR), ('a.npy', SCALAR))
  fails(path, "holds 'a.npy' twice")
  npz(path, ('a.npy', SCALAR), compression=zipfile.ZIP_LZMA)
  fails(path, "'a.npy' has compression method 14; numpy writes 0")


def test_refuses_encryption(tmp_path):
  path = npz(tmp_path / 'model.npz', ('a.npy', SCALAR))
  data = bytearray(path.read_bytes())
  for signature, offset in ((b'PK\x03\x04', 6), (b'PK\x01\x02', 8)):
    data[data.rindex(signature) + offset] |= 1
  path.write_bytes(data)
  fails(path, "'a.npy' is encrypted")


def test_refuses_bombs_but_not_zeros(tmp_path):
  path = tmp_path / 'model.npz'
  np.savez_compressed(path, a=np.zeros(2**18, 'float32'))  # 1 MiB
  assert path.stat().st_size < 2**12
  assert files.read(path)['a'].shape == (2**18,)
  np.savez_compressed(path, a=np.zeros(2**24 + 1, 'float32'))
  fails(path, 'claim to unpack to 67,.*; at most 67,108,864 are allowed. Were')


def test_refuses_sizes_that_lie(tmp_path):
  # The directory of the zip agrees with the header; the bytes do not.
  path = npz(tmp_path / 'model.npz', ('a.npy', header((2**20,)) + bytes(4)))
  data = bytearray(path.read_bytes())
  size = struct.pack('<I', len(header((2**20,))) + 2**22)
  start = data.rindex(b'PK\x01\x02') + 24
  data[start : start + 4] = size
  path.write_bytes(data)
  fails(path, "its array 'a' is damaged")


@pytest.mark.parametrize(
  'content',
  [
    safetensors_bytes(4, shape=[10**12]),
    safetensors_bytes(4, shape=[-1]),
    safetensors_bytes(8),
    safetensors_bytes(0),
    safetensors_bytes(4, dtype='OBJ'),
    struct.pack('<Q', 10**12) + b'{}',
    struct.pack('<Q', 100) + b'{}',
    struct.pack('<Q', 2) + b'[]',
  ],
)
def test_refuses_hostile_safetensors(tmp_path, content):
  path = tmp_path / 'model.safetensors'
  path.write_bytes(content)
  fails(path, 'cannot be read: Error while deserializing header')


def test_refuses_other_dtypes_of_safetensors(tmp_path):
  path = tmp_path / 'model.safetensors'
  path.write_bytes(safetensors_bytes(4, shape=[4], dtype='F8_E4M3'))
  fails(path, "its array 'a' has dtype F8_E4M3, not one of bool, bfloat16")
