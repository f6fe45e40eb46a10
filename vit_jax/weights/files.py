"""Files of arrays: `.npz` and `.safetensors`, read without trusting them.

Nothing here reads a pickle, and a file's claims about sizes are checked against
its length before any memory is taken.
"""

import difflib
import math
import zipfile

import ml_dtypes
import numpy as np
import safetensors.numpy

from vit_jax import storage

# The dtypes that can be read and written, by safetensors' names.
_DTYPES = {
  'BOOL': np.dtype('bool'),
  'BF16': np.dtype(ml_dtypes.bfloat16),
  **{f'F{8 * size}': np.dtype(f'f{size}') for size in (2, 4, 8)},
  **{f'I{8 * size}': np.dtype(f'i{size}') for size in (1, 2, 4, 8)},
  **{f'U{8 * size}': np.dtype(f'u{size}') for size in (1, 2, 4, 8)},
}
SUFFIXES = ('.npz', '.safetensors')
_ALLOWED = ', '.join(map(str, _DTYPES.values()))
_VOID2 = np.dtype('V2')  # how numpy stores bfloat16
_CHUNK = 2**24  # bytes


def read(path):
  """Returns dict from name to numpy array, in the dtype of the file.

  Args:
    path: a `.npz` or `.safetensors` file, local or at gs://.

  Raises:
    ValueError: if there is no such file, it is of another kind, or damaged in
      any way: with the file, what is wrong, and what to do.
  """
  return _load(path, with_arrays=True)


def headers(path):
  """Returns dict from name to (shape, dtype); otherwise as `read`.

  Damage inside of the arrays is not noticed. A file at gs:// is copied whole.
  """
  return _load(path, with_arrays=False)


def metadata(path):
  """Returns the dict of str in a `.safetensors` file, {} of other files."""
  path = storage.path(path)
  if path.suffix != '.safetensors':
    return {}
  with (
    storage.local_copy(path) as local,
    safetensors.safe_open(local, 'np') as file,
  ):
    return file.metadata() or {}


def write(path, arrays, metadata=None, overwrite=False):
  """Writes a file that `read` reads; it is there as a whole or not at all.

  Args:
    path: a `.npz` or `.safetensors` file, local or gs://; its folder is made.
    arrays: dict from name to array of bools, integers or floats.
    metadata: dict from str to str, for `.safetensors` only.
    overwrite: whether an existing file may be replaced.

  Raises:
    ValueError: on another suffix, an existing file, an array of another dtype,
      metadata that cannot be kept, or a folder that cannot be written.
  """
  path = storage.path(path)
  _check_suffix(path)
  if metadata and path.suffix == '.npz':
    raise ValueError(f'{path} cannot hold metadata; name it .safetensors.')
  # The library of safetensors writes memory as it lies.
  arrays = {name: np.asarray(a, order='C') for name, a in arrays.items()}
  for name, array in arrays.items():
    if array.dtype not in _DTYPES.values():
      raise ValueError(
        f'{path}: the array {name!r} has dtype {array.dtype}; convert it to '
        f'one of {_ALLOWED}.'
      )
  storage.check(path)
  save = _save_npz if path.suffix == '.npz' else _save_safetensors
  try:
    if path.exists() and not overwrite:
      raise ValueError('it exists, and is not to be overwritten')
    with storage.whole_file(path) as partial:
      save(partial, arrays, metadata)
  except Exception as error:  # buckets have many kinds
    reason = storage.explain(error, path)
    raise ValueError(
      f'{path} cannot be written: {reason}; mend that, or choose another name.'
    ) from None


def _load(path, with_arrays):
  path = storage.path(path)
  _check_suffix(path)
  load = _load_npz if path.suffix == '.npz' else _load_safetensors
  advice = ''
  try:
    _check_is_file(path)
    advice = '; if it was downloaded, delete it and download it again'
    with storage.local_copy(path) as local:
      _check_start(local)
      return load(local, with_arrays)
  except Exception as error:  # zipfile, safetensors, ... have many kinds
    reason = storage.explain(error, path)
    raise ValueError(f'{path} cannot be read: {reason}{advice}.') from None


def _check_suffix(path):
  if path.suffix not in SUFFIXES:
    raise ValueError(
      f'{path} is neither .npz nor .safetensors. Other formats are pickles or '
      'may hold them, and pickles are never read: they can run any code. Get a '
      '.safetensors file, or write one where you trust the pickle: '
      "safetensors.torch.save_file(model.state_dict(), 'model.safetensors'), "
      'or model.save_pretrained(folder) of timm and transformers.'
    )


def _check_is_file(path):
  if path.is_dir():
    raise ValueError('it is a folder; name a file in it')
  if path.exists():
    return
  reason = storage.problem(path)  # what is missing may be the bucket
  if reason:
    raise ValueError(reason)
  folder = path.parent
  names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
  near = ', '.join(difflib.get_close_matches(path.name, names, 3, 0.5))
  there = f'; its folder has {near}' if near else ''
  raise ValueError(f'it does not exist{there}')


def _check_start(path):
  """Raises ValueError on what failed downloads leave behind."""
  with path.open('rb') as file:
    start = file.read(64)
  if not start:
    raise ValueError('it is empty')
  text = start.decode('latin-1')
  # Both formats have bytes among the first that no text has.
  if text.isascii() and all(c.isprintable() or c.isspace() for c in text):
    raise ValueError(
      f'it is a text, {text[:40]!r}...; a download that was refused leaves '
      'such a page'
    )
  if path.suffix == '.safetensors':
    return
  if start[:2] != b'PK':
    raise ValueError(f'it is no zip archive, but begins with {start[:8]!r}')
  if not zipfile.is_zipfile(path):
    raise ValueError('its end is missing, as when a download was cut off')


def _load_npz(path, with_arrays):
  """Returns the arrays of a `.npz` file, or their shapes and dtypes."""
  arrays = {}
  with zipfile.ZipFile(path) as archive:
    members = archive.infolist()
    _check_members(members, path.stat().st_size)
    for member in members:
      name = member.filename.removesuffix('.npy')
      try:
        with archive.open(member) as file:
          shape, fortran_order, dtype = _npy_header(file, member.file_size)
          if with_arrays:
            arrays[name] = _npy_array(file, shape, fortran_order, dtype)
          else:
            arrays[name] = shape, _understood(dtype)
      except Exception as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f'its array {name!r} is damaged ({reason})') from None
  return arrays


def _check_members(members, file_size):
  names = set()
  for member in members:
    name = member.filename
    if not name.endswith('.npy'):
      raise ValueError(
        f'it holds {name!r}, which is no array; it may be a PyTorch file under '
        'a wrong name, and pickles are never read'
      )
    if name in names:
      raise ValueError(f'it holds {name!r} twice')
    names.add(name)
    if member.flag_bits & 1:
      raise ValueError(f'{name!r} is encrypted')
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
      raise ValueError(
        f'{name!r} has compression method {member.compress_type}; numpy writes '
        '0 (none) or 8 (deflate)'
      )
  # Weights hardly shrink; what shrinks more is made to fill the memory.
  size, allowed = sum(m.file_size for m in members), max(2**26, 20 * file_size)
  if size > allowed:
    raise ValueError(
      f'its {file_size:,} bytes claim to unpack to {size:,}; at most '
      f'{allowed:,} are allowed. Were it real, save it again with np.savez, '
      'which does not compress'
    )


def _npy_header(file, file_size):
  """Returns shape, whether in Fortran order, and dtype of a checked header."""
  version = np.lib.format.read_magic(file)
  if version not in ((1, 0), (2, 0)):
    raise ValueError(f'version {version} of the npy format is not for numbers')
  read_header = getattr(np.lib.format, f'read_array_header_{version[0]}_0')
  shape, fortran_order, dtype = read_header(file, max_header_size=10_000)
  if dtype.hasobject:
    raise ValueError('it holds Python objects; pickles are never read')
  if _understood(dtype) not in _DTYPES.values():
    raise ValueError(f'its dtype {dtype} is not one of {_ALLOWED}')
  if len(shape) > 32 or not all(0 <= size < 2**63 for size in shape):
    raise ValueError(f'its shape {shape} is impossible')
  expected = file.tell() + math.prod(shape) * dtype.itemsize
  if expected != file_size:
    raise ValueError(
      f'shape {shape} of {dtype} needs {expected:,} bytes, it has {file_size:,}'
    )
  return shape, fortran_order, dtype


def _npy_array(file, shape, fortran_order, dtype):
  flat = np.empty(math.prod(shape), dtype)
  data, position = memoryview(flat.view(np.uint8)), 0
  while position < len(data):
    count = file.readinto(data[position : position + _CHUNK])
    if not count:
      raise ValueError('it ends too early')
    position += count
  file.read()  # zipfile checks the CRC at the end
  if dtype == _VOID2:
    flat = flat.view(_DTYPES['BF16'])
  array = flat.reshape(shape, order='F' if fortran_order else 'C')
  return array.astype(_understood(dtype), copy=False)


def _understood(dtype):
  """Returns the dtype that an array of this one is read as."""
  if dtype == _VOID2:
    return _DTYPES['BF16']
  return dtype.newbyteorder('=')


def _load_safetensors(path, with_arrays):
  """Returns the arrays of a file, or their shapes and dtypes."""
  arrays = {}
  # The library checks the header against the length of the file.
  with safetensors.safe_open(path, framework='np') as file:
    for name in file.keys():  # noqa: SIM118  (it is no dict)
      entry = file.get_slice(name)
      dtype = _DTYPES.get(entry.get_dtype())
      if dtype is None:
        wrong = f'its array {name!r} has dtype {entry.get_dtype()}'
        raise ValueError(f'{wrong}, not one of {_ALLOWED}')
      if with_arrays:
        arrays[name] = file.get_tensor(name)
      else:
        arrays[name] = tuple(entry.get_shape()), dtype
  return arrays


def _save_npz(path, arrays, _):
  # Not np.savez, which takes the name 'file' for its own argument.
  with path.open('wb') as file, zipfile.ZipFile(file, 'w') as archive:
    for name, array in arrays.items():
      if array.dtype == _DTYPES['BF16']:
        array = array.view(_VOID2)
      with archive.open(f'{name}.npy', 'w', force_zip64=True) as member:
        np.lib.format.write_array(member, array, allow_pickle=False)


def _save_safetensors(path, arrays, metadata):
  safetensors.numpy.save_file(arrays, path, metadata)
