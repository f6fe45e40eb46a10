"""The search through the training images, an Apache Beam pipeline.

Beam is imported by whoever runs it. Workers get names and numbers only: they
open the training set and the index themselves, once a process.
"""

import functools
import json
import os
import threading

import numpy as np
from etils import epath

from vit_jax.data import datasets, images, tf
from vit_jax.data.deduplicate import fingerprints
from vit_jax.data.deduplicate.index import Index

_LOCK = threading.Lock()
_watchers = {}  # of the runs in this process: output folder -> function


class Reader:
  """Reads examples' images.

  Args:
    source: see `sources`.
  """

  def __init__(self, source):
    self._source = source
    self._image = tf.function(
      lambda record: source.parse(record)['image'],
      input_signature=[source.spec],
      autograph=False,
    )
    image = self._image.get_concrete_function().structured_outputs
    self._can_batch = image.shape.is_fully_defined()
    self._images = tf.function(
      lambda records: tf.map_fn(
        self._image, records, fn_output_signature=image.dtype
      ),
      input_signature=[
        {
          key: tf.TensorSpec([None, *spec.shape], spec.dtype)
          for key, spec in source.spec.items()
        }
      ],
      autograph=False,
    )

  def images(self, indices):
    """Returns a list of images, bytes or uint8 [height, width, 3].

    Instead of one that cannot be read, there is an Exception.

    Args:
      indices: int64 [n].
    """
    records = self._source.read(indices)
    if self._can_batch:
      try:  # in the time that one call of TensorFlow takes
        tensors = {key: tf.constant(v) for key, v in records.items()}
        return list(self._images(tensors).numpy())
      except Exception:  # one damaged record fails all
        pass
    return [
      self._one({key: tf.constant(v[place]) for key, v in records.items()})
      for place in range(len(indices))
    ]

  def _one(self, record):
    try:
      return self._image(record).numpy()
    except Exception as error:  # of damaged records
      return error

  def fingerprints(self, indices):
    """Returns a list of Fingerprint, or of str: why there is none."""
    return [
      self._fingerprint(image, int(index))
      for index, image in zip(indices, self.images(indices), strict=True)
    ]

  def _fingerprint(self, image, index):
    try:
      if isinstance(image, Exception):
        raise image
      return fingerprints.fingerprint(image)
    except Exception as error:  # decoders of damaged images raise anything
      return self._source.reason(index) or images.in_words(error)


class Find:
  """A function from the first index of a batch to a line of JSON.

  Args:
    dataset: name or path of the training set.
    split: of it.
    index: path of the test images' index.
    batch: number of examples.
    max_distance: see `Index.find`.
    out: the run's folder.
  """

  def __init__(self, dataset, split, index, batch, max_distance, out):
    self._data, self._index = (dataset, split), index
    self._batch, self._max_distance = batch, max_distance
    self._out = out

  def __call__(self, start):
    with _LOCK:  # threads share what the first one opens
      reader, length = _open_training_set(*self._data)
      tests = _open_index(self._index)
    stop = min(start + self._batch, length)
    found = reader.fingerprints(np.arange(start, stop))
    is_bad = [isinstance(one, str) for one in found]
    good = [i for i, bad in enumerate(is_bad) if not bad]
    matches = tests.find([found[i] for i in good], self._max_distance)
    with _LOCK:
      _watchers.get(self._out, lambda count: None)(stop - start)
    return json.dumps(
      {
        'images': stop - start,
        'bad': [(start + i, found[i]) for i, bad in enumerate(is_bad) if bad],
        'plain': _num_plain([found[i] for i in good]),
        'matches': [
          (start + i, *tests.places[row].tolist(), distance, kind)
          for i, of_image in zip(good, matches, strict=True)
          for row, distance, kind in of_image
        ],
      }
    )


def _num_plain(found):
  if not found:
    return 0
  thumbnails = np.stack([f.thumbnail for f in found])
  return int(fingerprints.is_plain(thumbnails).sum())


@functools.lru_cache(maxsize=1)
def _open_training_set(dataset, split):
  source = datasets.load(dataset, split, '--train').source
  return Reader(source), len(source)


@functools.lru_cache(maxsize=1)
def _open_index(path):
  return Index.load(path)


def run(find, starts, out, options, watch):
  """Returns the decoded lines of all batches, in no order.

  Args:
    find: a `Find`.
    starts: range of the first indices of batches.
    out: folder for the lines, local or gs://, that all workers reach.
    options: list of str, of Beam; [] is this machine.
    watch: function, called with the number of images that are done.
  """
  beam = import_beam()
  from apache_beam.options import pipeline_options

  options = options or [
    '--runner=FnApiRunner',
    '--direct_running_mode=multi_threading',
    f'--direct_num_workers={os.cpu_count()}',
  ]
  parts = epath.Path(out) / 'parts'
  _watchers[find._out] = watch
  try:
    with beam.Pipeline(
      options=pipeline_options.PipelineOptions(options)
    ) as pipeline:
      _ = (
        pipeline
        | 'Batches' >> beam.Create(starts)
        | 'Spread' >> beam.Reshuffle()
        | 'Find' >> beam.Map(find)
        | 'Write' >> beam.io.WriteToText(str(parts / 'part'))
      )
  finally:
    del _watchers[find._out]
    _open_training_set.cache_clear()
    _open_index.cache_clear()
  for path in sorted(parts.glob('part*')):
    with path.open() as file:
      yield from map(json.loads, file)
  parts.rmtree()


def import_beam():
  """Returns the module; raises ValueError with the command to install it."""
  try:
    import apache_beam
  except ImportError:
    raise ValueError(
      'Finding duplicates needs Apache Beam, which is not installed; run '
      "`pip install -e '.[deduplicate]'`."
    ) from None
  return apache_beam
