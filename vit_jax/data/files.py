"""Image files of one's own: a folder of class folders, or a manifest.

Folder:     photos/cat/1.jpg, photos/dog/rex/7.PNG, ...: the first folder is the
            class. photos/train/cat/1.jpg and photos/val/cat/2.jpg are splits,
            'train', 'val' and 'test', also as Training, valid, validation and
            testing. Without 'val', it is 'test' under another name.
Manifest:   a .csv or .jsonl file of paths and labels, see `manifest`.

Where there are no splits, each image is in 'train' or, every tenth by a hash of
its path, in 'val'. Of a class of two images or more where that is none, 'val'
has the one with the lowest hash (where images have many labels: of the whole
set). Images that are added later do not move others but that one. 'all' is
every image. Classes are in the order of their names, or of the lines of
`classes.txt` in the folder (`MANIFEST.classes.txt` of a manifest).
"""

import array
import concurrent.futures
import functools
import hashlib
import os

import numpy as np

from vit_jax import storage
from vit_jax.data import classes, folders, images, manifest, splits, tf

_VAL_EVERY = 10


class Table:
  """Rows of `Files`, read one by one into a few arrays.

  14 million of them take 1 GB; as objects of Python it would be ten.

  Attributes:
    paths: bytearray, one behind the other.
    path_ends: int64 [n + 1].
    labels: int32, of all images.
    label_ends: int64 [n + 1].
  """

  def __init__(self, rows):
    self.paths, path_ends = bytearray(), array.array('q', [0])
    labels, label_ends = array.array('i'), array.array('q', [0])
    hashes, splits = array.array('Q'), array.array('I')
    self._split_names = {None: 0}
    for split, path, row_labels in rows:
      self.paths += os.fsencode(path)
      path_ends.append(len(self.paths))
      labels.extend(row_labels)
      label_ends.append(len(labels))
      split = split or None
      hashes.append(0 if split else _hash(path))
      splits.append(self._split_names.setdefault(split, len(self._split_names)))
    self.path_ends = np.frombuffer(path_ends, np.int64)
    self.label_ends = np.frombuffer(label_ends, np.int64)
    self.labels, self._hashes, self._splits = (
      np.frombuffer(x, kind) if x else np.zeros(0, kind)
      for x, kind in (
        (labels, np.int32), (hashes, np.uint64), (splits, np.uint32)
      )
    )  # fmt: skip

  def __len__(self):
    return len(self._splits)

  def splits(self, labels):
    """Returns a dict from names to indices of images, int64 [n], in order.

    Args:
      labels: int32 [n], of which each has to be in 'val', or None.
    """
    names, chosen = dict(self._split_names), self._splits.copy()
    free = chosen == 0
    if free.any():
      train, val = (names.setdefault(x, len(names)) for x in ('train', 'val'))
      held_out = _held_out(
        self._hashes[free],
        np.zeros(free.sum(), np.int32) if labels is None else labels[free],
      )
      chosen[free] = np.where(held_out, val, train)
    ends = np.bincount(chosen, minlength=len(names)).cumsum()
    parts = np.split(np.argsort(chosen, kind='stable'), ends[:-1])
    found = zip(names, parts, strict=True)
    return {name: part for name, part in found if len(part)}


def _held_out(hashes, groups):
  """Returns which images are in 'val', bool [n]: every tenth by its hash.

  In a group (of one label) of two images or more where that is none, it is the
  one with the lowest hash. The order of the images does not matter.

  Args:
    hashes: uint64 [n].
    groups: int32 [n].
  """
  held_out = hashes % _VAL_EVERY == 0
  size = groups.max() + 1
  lowest = np.full(size, np.iinfo(np.uint64).max)
  highest = np.zeros(size, np.uint64)
  np.minimum.at(lowest, groups, hashes)
  np.maximum.at(highest, groups, hashes)  # the lowest: one path, many times
  lacking = (lowest < highest) & ~np.isin(np.arange(size), groups[held_out])
  return held_out | (lacking[groups] & (hashes == lowest[groups]))


def _hash(path):
  digest = hashlib.blake2b(os.fsencode(path), digest_size=8).digest()
  return int.from_bytes(digest, 'big')


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
      rows: iterable of (split or None, path, labels), labels a list of ints; or
        a `Table` of them.
      class_names: see above.
      num_classes: C.
      root: the folder that paths are relative to.
      many_labels: whether an image may have any number of labels, even if each
        of these has one.
    """
    table = rows if isinstance(rows, Table) else Table(rows)
    self.class_names, self.num_classes = class_names, num_classes
    self._root, self._paths = root, table.paths
    self._path_ends, self._labels = table.path_ends, table.labels
    self._label_ends = table.label_ends
    one_each = np.array_equal(self._label_ends, np.arange(len(table) + 1))
    self.has_many_labels = many_labels or not one_each
    self.splits = table.splits(None if self.has_many_labels else self._labels)
    self.splits.setdefault('all', np.arange(len(table)))

  def path(self, index):
    """Returns the path of an image."""
    start, end = self._path_ends[index : index + 2]
    return os.path.join(self._root, os.fsdecode(bytes(self._paths[start:end])))

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
    named = dict(files.splits)
    if 'train' in named and 'test' in named:  # what recipes evaluate is 'val'
      named.setdefault('val', named['test'])
    sizes = {name: len(rows) for name, rows in named.items()}
    self._rows = np.concatenate(
      [
        named[name][start:stop]
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
      return images.in_words(error)
    return None

  def _read_or_nothing(self, row):
    try:
      return images.read(self._files.path(row))
    except storage.StoreError:  # the image may be good
      raise
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
  if path.lower().endswith(manifest.EXTENSIONS):
    return _open_manifest(path, class_names)
  if '://' in path:
    raise ValueError(
      f'{path} is a folder of single images far away; list them in a manifest '
      '(.csv, .jsonl), or pack them with `python -m vit_jax.data.prepare`.'
    )
  if os.path.isfile(path):
    raise ValueError(
      f'{path} is a file that is not read; give a manifest '
      f'({", ".join(manifest.EXTENSIONS)}; commas between columns) or a '
      'folder of class folders.'
    )
  table, class_names = folders.open_folder(path, class_names, Table)
  if not len(table):
    raise ValueError(
      f'{path} has no images; {", ".join(images.EXTENSIONS)} files are read.'
    )
  return Files(table, class_names, len(class_names), path)


def _open_manifest(path, class_names):
  class_names = class_names or classes.read(f'{path}.classes.txt')
  known = classes.Classes(class_names)
  many = False

  def rows():
    nonlocal many
    for row in manifest.rows(path):
      many |= row.many
      where = f'{path}, line {row.line}'
      labels = [known.number(label, where) for label in row.labels]
      yield row.split, row.path, labels

  table = Table(rows())
  if not len(table):
    raise ValueError(
      f'{path} lists no images; write one a line, its path and its label.'
    )
  class_names, num_classes = known.finish(table.labels, path)
  return Files(table, class_names, num_classes, os.path.dirname(path), many)
