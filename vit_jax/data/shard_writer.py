"""Writes shards, so that it may be killed at any moment and be run again.

Besides the shards, the folder `.packing` has a small file for each shard that
is whole: where it ends, what was left out. A rerun skips those, writes again
any whose shard is gone or cut short or whose files have changed since, and goes
on behind the last; without changes all is, byte for byte, as without the kill.
"""

import contextlib
import functools
import json
import os
import pathlib
import tempfile
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from etils import epath

from vit_jax import storage
from vit_jax.data import shard_table, shards

# Large enough that object stores read them at full speed and that ImageNet-21k
# is some thousand files, small enough that a kill costs a minute at most.
BYTES_PER_SHARD = 200_000_000
# Group size 1 reads single records. JPEG and PNG do not shrink further: any
# compression costs time, and makes the bytes depend on a library's version.
_WRITER_OPTIONS = 'group_size:1,uncompressed'


class Example(NamedTuple):
  """An example to write.

  Attributes:
    position: from where to go on after it; anything that JSON holds.
    name: what to call it.
    record: bytes as `shards.make_example` gives them, or None if it is bad.
    reason: why it is bad, or None.
    stamp: what differs when its file has changed.
  """

  position: Any
  name: str
  record: bytes | None
  reason: str | None = None
  stamp: str = ''


class Written(NamedTuple):
  """A shard that is whole.

  Attributes:
    shard: its line of the table.
    end: position of its last example.
    bad: names and reasons of what was left out of it.
    is_last: whether it is the last of its split.
    stamp: CRC-32 of the stamps of all its examples, bad ones too.
  """

  shard: shard_table.Shard
  end: Any
  bad: Sequence[tuple[str, str]]
  is_last: bool
  stamp: int


@contextlib.contextmanager
def folder(path, source, splits):
  """Makes a folder ready to write shards to, and keeps others from it.

  Args:
    path: epath.Path, local or gs://.
    source: str that tells this data set, and how it is packed, from others.
    splits: names of all splits that will be written.

  Raises:
    ValueError: if there is anything else in it, another process writes it, it
      cannot be made, or a split's name cannot be part of a file's.
  """
  for split in splits:
    shard_table.check_split(split)
  storage.check(path, '--out')
  state = path / shard_table.STATE
  if path.exists() and not path.is_dir():
    raise ValueError(f'--out={path} is a file; give a folder.')
  if shard_table.is_table(path):
    _check_source(path, shard_table.read(path).source, source)
  elif (state / 'source.json').exists():
    _check_source(path, _read_json(state / 'source.json'), source)
  elif path.exists() and not state.exists() and any(path.iterdir()):
    raise ValueError(
      f'--out={path} is not empty, and nothing in it is from a packing; give '
      'another folder.'
    )
  try:
    state.mkdir(parents=True, exist_ok=True)
    _write_json(state / 'source.json', source)
  except OSError as error:
    raise ValueError(
      f'--out={path} cannot be written: {error.strerror or error}; give '
      'another folder.'
    ) from None
  with _lock(state):
    yield


def _check_source(path, found, source):
  if found != source:
    raise ValueError(
      f'--out={path} has another data set, or this one before images were '
      'added, removed, renamed or labelled anew, or with other flags; give '
      'another folder, or delete it.'
    )


def write_split(path, split, examples, bytes_per_shard, stamps=None):
  """Yields the Written shards of a split, in order, writing what is missing.

  Shards are blocks of the examples in their order. To mix them would buy
  nothing, as records are read at random; so a packed data set has the order of
  the unpacked one, and a run on it the same batches.

  Args:
    path: epath.Path of the folder, which `folder` holds.
    split: its name.
    examples: function from a position (None: the start) to an iterator of the
      Examples that follow it.
    bytes_per_shard: a shard ends with the example that reaches so many; one
      that is written again, where it ended before.
    stamps: function from two positions to the stamps, as they are now, of the
      Examples behind the first, up to the second; None if no file changes.
  """
  position, stream, number = None, None, 0
  while True:
    file = path / f'{split}-{number:05}.array_record'
    note = path / shard_table.STATE / f'{split}-{number:05}.json'
    before = _read_note(note)
    if (
      before
      and _is_whole(file, before.shard)
      and (not stamps or _join(stamps(position, before.end)) == before.stamp)
    ):
      written = before
      if stream:
        stream.close()
      stream = None
    else:
      stream = stream or _with_last(examples(position))
      # Until the end the folder is none that can be read.
      (path / shard_table.NAME).unlink(missing_ok=True)
      last = before.end if before else None
      written = _write_shard(file, stream, bytes_per_shard, last)
      _write_json(note, written)
    yield written
    if written.is_last:
      return
    position, number = written.end, number + 1


def write_table(path, table):
  """Writes what makes the folder whole: classes and dataset.json.

  Args:
    path: epath.Path of the folder.
    table: shard_table.Table.
  """
  if table.class_names:
    lines = ''.join(f'{name}\n' for name in table.class_names)
    _write_text(path / 'classes.txt', lines)
  splits = {
    name: [shard._asdict() for shard in part]
    for name, part in table.splits.items()
  }
  fields = {'format': 1} | table._asdict() | {'splits': splits}
  _write_json(path / shard_table.NAME, fields)


def write_bad(path, bad):
  """Writes bad_examples.jsonl: a {"name": ..., "reason": ...} a line."""
  lines = (json.dumps(dict(name=n, reason=r)) + '\n' for n, r in bad)
  _write_text(path / 'bad_examples.jsonl', ''.join(lines))


def _with_last(examples):
  """Yields (example, whether it is the last)."""
  examples = iter(examples)
  following = next(examples, None)
  while (example := following) is not None:
    following = next(examples, None)
    yield example, following is None


def _join(stamps):
  return functools.reduce(lambda crc, x: zlib.crc32(x.encode(), crc), stamps, 0)


def _write_shard(file, stream, bytes_per_shard, last=None):
  """Writes one shard of the examples that come; returns it as Written.

  It ends at the position `last`; None is where it has enough bytes.
  """
  is_remote = storage.is_remote(file)
  # array_record does not write to gs://, so that the shard is copied there. On
  # the same disk, to rename it is one step; what a kill leaves is overwritten.
  state = contextlib.nullcontext(file.parent / shard_table.STATE)
  with tempfile.TemporaryDirectory() if is_remote else state as where:
    partial = pathlib.Path(where, file.name)
    module, _ = shards.array_record()
    writer = module.ArrayRecordWriter(str(partial), _WRITER_OPTIONS)
    num_examples, num_bytes, stamps = 0, 0, []
    bad, end, is_last = [], None, True
    for example, ends in stream:
      end, is_last = example.position, ends
      if example.record is None:
        bad.append((example.name, example.reason))
      else:
        writer.write(example.record)
        num_examples += 1
        num_bytes += len(example.record)
      stamps.append(example.stamp)
      if num_bytes >= bytes_per_shard if last is None else end == last:
        break
    writer.close()
    if shards.num_records(partial) != num_examples:
      raise ValueError(
        f'{partial} could not be written; is there room on the disk?'
      )
    shard = shard_table.Shard(file.name, num_examples, partial.stat().st_size)
    (storage.upload if is_remote else _replace)(partial, file)
  return Written(shard, end, bad, is_last, _join(stamps))


def _replace(partial, file):
  with open(partial, 'rb') as written:
    os.fsync(written.fileno())  # else a power cut may leave zeros
  os.replace(partial, file)


def _is_whole(file, shard):
  try:
    with storage.errors(file):
      return file.stat().length == shard.num_bytes
  except FileNotFoundError:
    return False


def _read_note(path):
  """Returns the Written of a note, or None if there is none."""
  note = _read_json(path)
  if note is None:
    return None
  try:
    shard, end, bad, is_last, stamp = note
    bad = [(name, reason) for name, reason in bad]
    return Written(shard_table.Shard(*shard), end, bad, is_last, stamp)
  except (TypeError, ValueError):
    return None


def _read_json(path):
  try:
    with storage.errors(path):
      return json.loads(path.read_text())
  except (FileNotFoundError, ValueError, RecursionError):
    return None


def _write_json(path, value):
  _write_text(path, json.dumps(value, indent=1) + '\n')


def _write_text(path, text):
  """Writes a file so that it is there whole or not at all."""
  if storage.is_remote(path):  # an object appears when it is whole
    with storage.errors(path, 'written'):
      path.write_text(text)
    return
  partial = epath.Path(f'{path}.partial')
  partial.write_text(text)
  _replace(partial, path)


@contextlib.contextmanager
def _lock(state):
  """Holds a local folder; one that is remote has nothing to hold."""
  if storage.is_remote(state):
    yield
    return
  import fcntl

  with open(state / 'lock', 'w') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise ValueError(
        f'--out={state.parent}: another process is writing there; wait for '
        'it, or give another folder.'
      ) from None
    yield
