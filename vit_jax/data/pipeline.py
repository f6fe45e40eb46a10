"""Batches, in one order whatever happens.

Global batch i is positions [i B, (i + 1) B) of the endless training order (see
`order`), and each process makes the rows of it that its own devices hold.
Starting at any step therefore costs the same, and the batches do not depend on
the number of processes.
"""

import numpy as np

from vit_jax import sharding
from vit_jax.data import datasets, order, preprocess, tf

# Records that one call into Python reads: enough to make the call's cost small
# against decoding, few enough for even work.
_CHUNK = 64


class TrainData:
  """The training set, shuffled anew each epoch, without end.

  Attributes:
    num_examples: the length of an epoch.
    num_classes: C.
    image_shape: (height, width, 3) of every image.
  """

  def __init__(self, mesh, seed, dataset, split, batch_size, preprocess):
    """Opens the data set.

    Args:
      mesh: the device mesh that batches are laid out on.
      seed: int >= 0, of the order and of the augmentations.
      dataset: a name in `datasets.DATASETS`.
      split: the part of it to train on.
      batch_size: B, over all devices of all processes.
      preprocess: recipe, see `preprocess`.

    Raises:
      ValueError: on anything that does not exist or fit.
    """
    if seed < 0:
      raise ValueError(f'config.seed={seed} is negative; use 0 or more.')
    self._seed = seed
    self._examples = _Examples(
      mesh, dataset, split, batch_size, preprocess, 'config.train'
    )
    self.num_examples = len(self._examples.source)
    self.num_classes = self._examples.num_classes
    self.image_shape = self._examples.image_shape

  def batches(self, start_step):
    """Yields the global batch of each step from `start_step` on, for ever.

    Args:
      start_step: number of batches that are skipped, at no cost.

    Yields:
      dict of arrays on the mesh: 'image' uint8 [B, height, width, 3], 'label'
      int32 [B] or targets [B, C].
    """

    def locate(positions):
      indices, seeds = order.shuffled(positions, self._seed, self.num_examples)
      return indices, {'seed': seeds}

    spec = {'seed': tf.TensorSpec([2], tf.int32)}
    return self._examples.batches(locate, spec, start_step, 2**40)


class EvalData:
  """A data set in its stored order, padded to whole batches and masked.

  Attributes: those of `TrainData`.
  """

  def __init__(self, mesh, dataset, split, batch_size, preprocess, field):
    """Opens the data set; arguments as of `TrainData`, `field` for errors."""
    self._examples = _Examples(
      mesh, dataset, split, batch_size, preprocess, field
    )
    self._batch_size = batch_size
    self.num_examples = len(self._examples.source)
    self.num_classes = self._examples.num_classes
    self.image_shape = self._examples.image_shape

  def batches(self):
    """Yields every example once.

    Yields:
      dict of arrays on the mesh, as of `TrainData.batches`, and 'mask', [B]
      float32: 1 for an example, 0 for padding.
    """

    def locate(positions):
      mask = (positions < self.num_examples).astype(np.float32)
      seeds = np.zeros([len(positions), 2], np.int32)
      indices = np.minimum(positions, self.num_examples - 1)
      return indices, {'seed': seeds, 'mask': mask}

    spec = {
      'seed': tf.TensorSpec([2], tf.int32),
      'mask': tf.TensorSpec([], tf.float32),
    }
    num_batches = -(-self.num_examples // self._batch_size)
    return self._examples.batches(locate, spec, 0, num_batches)


class _Examples:
  """Preprocessed examples of a source, in any order a caller computes."""

  def __init__(self, mesh, dataset, split, batch_size, recipe, field):
    sharding.check_batch_size(batch_size, mesh, f'{field}.batch_size')
    self._mesh, self._batch_size = mesh, batch_size
    self._transform = preprocess.parse(recipe, f'{field}.preprocess')
    self.source = datasets.load(dataset, split, field)
    if not len(self.source):
      raise ValueError(f'{field}.split={split!r} has no examples; use another.')
    self.num_classes = datasets.DATASETS[dataset].num_classes
    self.image_shape = self._static_image_shape(field)

  def batches(self, locate, spec, start, num_batches):
    """Yields global batches.

    Args:
      locate: function from positions in the order, int64 [n], to the examples
        there, int64 [n], and a dict of what else belongs to them: 'seed', int32
        [n, 2], and maybe 'mask'.
      spec: dict of tf.TensorSpec of that dict's values, without the n.
      start: the first batch's number.
      num_batches: how many to yield.
    """
    rows = sharding.local_rows(self._mesh, self._batch_size)

    def read(places):
      """Reads by place in this process's own stream of examples."""
      batches, offsets = np.divmod(places, len(rows))
      positions = (start + batches) * self._batch_size + rows[offsets]
      indices, extras = locate(positions)
      return self.source.read(indices) | extras

    def finish(record):
      seed = record.pop('seed')
      mask = {'mask': record.pop('mask')} if 'mask' in record else {}
      example = self.source.parse(record)
      image = self._transform(example['image'], seed)
      return example | {'image': image} | mask

    examples = _records(
      read, self.source.spec | spec, num_batches * len(rows)
    ).map(finish, tf.data.AUTOTUNE, deterministic=True)
    local = examples.batch(len(rows), drop_remainder=True).prefetch(2)
    for batch in local.as_numpy_iterator():
      yield sharding.global_batch(batch, self._mesh)

  def _static_image_shape(self, field):
    seed_spec = tf.TensorSpec([2], tf.int32)

    @tf.function(input_signature=[self.source.spec, seed_spec], autograph=False)
    def image(record, seed):
      return self._transform(self.source.parse(record)['image'], seed)

    try:
      shape = image.get_concrete_function().structured_outputs.shape
    except ValueError as error:
      raise ValueError(f'{field}.preprocess: {error}') from error
    if not shape.is_fully_defined():
      raise ValueError(
        f'{field}.preprocess leaves images of different sizes, {shape}; end '
        'it with an op that fixes the size, such as resize(224).'
      )
    return tuple(shape)


def _records(read, spec, count):
  """Returns the tf.data.Dataset of records 0..count-1, one an element.

  Args:
    read: function from places, int64 [n], to a dict of arrays [n, ...].
    spec: dict of the records' tf.TensorSpecs.
    count: number of places.
  """
  keys = list(spec)

  def read_chunk(start):
    def read_list(start):
      records = read(np.arange(start, min(start + _CHUNK, count)))
      return [records[key] for key in keys]

    dtypes = [spec[key].dtype for key in keys]
    arrays = tf.numpy_function(read_list, [start], dtypes)
    for key, array in zip(keys, arrays, strict=True):
      array.set_shape([None, *spec[key].shape])
    return dict(zip(keys, arrays, strict=True))

  # Two at a time: one is read while the other is used up.
  chunks = tf.data.Dataset.range(0, count, _CHUNK)
  chunks = chunks.map(read_chunk, 2, deterministic=True)
  return chunks.flat_map(tf.data.Dataset.from_tensor_slices)
