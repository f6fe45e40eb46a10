"""The table of a folder of shards: `dataset.json`.

  {"format": 1, "num_classes": 3, "class_names": ["cat", ...] or null,
   "many_labels": false, "source": "what it was packed from" (may be missing),
   "splits": {"train": [{"file": "train-00000.array_record",
                         "num_examples": 1834, "num_bytes": 200012345}, ...]}}

It may come from anywhere, so that nothing in it is taken on trust.
"""

import json
import re
from collections.abc import Mapping
from typing import NamedTuple

from vit_jax import names, storage

NAME = 'dataset.json'
# What a packing that is not over knows; hidden, so that it is no class.
STATE = '.packing'
_FORMAT = 1
_FILE_NAME = re.compile(r'[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}')
_MAX_TABLE_BYTES = 2**27  # of a million shards
_MAX_CLASSES = 10**7
_MAX_COUNT = 2**48


class Shard(NamedTuple):
  """One array_record file: its name, number of examples, and size in bytes."""

  file: str
  num_examples: int
  num_bytes: int


class Table(NamedTuple):
  """What dataset.json says.

  Attributes:
    num_classes: C.
    class_names: tuple of str, or None.
    many_labels: whether an image may have other than one label.
    splits: dict from name to a tuple of Shard.
    source: str that tells what it was packed from, or None.
  """

  num_classes: int
  class_names: tuple[str, ...] | None
  many_labels: bool
  splits: Mapping[str, tuple[Shard, ...]]
  source: str | None = None


def is_table(path):
  """Returns whether a folder's dataset.json may be a table of shards.

  Other programs write files of that name; what is wrong with it, `read` says.
  """
  file = path / NAME
  try:
    with storage.errors(file), file.open('rb') as table:
      text = table.read(_MAX_TABLE_BYTES)
  except storage.StoreError:
    raise
  except OSError:
    return False
  return b'"format"' in text and b'"splits"' in text


def read(path):
  """Returns the Table of a folder, an `epath.Path`; raises ValueError."""
  file = path / NAME
  try:
    with storage.errors(file):
      size = file.stat().length
      text = file.read_text() if size <= _MAX_TABLE_BYTES else None
  except FileNotFoundError:
    raise ValueError(
      f'{path} was not packed to its end; {again(path)}'
    ) from None
  except (OSError, UnicodeDecodeError) as error:
    reason = storage.explain(error, file)
    raise ValueError(f'{file} cannot be read: {reason}.') from None
  if text is None:
    raise ValueError(
      f'{file} has {size:,} bytes, more than {_MAX_TABLE_BYTES:,}: it is no '
      'table of shards.'
    )
  try:
    return _table(json.loads(text))
  except (ValueError, RecursionError) as error:
    raise ValueError(f'{file}: {error} {again(path)}') from None


def check_split(name):
  """Raises ValueError if no files can be named after a split."""
  if name == 'all' or not re.fullmatch('[A-Za-z0-9_]{1,100}', name):
    raise ValueError(
      f'split={name!r} cannot be packed: a name is 1 to 100 of A-Z, a-z, 0-9 '
      "and _, and not 'all', which is every split; rename it."
    )


def again(path):
  """Returns what to do about shards that are missing or wrong."""
  return (
    'run the command that packed it again, `python -m vit_jax.data.prepare '
    f'... --out={path}`: it writes only what is missing.'
  )


def _table(read):
  """Returns the Table of what was read from JSON; raises ValueError."""
  if not isinstance(read, dict):
    raise ValueError('it is no object.')
  fields = ('format', 'num_classes', 'class_names', 'many_labels', 'splits')
  names.check_fields(read, 'the table', fields, ['source'])
  if read['format'] != _FORMAT or type(read['format']) is not int:
    raise ValueError(
      f'format={read["format"]!r} is not {_FORMAT}, which is all that this '
      'version reads.'
    )
  num_classes = _count(read['num_classes'], 'num_classes', 1, _MAX_CLASSES)
  class_names = read['class_names']
  if class_names is not None and not (
    isinstance(class_names, list)
    and len(class_names) == num_classes
    and all(isinstance(name, str) for name in class_names)
  ):
    raise ValueError(f'class_names is not null or {num_classes:,} names.')
  if not isinstance(read['many_labels'], bool):
    raise ValueError(f'many_labels={read["many_labels"]!r} is not a bool.')
  if not isinstance(read.get('source'), str | None):
    raise ValueError('source is no text.')
  if not isinstance(read['splits'], dict) or not read['splits']:
    raise ValueError('splits is not an object of at least one split.')
  parts = {name: _shards(name, part) for name, part in read['splits'].items()}
  files = [shard.file for part in parts.values() for shard in part]
  if len(set(files)) != len(files):
    raise ValueError('splits has a file twice.')
  return Table(
    num_classes,
    tuple(class_names) if class_names is not None else None,
    read['many_labels'],
    parts,
    read.get('source'),
  )


def _shards(name, part):
  field = f'splits.{name}'
  if not re.fullmatch(r'\w{1,100}', name) or not isinstance(part, list):
    raise ValueError(f'{field[:200]!r} is not a name with a list of shards.')
  for shard in part:
    if not isinstance(shard, dict):
      raise ValueError(f'{field} has a shard that is no object.')
    names.check_fields(shard, field, Shard._fields)
    if not isinstance(shard['file'], str) or not _FILE_NAME.fullmatch(
      shard['file']
    ):
      raise ValueError(
        f'{field}: file={shard["file"]!r} is not the name of a file in the '
        'folder (letters, digits, _, . and -).'
      )
    _count(shard['num_examples'], f'{field}.num_examples', 0, _MAX_COUNT)
    _count(shard['num_bytes'], f'{field}.num_bytes', 1, _MAX_COUNT)
  return tuple(Shard(**shard) for shard in part)


def _count(value, field, least, most):
  if type(value) is not int or not least <= value <= most:
    raise ValueError(
      f'{field}={value!r} is not a whole number from {least} to {most:,}.'
    )
  return value
