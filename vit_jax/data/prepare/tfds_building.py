"""TFDS data sets: builds them in array_record format, or converts them to it.

TFDS has a command that converts, too, but it imports Apache Beam.
"""

import contextlib
import os
from typing import NamedTuple

from vit_jax.data import shards, sources
from vit_jax.data.prepare import packing, progress

# What has to be in TFDS's folder of manual files. Others look at their own.
_BY_HAND = {
  'diabetic_retinopathy_detection': ('sample', 'train', 'test'),
  'imagenet2012': ('ILSVRC2012_img_train.tar', 'ILSVRC2012_img_val.tar'),
  'resisc45': ('NWPU-RESISC45',),
}


class Status(NamedTuple):
  """How far a data set is.

  Attributes:
    state: 'ready', 'tfrecord' (to be converted), 'manual' (files are missing
      that TFDS cannot download), 'download', or 'error'.
    text: the folder that it is in, or what is to be done.
    num_bytes: to download, 0 if that is not known.
  """

  state: str
  text: str
  num_bytes: int = 0


def status(name):
  """Returns the Status of a TFDS name; nothing is downloaded."""
  try:
    builder = _builder(name)
  except ValueError as error:
    return Status('error', str(error))
  if builder.is_prepared():
    formats = _formats(builder)
    if 'array_record' in formats:
      return Status('ready', str(builder.data_dir))
    if 'tfrecord' in formats:
      return Status('tfrecord', str(builder.data_dir))
    return Status('error', f'{builder.data_dir} is {", ".join(formats)}')
  num_bytes = _download_bytes(builder)
  manual = manual_dir(builder)
  instructions = builder.MANUAL_DOWNLOAD_INSTRUCTIONS
  if instructions:
    missing = [x for x in _by_hand(builder) if not (manual / x).exists()]
    if missing or not manual.is_dir():
      text = ' '.join(instructions.split())
      lacks = f', and lacks {", ".join(missing)}' if missing else ''
      text = f'{text} The manual_dir is {manual}{lacks}.'
      return Status('manual', text, num_bytes)
  return Status('download', str(builder.data_dir), num_bytes)


def prepare(name):
  """Returns the builder of a data set that is ready, after making it so.

  Args:
    name: TFDS name, such as 'cifar10:3.*.*'.

  Raises:
    ValueError: if TFDS does not know it, lacks files or room, or fails; with
      what to do.
  """
  found = status(name)
  if found.state in ('error', 'manual'):
    raise ValueError(f'{name}: {found.text}')
  if found.state == 'download':
    _download(name, found)
  if found.state == 'tfrecord':
    convert(_builder(name))
  builder = _builder(name)
  # TFDS refuses a second format when it makes a builder, and takes it here.
  builder.info.set_file_format(
    'array_record', override=True, override_if_initialized=True
  )
  return builder


def convert(builder):
  """Adds array_record files to a data set prepared as tfrecord.

  Its records are the same, bit for bit and in the same order. Shards that are
  there already are kept: run it again after a kill.

  Args:
    builder: a TFDS builder.

  Raises:
    ValueError: if there is no room, or a shard has another number of records
      than TFDS noted.
  """
  info = builder.info
  splits = list(info.splits.values())
  needed = sum(split.num_bytes for split in splits)
  free = packing.free_bytes(str(builder.data_dir))
  if needed > free:
    raise ValueError(
      f'{builder.data_dir}: converting needs {needed / 1e9:,.2f} GB, and the '
      f'disk has {free / 1e9:,.2f} GB free; make room.'
    )
  print(f'Converting {builder.data_dir} from tfrecord to array_record.')
  for split in splits:
    old = split.filename_template
    new = old.replace(filetype_suffix='array_record')
    count = len(split.shard_lengths)
    with progress.Line(split.name, split.num_examples) as line:
      for number, length in enumerate(split.shard_lengths):
        target = new.sharded_filepath(shard_index=number, num_shards=count)
        source = old.sharded_filepath(shard_index=number, num_shards=count)
        if not target.exists() or shards.num_records(target) != length:
          _convert_shard(source, target, length, line)
        line.at(sum(split.shard_lengths[: number + 1]))
  _note_format(builder)


def _convert_shard(source, target, length, line):
  import tensorflow_datasets as tfds

  adapters = tfds.core.file_adapters.ADAPTER_FOR_FORMAT
  formats = tfds.core.FileFormat

  def records():
    found = adapters[formats.TFRECORD].make_tf_data(os.fspath(source))
    for key, record in enumerate(found):
      line.add()
      yield key, record.numpy()

  partial = target.parent / f'incomplete.{target.name}'
  adapters[formats.ARRAY_RECORD].write_examples(partial, records())
  found = shards.num_records(partial)
  if found != length:
    raise ValueError(
      f'{source} has {found:,} records, not {length:,}; build the data set '
      'anew.'
    )
  partial.replace(target)


def _note_format(builder):
  """Adds array_record to the formats in the data set's dataset_info.json."""
  import tensorflow_datasets as tfds

  proto = tfds.core.dataset_info.read_proto_from_builder_dir(builder.data_dir)
  if 'array_record' not in proto.alternative_file_formats:
    proto.alternative_file_formats.append('array_record')
    tfds.core.dataset_info.write_dataset_info_proto(
      proto, dataset_info_dir=builder.data_path
    )


def _download(name, found):
  builder = sources.builder(name)
  size = builder.info.dataset_size or found.num_bytes
  # The archive, what is unpacked from it, and the shards.
  needed = 2 * int(found.num_bytes) + int(size)
  free = packing.free_bytes(str(builder.data_dir))
  known = f'about {needed / 1e9:,.2f} GB' if needed else 'an unknown size'
  print(f'Downloading and building {builder.data_dir}: {known}.')
  if needed > free:
    raise ValueError(
      f'{builder.data_dir} needs {known}, and the disk has '
      f'{free / 1e9:,.2f} GB free; make room, or set TFDS_DATA_DIR to a folder '
      'on another disk.'
    )
  try:
    builder.download_and_prepare()
  except Exception as error:  # of networks, of unpacking, of missing packages
    files = [
      f'\n  {url} as {info.filename}'
      for url, info in (builder.url_infos or {}).items()
      if info.filename
    ]
    raise ValueError(
      f'{name} could not be built: {type(error).__name__}: {error}\n'
      f'Get the files in another way, such as a browser, put them into '
      f'{manual_dir(builder)}, and run again:{"".join(files)}'
    ) from error


def manual_dir(builder):
  """Returns the folder in which TFDS looks for files put there by hand."""
  from etils import epath

  return epath.Path(builder.data_dir_root) / 'downloads' / 'manual'


def _builder(name):
  """Returns the builder of a name in whichever format it is prepared."""
  sources.data_dir()  # raises if TFDS is not installed
  import tensorflow_datasets as tfds

  with contextlib.suppress(ValueError, tfds.core.DatasetNotFoundError):
    found = tfds.builder(name)
    if found.is_prepared():
      # One made by the code that builds it does not know all its formats.
      return tfds.builder_from_directory(found.data_dir)
  return sources.builder(name)


def _by_hand(builder):
  return _BY_HAND.get(builder.name, ())


def _formats(builder):
  return sorted(f.value for f in builder.info.available_file_formats())


def _download_bytes(builder):
  files = (builder.url_infos or {}).values()
  return int(builder.info.download_size or sum(i.size or 0 for i in files))
