"""Shards: a data set packed into a few large files that are read at random.

A folder, local or gs://, has array_record files and their table, see
`shard_table`. A record is a serialized tf.train.Example: image (bytes as
`images.standard` gives them), labels (int64, one or many) and name (bytes). The
split 'all' is all splits one after the other. `python -m vit_jax.data.prepare`
writes shards.
"""

import concurrent.futures
import functools
import os
from typing import NamedTuple

import numpy as np

from vit_jax import storage
from vit_jax.data import shard_table, sources, splits, tf

_THREADS = 32  # they wait for disks and networks


class _Piece(NamedTuple):
  """Part of a shard, as array_record wants it: a range of its records."""

  filename: str
  skip: int
  take: int
  examples_in_shard: int


def is_prepared(path):
  """Returns whether an `epath.Path` is a folder of shards, or becomes one."""
  with storage.errors(path):
    packing = (path / shard_table.STATE).exists()
  return packing or shard_table.is_table(path)


def array_record():
  """Returns array_record's modules: of reader and writer, of the data source.

  Raises:
    ValueError: if it is not installed.
  """
  try:
    from array_record.python import (
      array_record_data_source,
      array_record_module,
    )
  except ModuleNotFoundError as error:
    raise ValueError(
      f"Shards need {error.name}; run `pip install -e '.[data]'`."
    ) from None
  return array_record_module, array_record_data_source


def load(path, split):
  """Returns (source, num_classes, class_names) of a split; see `sources`.

  Args:
    path: epath.Path of the folder.
    split: such as 'train', 'val+train[90%:]' or 'all'.

  Raises:
    ValueError: if dataset.json is wrong, the split is none, or one of its
      shards is missing, cut short, or another file.
  """
  table = shard_table.read(path)
  return open_split(path, table, split), table.num_classes, table.class_names


def open_split(path, table, split):
  """Returns the source of a split of a Table; see `load`."""
  shards = dict(table.splits)
  shards.setdefault('all', tuple(s for part in shards.values() for s in part))
  sizes = {k: sum(s.num_examples for s in v) for k, v in shards.items()}
  pieces = [
    piece
    for name, start, stop in splits.resolve(split, sizes)
    for piece in _pieces(path, shards[name], start, stop)
  ]
  if not pieces:
    raise ValueError(f'split={split!r} of {path} has no examples.')
  used = {piece.filename for piece in pieces}
  files = {
    os.fspath(path / shard.file): shard
    for part in shards.values()
    for shard in part
  }
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    check = functools.partial(_check_shard, path)
    list(pool.map(check, [files[name] for name in sorted(used)]))
  return ShardsSource(pieces, table.num_classes, table.many_labels)


class ShardsSource:
  """Examples of shards; see `sources`.

  Args:
    pieces: list of ranges of records: filename, skip, take, examples_in_shard.
    num_classes: C.
    many_labels: whether labels become targets [C].
  """

  def __init__(self, pieces, num_classes, many_labels):
    self._pieces = pieces
    _, data_source = array_record()
    self._ends = np.cumsum([piece.take for piece in pieces])
    self._records = data_source.ArrayRecordDataSource(pieces)
    self._num_classes, self._many_labels = num_classes, many_labels
    self.spec = {'record': tf.TensorSpec((), tf.string)}

  def __len__(self):
    return int(self._ends[-1])

  def read(self, indices):
    return {'record': sources.read_records(self._records, indices)}

  def parse(self, record):
    """Returns 'image', encoded, and 'label', int32 [] or uint8 [C]."""
    many = self._many_labels
    features = {
      'image': tf.io.FixedLenFeature((), tf.string),
      'labels': tf.io.RaggedFeature(tf.int64)
      if many
      else tf.io.FixedLenFeature((), tf.int64),
    }
    example = tf.io.parse_single_example(record['record'], features)
    label = example['labels']
    if many:
      label = sources.targets(label, self._num_classes)
    else:
      label = tf.cast(sources.existing(label, self._num_classes), tf.int32)
    return {'image': example['image'], 'label': label}

  def name(self, index):
    piece = int(np.searchsorted(self._ends, index, side='right'))
    start = self._ends[piece] - self._pieces[piece].take
    row = int(index - start) + self._pieces[piece].skip
    place = f'{self._pieces[piece].filename}, record {row}'
    try:
      name = read_example(self._records[int(index)])[2]
    except Exception:  # as `reason` says
      return place
    return f'{name} ({place})'

  def reason(self, index):
    if failed := sources.why_unreadable(self._records, index):
      return failed
    try:
      _, labels, _ = read_example(self._records[int(index)])
    except Exception as error:  # protobuf's own kinds
      return f'the record is no example: {error}'
    outside = [x for x in labels if not 0 <= x < self._num_classes]
    if outside:
      return f'label {outside[0]} is not in [0, {self._num_classes})'
    if not self._many_labels and len(labels) != 1:
      return f'it has {len(labels)} labels, not one'
    return None


def make_example(image, labels, name):
  """Returns the record, bytes, of an image: encoded, list of int, str."""
  features = tf.train.Features(
    feature={
      'image': _bytes_feature(image),
      'labels': tf.train.Feature(
        int64_list=tf.train.Int64List(value=[int(label) for label in labels])
      ),
      'name': _bytes_feature(os.fsencode(name)),
    }
  )
  example = tf.train.Example(features=features)
  return example.SerializeToString(deterministic=True)


def read_example(record):
  """Returns (image, labels, name) of a record; see `make_example`."""
  feature = tf.train.Example.FromString(record).features.feature
  (image,) = feature['image'].bytes_list.value
  (name,) = feature['name'].bytes_list.value
  return image, list(feature['labels'].int64_list.value), os.fsdecode(name)


def _bytes_feature(value):
  return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))


def _pieces(path, shards, start, stop):
  """Yields the parts of shards that hold examples start to stop."""
  first = 0
  for shard in shards:
    skip = max(start - first, 0)
    take = min(stop - first, shard.num_examples) - skip
    if take > 0:
      yield _Piece(os.fspath(path / shard.file), skip, take, shard.num_examples)
    first += shard.num_examples


def _check_shard(path, shard):
  """Raises ValueError if a shard is not the file that the table tells of."""
  file = path / shard.file
  try:
    with storage.errors(file):
      size = file.stat().length
  except FileNotFoundError:
    raise ValueError(f'{file} is missing; {shard_table.again(path)}') from None
  if size != shard.num_bytes:
    raise ValueError(
      f'{file} has {size:,} bytes, not {shard.num_bytes:,}; '
      f'{shard_table.again(path)}'
    )
  if storage.is_remote(file):  # to open thousands over a network takes minutes
    return
  found = num_records(file)
  if found != shard.num_examples:
    raise ValueError(
      f'{file} has {found:,} records, not {shard.num_examples:,}; '
      f'{shard_table.again(path)}'
    )


def num_records(file):
  """Returns the number of records of a shard; 0 if it is damaged."""
  module, _ = array_record()
  try:
    reader = module.ArrayRecordReader(
      os.fspath(file), 'readahead_buffer_size:0,max_parallelism:0'
    )
    try:
      return reader.num_records()
    finally:
      reader.close()
  except RuntimeError:  # what C++ raises
    return 0
