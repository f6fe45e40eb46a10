"""Sources: random access to the records of a data set.

A source has
  len(source)           the number of examples,
  source.spec           dict of tf.TensorSpec, one example as `read` gives it,
  source.read(indices)  dict of numpy arrays [len(indices), ...] in that spec,
  source.parse(record)  TensorFlow graph ops from one record to an example: a
                        dict with 'image' (uint8 [height, width, 3], or a
                        scalar string if encoded) and 'label' (int32 [], or
                        targets [C], uint8: 1 for each of an image's labels),
  source.name(index)    what to call an example: a path, or a place,
  source.reason(index)  why its record cannot be read, or None if it can.
`read` runs in Python on many records at once; `parse`, and all that follows,
runs in TensorFlow's threads. A record that cannot be read is an empty string,
which nothing can parse; `pipeline` then says what is to become of it.
"""

import re

import numpy as np

from vit_jax import storage
from vit_jax.data import preprocess, tf

# What the client of Google Cloud Storage in array_record says.
_STORE_FAILED = re.compile('Permanent error|Retry policy exhausted')


class ArraySource:
  """Examples held in memory.

  Args:
    arrays: dict of numpy arrays that share their first dimension.
  """

  def __init__(self, arrays):
    self._arrays = arrays
    self.spec = {
      name: tf.TensorSpec(array.shape[1:], array.dtype)
      for name, array in arrays.items()
    }

  def __len__(self):
    return len(next(iter(self._arrays.values())))

  def read(self, indices):
    return {name: array[indices] for name, array in self._arrays.items()}

  def parse(self, record):
    return record

  def name(self, index):
    return f'example {index}'

  def reason(self, index):
    del index


class TfdsSource:
  """A split of a TFDS data set prepared in array_record format.

  Args:
    name: TFDS name, such as 'cifar10:3.*.*'.
    split: TFDS split, such as 'train' or 'train[:90%]'.
    num_classes: C; a sequence of classes becomes targets [C] of 0 and 1.
    image: name of the image feature.
    label: name of the label feature: a class, or a sequence of classes.
    to_class: function from the label feature's value, in TensorFlow, to the
      class, int [], for a feature that is neither.
    pixels: function from the decoded image, uint8 [height, width, 3], to the
      one to use; None leaves it encoded.

  Raises:
    ValueError: with the command that prepares the data set, if it is not, and
      with the splits that it has, if it lacks this one.
  """

  def __init__(
    self,
    name,
    split,
    num_classes,
    image='image',
    label='label',
    to_class=None,
    pixels=None,
  ):
    features = ready_builder(name).info.features
    # Others, such as a mask or a second image, would be decoded for nothing.
    self._features = type(features)({x: features[x] for x in (image, label)})
    self._records = _records(name, split)
    self._name, self._split = name, split
    self._image, self._label = image, label
    self._num_classes = num_classes
    self._to_class, self._pixels = to_class, pixels
    self.spec = {'record': tf.TensorSpec((), tf.string)}

  def __len__(self):
    return len(self._records)

  def read(self, indices):
    return {'record': read_records(self._records, indices)}

  def name(self, index):
    return f'{self._name}, split {self._split!r}, example {index}'

  def reason(self, index):
    return why_unreadable(self._records, index)

  def parse(self, record):
    """Returns the example, see the top of this file."""
    import tensorflow_datasets as tfds

    example = self._features.deserialize_example(
      record['record'],
      decoders={self._image: tfds.decode.SkipDecoding()},
    )
    image, label = example[self._image], example[self._label]
    if self._pixels:
      image = self._pixels(preprocess.decode()(image, None))
    if self._to_class:
      label = self._to_class(label)
    elif label.shape.rank:  # many labels an image
      return {'image': image, 'label': targets(label, self._num_classes)}
    return {'image': image, 'label': tf.cast(label, tf.int32)}


def existing(labels, num_classes):
  """Returns labels, by TensorFlow; if one does not exist, that is an error.

  one_hot would leave it out without a word, and 32 bits may make it another.
  """
  check = tf.debugging.Assert(
    tf.reduce_all((labels >= 0) & (labels < num_classes)),
    [f'a label is not in [0, {num_classes})', labels],
  )
  # Eager execution has raised already, and has nothing to depend on.
  with tf.control_dependencies([] if check is None else [check]):
    return tf.identity(labels)


def targets(labels, num_classes):
  """Returns uint8 [C], 1 for each label, by TensorFlow.

  Args:
    labels: int [n]; one that does not exist is an error, see `existing`.
    num_classes: C.
  """
  rows = tf.one_hot(existing(labels, num_classes), num_classes, dtype=tf.uint8)
  return tf.reduce_max(rows, axis=0)


def read_records(records, indices):
  """Returns records of an ArrayRecordDataSource, objects [n]; b'' for bad ones.

  Args:
    records: the ArrayRecordDataSource.
    indices: int64 [n].
  """
  result = np.empty(len(indices), object)
  try:
    result[:] = records.__getitems__(indices.tolist())
  except Exception:  # one damaged record fails all
    for place, index in enumerate(indices.tolist()):
      failed = why_unreadable(records, index)
      result[place] = b'' if failed else records[index]
  return result


def why_unreadable(records, index):
  """Returns why a record cannot be read, or None if it can.

  Raises:
    storage.StoreError: if that is no fault of the record, but an object store
      refused or failed.
  """
  try:
    records[int(index)]
  except Exception as error:  # array_record raises what C++ says
    text = str(error) or type(error).__name__
    if _STORE_FAILED.match(text):
      raise storage.StoreError(
        f'A shard cannot be read: {text[:500]}. Mend that, or wait until the '
        'store answers; the same command then goes on.'
      ) from None
    return text
  return None


def builder(name):
  """Returns the TFDS builder of a name such as 'cifar10:3.*.*'.

  Raises:
    ValueError: if TFDS is not installed, or knows no such data set, or another
      version of it only.
  """
  tfds = _import_tfds(f'The data set {name!r}')
  storage.check(data_dir(), 'TFDS_DATA_DIR')
  try:
    return _as_array_record(tfds, name)
  except tfds.core.registered.DatasetNotFoundError:
    raise ValueError(
      f'TFDS knows no data set {name!r} and finds none prepared under '
      f'{data_dir()}; set TFDS_DATA_DIR to the folder that holds it.'
    ) from None
  except AssertionError as error:  # a version that this TFDS does not build
    raise ValueError(f'The data set {name!r}: {error}') from None


def _as_array_record(tfds, name):
  """Returns the builder that reads array_record, TFDS's format for that."""
  try:
    return tfds.builder(name, file_format='array_record')
  except ValueError:
    # It is prepared as tfrecord, to which TFDS then keeps; `prepare` adds the
    # other format beside it.
    found = tfds.builder_from_directory(tfds.builder(name).data_dir)
    formats = {f.value for f in found.info.available_file_formats()}
    if 'array_record' not in formats:
      raise ValueError(
        f'The data set {name!r} is prepared under {data_dir()} in another '
        f'format ({", ".join(formats)}); run `python -m vit_jax.data.prepare '
        f'{_asked(name)}`, which converts it.'
      ) from None
    found.info.set_file_format(
      'array_record', override=True, override_if_initialized=True
    )
    return found


def _asked(name):
  # What has a wildcard is what TFDS builds by default.
  return name.partition(':')[0] if '*' in name else name


def ready_builder(name):
  """Returns `builder(name)`; raises ValueError if it is not prepared."""
  found = builder(name)
  if not found.is_prepared():
    raise ValueError(
      f'The data set {name!r} is not prepared in array_record format under '
      f'{data_dir()}; run `python -m vit_jax.data.prepare {_asked(name)}`, or '
      'set TFDS_DATA_DIR to the folder that holds it.'
    )
  return found


def _records(name, split):
  """Returns random access to the serialized examples of a split."""
  info = ready_builder(name).info
  try:
    files = info.splits[split].file_instructions
  except (KeyError, ValueError) as error:
    raise ValueError(
      f'split={split!r} is not in the data set {name!r}: {error}; it has '
      f'{", ".join(info.splits)}.'
    ) from None
  from array_record.python import array_record_data_source

  return array_record_data_source.ArrayRecordDataSource(files)


def data_dir():
  """Returns the folder of prepared data sets: TFDS_DATA_DIR, or TFDS's own.

  Raises:
    ValueError: if TFDS is not installed.
  """
  tfds = _import_tfds('The folder of prepared data sets')
  return tfds.core.constants.DATA_DIR


def _import_tfds(what):
  try:
    import tensorflow_datasets as tfds
  except ImportError:
    raise ValueError(
      f'{what} needs TensorFlow Datasets, which is not installed; run '
      "`pip install -e '.[data]'`."
    ) from None
  return tfds
