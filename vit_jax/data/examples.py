"""From places in an order to batches of preprocessed examples.

A place is a position in the endless stream of examples that one process makes.
tf.data reads, decodes and batches them in order. What cannot be read or decoded
is missing in what it yields; `Examples.batches` sees that from the places, and
asks what is to become of each missing one.
"""

import functools

import numpy as np

from vit_jax import sharding
from vit_jax.data import assembly, datasets, images, preprocess, tf

# Records that one call into Python reads: enough to make the call's cost small
# against decoding, few enough for even work.
_CHUNK = 64
# Places that one call computes the order of, a multiple of _CHUNK: numpy takes
# as long for 64 of them.
_BLOCK = 1024


class Examples:
  """Preprocessed examples of a data set, in any order that a caller computes.

  Attributes:
    data: a `datasets.Data`.
    image_shape: (height, width, 3) of every image.
    many_labels: whether labels are targets [C].
  """

  def __init__(self, mesh, batch_size, recipe, field, **data):
    """Opens the data set.

    Args:
      mesh: the device mesh that batches are laid out on.
      batch_size: B, over all devices of all processes.
      recipe: see `preprocess`.
      field: config section, for errors.
      **data: arguments of `datasets.load`.
    """
    sharding.check_batch_size(batch_size, mesh, f'{field}.batch_size')
    self._mesh, self._batch_size, self._field = mesh, batch_size, field
    self._transform = preprocess.parse(recipe, f'{field}.preprocess')
    self.data = datasets.load(field=field, **data)
    self._source = self.data.source
    if not len(self._source):
      raise ValueError(
        f'{field}.split={data["split"]!r} has no examples; use another.'
      )
    seed_spec = tf.TensorSpec([2], tf.int32)
    self._one = tf.function(
      self._preprocessed,
      input_signature=[self._source.spec, seed_spec],
      autograph=False,
    )
    self.image_shape = self._static_image_shape()
    self.many_labels = self._output['label'].shape.rank > 0

  def batches(self, locate, spec, start, num_batches, on_bad):
    """Yields global batches.

    Args:
      locate: function from positions in the order, int64 [n], to the examples
        there, int64 [n], and a dict of what else belongs to them: 'seed', int32
        [n, 2], and maybe 'mask', float32 [n].
      spec: dict of tf.TensorSpec of that dict's values, without the n.
      start: the first batch's number.
      num_batches: how many to yield.
      on_bad: function (index, seed, why, places seen) -> an example in place of
        one that is bad.
    """
    rows = sharding.local_rows(self._mesh, self._batch_size)

    def at(places):
      batches, offsets = np.divmod(places, len(rows))
      return locate((start + batches) * self._batch_size + rows[offsets])

    def repaired(place):
      indices, extras = at(np.array([place]))
      index, seed = int(indices[0]), extras['seed'][0]
      mask = extras['mask'][0] if 'mask' in extras else None
      if mask == 0:  # padding
        return self.blank()
      try:
        example = self.example(index, seed)
      except BadExampleError as error:
        example = on_bad(index, seed, str(error), place + 1)
      return _weighted(example, mask)

    total = num_batches * len(rows)
    stream = _Stream(at, self._source, spec, self._preprocessed, len(rows))
    for batch in assembly.without_gaps(stream, total, repaired, self._is_good):
      yield sharding.global_batch(batch, self._mesh)

  def example(self, index, seed):
    """Returns one example, a dict of arrays.

    Raises:
      BadExampleError: if it cannot be read or decoded, or is none; it says why.
    """
    records = self._source.read(np.array([index]))
    record = {key: tf.constant(value[0]) for key, value in records.items()}
    try:
      example = {k: v.numpy() for k, v in self._one(record, seed).items()}
    except Exception as error:  # decoders of damaged images raise anything
      why = self._source.reason(index) or images.in_words(error)
      raise BadExampleError(why) from None
    if not self._is_good(example['label']):
      raise BadExampleError(
        f'label {example["label"]} is not in [0, {self.data.num_classes})'
      )
    return example

  def blank(self):
    """Returns an example of zeros, which does not count."""
    return {
      name: np.zeros(spec.shape, spec.dtype.as_numpy_dtype)
      for name, spec in self._output.items()
    }

  def name(self, index):
    """Returns what to call an example."""
    return self._source.name(index)

  @functools.cached_property
  def _output(self):
    """The specs of one example, by name."""
    return self._one.get_concrete_function().structured_outputs

  def _is_good(self, label):
    """Returns of which labels, [...] or targets, the class exists."""
    if self.many_labels:
      return np.ones(label.shape[:-1], bool)
    return (label >= 0) & (label < self.data.num_classes)

  def _preprocessed(self, record, seed):
    example = self._source.parse(record)
    label = example['label']
    # No prediction for an image without any label is right or wrong.
    counts = tf.reduce_any(label > 0) if label.shape.rank else True
    return {
      'image': self._transform(example['image'], seed),
      'label': label,
      'mask': tf.cast(counts, tf.float32),
    }

  def _static_image_shape(self):
    field = f'{self._field}.preprocess'
    try:
      shape = self._output['image'].shape
    except ValueError as error:
      raise ValueError(f'{field}: {error}') from error
    if not shape.is_fully_defined():
      raise ValueError(
        f'{field} leaves images of different sizes, {shape}; end it with an op '
        'that fixes the size, such as resize(224).'
      )
    return tuple(shape)


class BadExampleError(Exception):
  """An example that cannot be used, and why."""


class _Stream:
  """Batches of a process's own examples, from any place on, with gaps.

  Args:
    at: function from places to indices and a dict of extras.
    source: see `sources`.
    spec: of the extras.
    preprocessed: function (record, seed) -> example, of graph ops.
    size: of a batch.

  Attributes:
    size: of a batch.
    used: number of places that the consumer has got.
  """

  def __init__(self, at, source, spec, preprocessed, size):
    self._at, self._source, self._preprocessed = at, source, preprocessed
    self._spec = source.spec | spec | {'place': tf.TensorSpec([], tf.int64)}
    self.size, self.used = size, 0
    # More than all buffers hold: beyond it, nothing but bad examples was read.
    self._most_ahead = 16 * size + 8192
    self._failure = None
    self._block = functools.lru_cache(maxsize=4)(self._block)

  def chunks(self, first, stop):
    """Yields dicts of arrays for places first..stop - 1, 'place' among them.

    What is bad is missing. Too many bad ones in a row end it early, and so that
    no mistake of ours is taken for a bad example, so does any other exception
    when records are read; it is raised here.
    """
    # Chunks begin at multiples of their size, wherever the first place is.
    chunks = tf.data.Dataset.range(first // _CHUNK * _CHUNK, stop, _CHUNK)
    # Two at a time: one is read while the other is used up.
    chunks = chunks.map(
      lambda start: self._read_chunk(start, first, stop), 2, deterministic=True
    )
    chunks = chunks.take_while(lambda chunk, go_on: go_on)
    records = chunks.flat_map(
      lambda chunk, go_on: tf.data.Dataset.from_tensor_slices(chunk)
    )
    examples = records.map(self._finish, tf.data.AUTOTUNE, deterministic=True)
    examples = examples.ignore_errors(log_warning=False)
    yield from examples.batch(self.size).prefetch(2).as_numpy_iterator()
    if self._failure is not None:
      raise self._failure

  def _read_chunk(self, start, first, stop):
    keys = list(self._spec)
    dtypes = [self._spec[key].dtype for key in keys]

    def read(start):
      try:
        places = np.arange(max(start, first), min(start + _CHUNK, stop))
        indices, extras = self._located(places)
        records = self._source.read(indices) | extras | {'place': places}
        arrays = [records[key] for key in keys]
        return [*arrays, start - self.used < self._most_ahead]
      except BaseException as error:
        self._failure = error
        return [
          *(np.zeros([0, *s.shape], s.dtype.as_numpy_dtype)
            for s in self._spec.values()),
          False,
        ]  # fmt: skip

    *arrays, go_on = tf.numpy_function(read, [start], [*dtypes, tf.bool])
    for key, array in zip(keys, arrays, strict=True):
      array.set_shape([None, *self._spec[key].shape])
    go_on.set_shape([])
    return dict(zip(keys, arrays, strict=True)), go_on

  def _located(self, places):
    """Returns what `at` does, for places of one block."""
    number, first = divmod(int(places[0]), _BLOCK)
    indices, extras = self._block(number)
    rows = slice(first, first + len(places))
    return indices[rows], {k: v[rows] for k, v in extras.items()}

  def _block(self, number):
    return self._at(np.arange(number * _BLOCK, (number + 1) * _BLOCK))

  def _finish(self, record):
    seed, place = record.pop('seed'), record.pop('place')
    mask = record.pop('mask', None)
    example = self._preprocessed(record, seed)
    return _weighted(example, mask) | {'place': place}


def _weighted(example, mask):
  """Returns the example with the product of masks, or without if it is None."""
  own = example.pop('mask')
  return example if mask is None else example | {'mask': mask * own}
