"""Packs images into shards: reads, checks, writes, and checks again.

Images are read and decoded in threads, written in their order. Those that
cannot be read are left out and listed in `bad_examples.jsonl`.
"""

import collections
import concurrent.futures
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from vit_jax.data import (
  images,
  preprocess,
  shard_table,
  shard_writer,
  shards,
  tf,
)
from vit_jax.data.prepare import progress

CHECKS = ('full', 'header')
_SHOWN = 10  # classes and bad images on the terminal
_MAX_REASON = 300  # characters
# Of records, their index and the blocks of array_record.
_OVERHEAD = 1.02
_FEW = 3  # bad images that fail no set, however small


class Image(NamedTuple):
  """An image to pack.

  Attributes:
    position: from where to go on after it; anything that JSON holds.
    name: what to call it.
    labels: list of int.
    read: function to its bytes, as `images.standard` gives them; it may run in
      any thread, and raise anything.
    stamp: function to a str that differs when its file has changed.
  """

  position: Any
  name: str
  labels: list[int]
  read: Callable[[], bytes]
  stamp: Callable[[], str] = str


class Inputs(NamedTuple):
  """What to pack.

  Attributes:
    source: str that tells it from all others.
    num_classes: C.
    class_names: tuple of str, or None.
    many_labels: whether an image may have other than one label.
    splits: dict from name to a function from a position (None: the start) to
      an iterator of the Images that follow it.
    num_images: dict from a split to their number; {} if that is not known.
    num_bytes: of all images, roughly.
    stamps: dict from a split to a function from two positions to the stamps of
      the Images behind the first, up to the second; {} if none can change.
  """

  source: str
  num_classes: int
  class_names: tuple[str, ...] | None
  many_labels: bool
  splits: Mapping[str, Callable[[Any], Iterable[Image]]]
  num_images: Mapping[str, int]
  num_bytes: int
  stamps: Mapping[str, Callable] = MappingProxyType({})


def pack(inputs, out, check='full', max_bad_share=0.01, bytes_per_shard=None):
  """Returns the shard_table.Table of Inputs, packed into a folder.

  Args:
    inputs: Inputs.
    out: epath.Path of the folder, local or gs://.
    check: 'full' decodes every image; 'header' looks at its size and format.
    max_bad_share: how many of all images may be bad; 3 always, unless it is 0.
    bytes_per_shard: by default shard_writer.BYTES_PER_SHARD.

  Raises:
    ValueError: if the folder has anything else, there is no room, or too many
      images are bad. What was written is kept for the next try.
  """
  shards.array_record()  # raises before anything is made
  bytes_per_shard = bytes_per_shard or shard_writer.BYTES_PER_SHARD
  _print_classes(inputs)
  tf.constant(0)  # starts here, not in several threads at once
  source = f'{inputs.source} check={check} bytes_per_shard={bytes_per_shard}'
  with shard_writer.folder(out, source, inputs.splits):
    _check_room(inputs.num_bytes, out, bytes_per_shard)
    parts, bad = {}, []
    for split in inputs.splits:
      parts[split], of_split = _pack_split(
        inputs, split, out, check, bytes_per_shard
      )
      bad += of_split
    shard_writer.write_bad(out, bad)
    _check_bad(parts, len(bad), max_bad_share, out)
    table = shard_table.Table(
      inputs.num_classes,
      inputs.class_names,
      inputs.many_labels,
      parts,
      source,
    )
    for split in parts:
      _check_ends(out, table, split, check)
    shard_writer.write_table(out, table)
  _print_result(table, bad, out)
  return table


def _pack_split(inputs, split, out, check, bytes_per_shard):
  """Returns the shards of a split, a tuple, and its bad (name, reason)."""
  parts, bad = [], []
  with progress.Line(split, inputs.num_images.get(split)) as line:

    def examples(position):
      for example in _examples(inputs.splits[split](position), check):
        if example.reason:
          line.bad(f'{example.name}: {example.reason}')
        line.add()
        yield example

    for written in shard_writer.write_split(
      out, split, examples, bytes_per_shard, inputs.stamps.get(split)
    ):
      parts.append(written.shard)
      bad += written.bad
      line.at(sum(s.num_examples for s in parts) + len(bad))
  return tuple(parts), bad


def _check_bad(parts, num_bad, max_bad_share, out):
  """Raises ValueError if too many images of all splits are bad."""
  listed = f'{out / "bad_examples.jsonl"} lists the bad ones'
  num_good = {k: sum(s.num_examples for s in v) for k, v in parts.items()}
  seen = sum(num_good.values()) + num_bad
  allowed = max(max_bad_share * seen, _FEW if max_bad_share else 0)
  if num_bad > allowed:
    raise ValueError(
      f'{num_bad:,} of {seen:,} images are bad, more than '
      f'--max_bad_share={max_bad_share:g} allows; {listed}. Mend them, or '
      'allow more, and run again: only shards of changed files are written.'
    )
  for split, count in num_good.items():
    if not count:
      raise ValueError(
        f'The split {split!r} has no image that can be read; {listed}. Mend '
        'them, and run again.'
      )


def _examples(found, check):
  """Yields shard_writer.Examples of Images, in their order."""
  threads = os.cpu_count() or 1
  pool = concurrent.futures.ThreadPoolExecutor(threads, 'pack')
  waiting = collections.deque()
  try:
    for image in found:
      waiting.append(pool.submit(_example, image, check))
      if len(waiting) > 4 * threads:
        yield waiting.popleft().result()
    while waiting:
      yield waiting.popleft().result()
  finally:
    pool.shutdown(cancel_futures=True)


def _example(image, check):
  stamp = image.stamp()  # before it is read, lest a change go unseen
  try:
    encoded = image.read()
    if check == 'full':
      preprocess.decode()(tf.constant(encoded), None)
    record = shards.make_example(encoded, image.labels, image.name)
    reason = None
  except Exception as error:  # damaged images fail in any way
    record, reason = None, _why(error)
  return shard_writer.Example(image.position, image.name, record, reason, stamp)


def _why(error):
  """Returns the first line of what an error says; TensorFlow's go on."""
  text = (
    getattr(error, 'message', None)
    or getattr(error, 'strerror', None)
    or str(error)
    or type(error).__name__
  )
  text = str(text).removeprefix('{{function_node __wrapped__').strip()
  text = text.partition('}} ')[2] or text
  return text.splitlines()[0][:_MAX_REASON]


def _check_room(num_bytes, out, bytes_per_shard):
  """Prints how much is to be written; raises ValueError if it cannot be."""
  total = int(num_bytes * _OVERHEAD)
  text = f'about {total / 1e9:,.2f} GB in {out}'
  if '://' in os.fspath(out):
    print(f'Packing {text}.')
    return
  there = sum(
    f.stat().st_size for f in pathlib.Path(out).glob('*.array_record')
  )
  needed = max(total - there, 0) + min(bytes_per_shard, total)
  free = free_bytes(out)
  if needed > free:
    raise ValueError(
      f'--out={out} needs about {needed / 1e9:,.2f} GB, and the disk has '
      f'{free / 1e9:,.2f} GB free; make room, or give another folder.'
    )
  print(f'Packing {text}; {free / 1e9:,.0f} GB are free.')


def free_bytes(path):
  """Returns the free bytes of the disk that a path is, or will be, on.

  A bucket has no end.
  """
  if '://' in os.fspath(path):
    return sys.maxsize
  path = pathlib.Path(path).absolute()
  while not path.exists():
    path = path.parent
  return shutil.disk_usage(path).free


def _check_ends(out, table, split, check):
  """Reads the first and the last record of each shard of a split again."""
  source = shards.open_split(out, table, split)
  start, rows = 0, []
  for shard in table.splits[split]:
    if shard.num_examples:
      rows += sorted({start, start + shard.num_examples - 1})
    start += shard.num_examples
  if start != len(source):
    raise ValueError(f'{out}: {split!r} has {len(source):,}, not {start:,}.')
  for row in rows:
    if reason := source.reason(row):
      raise ValueError(
        f'{source.name(row)} was written and cannot be read: {reason}; delete '
        'the shard, check the disk, and run again.'
      )
    record = source.read(np.array([row]))['record'][0]
    example = source.parse({'record': record})
    if check == 'full':
      preprocess.decode()(example['image'], None)


def _print_classes(inputs):
  known = inputs.class_names
  print(f'{inputs.num_classes:,} classes' + (':' if known else ', no names.'))
  for number, name in enumerate((known or ())[:_SHOWN]):
    print(f'  {number} {name}')
  if known and len(known) > _SHOWN:
    print('  ...; classes.txt in the folder has all.')


def _print_result(table, bad, out):
  for split, parts in table.splits.items():
    count = sum(shard.num_examples for shard in parts)
    size = sum(shard.num_bytes for shard in parts)
    print(
      f'{split}: {count:,} images, {len(parts):,} shards, {size / 1e9:,.2f} GB'
    )
  if bad:
    print(f'{len(bad):,} bad images were left out:')
    for name, reason in bad[:_SHOWN]:
      print(f'  {name}: {reason}')
    print(f'All of them are in {out / "bad_examples.jsonl"}.')
  print(f'{out} is ready: dataset={os.fspath(out)!r}.')


def read_standard(encoded):
  """Returns a function to the `images.standard` bytes of encoded ones."""
  return lambda: images.standard(encoded)
