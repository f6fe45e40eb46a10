"""Image files of one's own: a folder of class folders, or a manifest.

Folder:     photos/cat/1.jpg, photos/dog/rex/7.PNG, ...: the first folder is the
            class. photos/train/cat/1.jpg and photos/val/cat/2.jpg are splits.
Manifest:   a .csv or .jsonl file of paths and labels, see `manifest`.

Where there are no splits, each image is in 'train' or, every tenth by a hash of
its path, in 'val'; images that are added later do not move the others. 'all' is
every image. Classes are in the order of their names, or of the lines of
`classes.txt` in the folder (`MANIFEST.classes.txt` of a manifest).
"""

import concurrent.futures
import functools
import hashlib
import os

import numpy as np
from etils import epath

from vit_jax.data import images, manifest, splits, tf

_SPLITS = ('train', 'val', 'valid', 'validation', 'test')
_VAL_EVERY = 10


class Files:
  """Paths and labels of all images of a folder or manifest.

  Attributes:
    class_names: tuple of str, or None if labels are numbers without names.
    num_classes: C.
    splits: dict from a split's name to the indices of its images, int64 [n].
    has_many_labels: whether an image may have any number of labels.
  """

  def __init__(self, rows, class_names, num_classes, root, many_labels=False):
    """Sorts what was found; see `load`.

    Args:
      rows: iterable of (split or None, path, labels), labels a list of ints.
      class_names: see above.
      num_classes: C.
      root: the folder that paths are relative to.
      many_labels: whether an image may have any number of labels, even if each
        of these has one.
    """
    self.class_names, self.num_classes = class_names, num_classes
    paths, path_ends, labels, label_ends, in_split = [], [], [], [], {}
    end = 0
    for number, (split, path, row_labels) in enumerate(rows):
      encoded = os.fsencode(path)
      paths.append(encoded)
      end += len(encoded)
      path_ends.append(end)
      labels.extend(row_labels)
      label_ends.append(len(labels))
      name = split or ('val' if _is_val(path) else 'train')
      in_split.setdefault(name, []).append(number)
    # One string, not millions of them: 14 million paths take under 1 GB.
    self._root, self._paths = root, b''.join(paths)
    self._path_ends = np.array([0, *path_ends], np.int64)
    self._labels = np.array(labels, np.int32)
    self._label_ends = np.array([0, *label_ends], np.int64)
    one_each = np.array_equal(label_ends, np.arange(1, len(label_ends) + 1))
    self.has_many_labels = many_labels or not one_each
    self.splits = {k: np.array(v, np.int64) for k, v in in_split.items()}
    self.splits.setdefault('all', np.arange(len(path_ends)))

  def path(self, index):
    """Returns the path of an image."""
    start, end = self._path_ends[index : index + 2]
    return os.path.join(self._root, os.fsdecode(self._paths[start:end]))

  def labels(self, index):
    """Returns the labels of an image, int32 [n]."""
    start, end = self._label_ends[index : index + 2]
    return self._labels[start:end]

  def targets(self, indices):
    """Returns int32 [n], or of several labels an image uint8 [n, C]."""
    if not self.has_many_labels:
      return self._labels[indices]
    targets = np.zeros([len(indices), self.num_classes], np.uint8)
    for row, index in enumerate(indices):
      targets[row, self.labels(index)] = 1
    return targets


class FilesSource:
  """A split of image files; see `sources`.

  Args:
    files: a `Files`.
    split: such as 'train', or 'val+train[90%:]'.
  """

  def __init__(self, files, split):
    self._files = files
    sizes = {name: len(rows) for name, rows in files.splits.items()}
    self._rows = np.concatenate(
      [
        files.splits[name][start:stop]
        for name, start, stop in splits.resolve(split, sizes)
      ]
    )
    many = files.has_many_labels
    self.spec = {
      'image': tf.TensorSpec((), tf.string),
      'label': tf.TensorSpec([files.num_classes], tf.uint8)
      if many
      else tf.TensorSpec((), tf.int32),
    }

  def __len__(self):
    return len(self._rows)

  def read(self, indices):
    rows = self._rows[indices]
    encoded = np.empty(len(rows), object)
    encoded[:] = list(_threads().map(self._read_or_nothing, rows.tolist()))
    return {'image': encoded, 'label': self._files.targets(rows)}

  def parse(self, record):
    return record

  def name(self, index):
    return self._files.path(self._rows[index])

  def reason(self, index):
    try:
      images.read(self.name(index))
    except Exception as error:  # damaged files fail in any way
      return getattr(error, 'strerror', None) or str(error)
    return None

  def _read_or_nothing(self, row):
    try:
      return images.read(self._files.path(row))
    except Exception:  # `reason` says why
      return b''


@functools.cache
def _threads():
  # More than cores: they wait for disks and networks.
  return concurrent.futures.ThreadPoolExecutor(16, 'read')


def load(path, class_names=None):
  """Returns the Files of a folder or manifest.

  Args:
    path: of a folder, or of a .csv or .jsonl file, which may be at gs://.
    class_names: tuple of the classes, if they are known, as of the training
      set that a set is evaluated for. Others are errors then.

  Raises:
    ValueError: if there are no images, or no classes, or lines that are wrong.
  """
  if path.endswith(manifest.EXTENSIONS):
    files = _open_manifest(path, class_names)
  else:
    files = _open_folder(path, class_names)
  if not len(files.splits['all']):
    raise ValueError(
      f'{path} has no images; {", ".join(images.EXTENSIONS)} files are read.'
    )
  return files


def _open_folder(path, class_names):
  if '://' in path:
    raise ValueError(
      f'{path} is a folder of single images far away; list them in a manifest '
      '(.csv, .jsonl), or pack them with `python -m vit_jax.data.prepare`.'
    )
  folders = _subfolders(path)
  if set(folders) <= set(_SPLITS) and 'train' in folders:
    found = [
      (split, os.path.join(path, split, name), name)
      for split in folders
      for name in _subfolders(os.path.join(path, split))
    ]
    tops = [os.path.join(path, split) for split in folders]
  else:
    found = [(None, os.path.join(path, name), name) for name in folders]
    tops = [path]
  for top in tops:
    loose = [
      n for n in os.listdir(top) if n.lower().endswith(images.EXTENSIONS)
    ]
    if loose:
      raise ValueError(
        f'{os.path.join(top, sorted(loose)[0])} is in no class folder; move it '
        f'to {os.path.join(top, "CLASS", "")}, or list images and labels in a '
        'manifest (.csv).'
      )
  listed = [
    (split, name, list(images.walk(folder))) for split, folder, name in found
  ]
  class_names = (
    class_names
    or _read_classes(os.path.join(path, 'classes.txt'))
    or tuple(sorted({name for _, name, paths in listed if paths}))
  )
  rows = (
    (split, os.path.relpath(image, path), [number])
    for split, name, paths in listed
    if paths
    for number in [_number(name, class_names, os.path.join(path, name))]
    for image in paths
  )
  return Files(rows, class_names, len(class_names), path)


def _subfolders(path):
  try:
    with os.scandir(path) as entries:
      return sorted(
        e.name for e in entries if e.is_dir() and not e.name.startswith('.')
      )
  except OSError as error:
    raise ValueError(f'{path}: {error.strerror}.') from None


def _number(name, class_names, where):
  try:
    return class_names.index(name)
  except ValueError:
    raise ValueError(
      f'{where}: {name!r} is not one of the {len(class_names)} classes '
      f'({", ".join(class_names[:5])}, ...); the classes are those of the '
      'training set, or of classes.txt.'
    ) from None


def _read_classes(path):
  path = epath.Path(path)
  if not path.exists():
    return None
  lines = path.read_text().splitlines()
  names = tuple(line.strip() for line in lines if line.strip())
  if len(set(names)) != len(names):
    raise ValueError(f'{path} names a class twice; each line is one class.')
  return names


def _open_manifest(path, class_names):
  rows = list(manifest.rows(path))
  named = {isinstance(label, str) for row in rows for label in row.labels}
  class_names = class_names or _read_classes(f'{path}.classes.txt')
  if len(named) == 2:
    raise ValueError(f'{path} has names and numbers as labels; use one kind.')
  if named == {True}:
    class_names = class_names or tuple(
      sorted({label for row in rows for label in row.labels})
    )
    numbers = {name: number for number, name in enumerate(class_names)}
    rows = [
      row._replace(
        labels=[
          numbers[name]
          if name in numbers
          else _number(name, class_names, f'{path}, line {row.line}')
          for name in row.labels
        ]
      )
      for row in rows
    ]
  largest = max((label for row in rows for label in row.labels), default=-1)
  num_classes = len(class_names) if class_names else largest + 1
  for row in rows:
    bad = [label for label in row.labels if not 0 <= label < num_classes]
    if bad:
      raise ValueError(
        f'{path}, line {row.line}: label {bad[0]} is not in [0, {num_classes}).'
      )
  many = any(row.many for row in rows)
  rows = ((row.split, row.path, row.labels) for row in rows)
  return Files(rows, class_names, num_classes, os.path.dirname(path), many)


def _is_val(path):
  digest = hashlib.blake2b(os.fsencode(path), digest_size=8).digest()
  return int.from_bytes(digest, 'big') % _VAL_EVERY == 0
