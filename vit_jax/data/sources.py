"""Sources: random access to the records of a data set.

A source has
  len(source)           the number of examples,
  source.spec           dict of tf.TensorSpec, one example as `read` gives it,
  source.read(indices)  dict of numpy arrays [len(indices), ...] in that spec,
  source.parse(record)  TensorFlow graph ops from one record to an example: a
                        dict with 'image' (uint8 [height, width, 3], or a
                        scalar string if encoded) and 'label'.
`read` runs in Python on many records at once; `parse`, and all that follows,
runs in TensorFlow's threads.
"""

import numpy as np

from vit_jax.data import tf


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


class TfdsSource:
  """A split of a TFDS data set prepared in array_record format.

  Args:
    name: TFDS name, such as 'cifar10:3.*.*'.
    split: TFDS split, such as 'train' or 'train[:90%]'.
    image: name of the image feature.
    label: name of the label feature: a class, or a sequence of classes.
    num_classes: C; a sequence of classes becomes targets [C] of 0 and 1.

  Raises:
    ValueError: with the command that prepares the data set, if it is not, and
      with the splits that it has, if it lacks this one.
  """

  def __init__(self, name, split, num_classes, image='image', label='label'):
    self._features = ready_builder(name).info.features
    self._records = _records(name, split)
    self._image, self._label = image, label
    self._num_classes = num_classes
    self.spec = {'record': tf.TensorSpec((), tf.string)}

  def __len__(self):
    return len(self._records)

  def read(self, indices):
    records = self._records.__getitems__(indices.tolist())
    return {'record': np.array(records, dtype=object)}

  def parse(self, record):
    """Returns 'image', encoded, and 'label', int32 [] or uint8 [C]."""
    import tensorflow_datasets as tfds

    example = self._features.deserialize_example(
      record['record'],
      decoders={self._image: tfds.decode.SkipDecoding()},
    )
    label = example[self._label]
    if label.shape.rank:  # many labels an image
      label = tf.reduce_max(
        tf.one_hot(label, self._num_classes, dtype=tf.uint8), axis=0
      )
    else:
      label = tf.cast(label, tf.int32)
    return {'image': example[self._image], 'label': label}


def builder(name):
  """Returns the TFDS builder of a name such as 'cifar10:3.*.*'.

  Raises:
    ValueError: if TFDS is not installed, or knows no such data set.
  """
  try:
    import tensorflow_datasets as tfds
  except ImportError:
    raise ValueError(
      f'The data set {name!r} needs TensorFlow Datasets, which is not '
      "installed; run `pip install -e '.[data]'`."
    ) from None
  try:
    return tfds.builder(name, file_format='array_record')
  except tfds.core.registered.DatasetNotFoundError:
    raise ValueError(
      f'TFDS knows no data set {name!r} and finds none prepared under '
      f'{_data_dir()}; set TFDS_DATA_DIR to the folder that holds it.'
    ) from None


def ready_builder(name):
  """Returns `builder(name)`; raises ValueError if it is not prepared."""
  found = builder(name)
  if not found.is_prepared():
    raise ValueError(
      f'The data set {name!r} is not prepared in array_record format under '
      f'{_data_dir()}; run `python -m vit_jax.data.prepare '
      f'{name.partition(":")[0]}`, or set TFDS_DATA_DIR to the folder that '
      'holds it.'
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


def _data_dir():
  import tensorflow_datasets as tfds

  return tfds.core.constants.DATA_DIR
