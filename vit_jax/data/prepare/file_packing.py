"""Folders of images and manifests, as what is to be packed into shards."""

import concurrent.futures
import functools
import hashlib
import os

from etils import epath

from vit_jax.data import files, images, manifest
from vit_jax.data.prepare import packing

_MOST_SIZES = 10_000  # files whose sizes are looked at; of more, a sample


def default_out(path):
  """Returns the folder of the shards of a folder or manifest: beside it."""
  path = os.path.abspath(os.path.expanduser(path))
  if path.lower().endswith(manifest.EXTENSIONS):
    path = os.path.splitext(path)[0]
  return f'{path}_shards'


def inputs(path, class_names=None, one_split=None):
  """Returns packing.Inputs of a folder of images or a manifest.

  Splits and labels are those that the same path has as a data set. A rerun
  packs again what has another size or time than it had.

  Args:
    path: of the folder or manifest, local.
    class_names: tuple of the classes, if they are known.
    one_split: name of the one split that is made of a folder which has none of
      its own.

  Raises:
    ValueError: as of `files.load`.
  """
  if '://' in path:
    raise ValueError(
      f'{path!r}: folders and manifests that are packed are local; the images '
      'that a manifest lists, and --out, may be elsewhere.'
    )
  path = os.path.abspath(os.path.expanduser(path))
  if not os.path.exists(path):
    raise ValueError(f'{path} does not exist.')
  found = files.load(path, class_names)
  root = path if os.path.isdir(path) else os.path.dirname(path)
  splits = dict(found.splits)
  has_own = path != root or os.path.isdir(os.path.join(path, 'train'))
  if one_split and not has_own:
    splits = {one_split: splits['all']}
  elif len(splits) > 1 and len(splits['all']) == sum(
    len(rows) for name, rows in splits.items() if name != 'all'
  ):
    del splits['all']  # the others, which shards join by themselves
  every = splits.get('all', found.splits['all'])
  return packing.Inputs(
    source=_digest(found, splits, root),
    num_classes=found.num_classes,
    class_names=found.class_names,
    many_labels=found.has_many_labels,
    splits={
      name: functools.partial(_images, found, rows, root)
      for name, rows in splits.items()
    },
    num_images={name: len(rows) for name, rows in splits.items()},
    num_bytes=_num_bytes(found, every),
    stamps={
      name: functools.partial(_stamps, found, rows)
      for name, rows in splits.items()
    },
  )


def _images(found, rows, root, position):
  """Yields packing.Images behind a position, the place in the split."""
  start = 0 if position is None else position + 1
  for place in range(start, len(rows)):
    path = found.path(rows[place])
    yield packing.Image(
      place,
      _name(path, root),
      found.labels(rows[place]).tolist(),
      functools.partial(images.read, path),
      functools.partial(_stamp, path),
    )


def _stamps(found, rows, position, end):
  """Returns the stamps of the images behind a position, up to another."""
  start = 0 if position is None else position + 1
  paths = (found.path(row) for row in rows[start : end + 1])
  with concurrent.futures.ThreadPoolExecutor(16) as pool:
    return list(pool.map(_stamp, paths))


def _stamp(path):
  """Returns text that is another when a file has changed; '' without one."""
  try:
    if '://' in path:
      status = epath.Path(path).stat()
      return f'{status.length} {status.mtime}'
    status = os.stat(path)
  except OSError:
    return ''
  # The last tells of permissions, and of older files that were moved here.
  return f'{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}'


def _name(path, root):
  return path.removeprefix(os.path.join(root, ''))


def _digest(found, splits, root):
  """Returns text that tells these splits, names and labels from others."""
  digest = hashlib.blake2b(digest_size=16)
  digest.update(repr((found.num_classes, found.class_names)).encode())
  for split, rows in splits.items():
    digest.update(f'{split} {len(rows)}\0'.encode())
    for row in rows:
      digest.update(os.fsencode(_name(found.path(row), root)) + b'\0')
      digest.update(found.labels(row).tobytes() + b'\0')
  return f'files {digest.hexdigest()}'


def _num_bytes(found, rows):
  """Returns the bytes of all images, roughly; those not there count nothing."""
  sample = rows[:: -(-len(rows) // _MOST_SIZES)]
  with concurrent.futures.ThreadPoolExecutor(16) as pool:
    sizes = list(pool.map(lambda row: _size(found.path(row)), sample))
  return round(sum(sizes) * len(rows) / len(sample))


def _size(path):
  try:
    return epath.Path(path).stat().length
  except OSError:  # reading it will say why
    return 0
