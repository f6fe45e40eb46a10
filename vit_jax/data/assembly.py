"""Whole batches from a stream of examples in which the bad ones are missing."""

import numpy as np


def without_gaps(stream, total, repaired, is_good):
  """Yields batches of examples, places 0 to total - 1 in order.

  Args:
    stream: has `size`, that of a batch; `chunks(first, stop)`, which yields
      dicts of arrays of examples in order, 'place' among them, with gaps, and
      may end early; and `used`, which is set to the places that are done.
    total: number of places, a multiple of the size of a batch.
    repaired: function from a place to an example for it.
    is_good: function from labels to which of them exist.
  """
  batches = _Assembly(stream.size)

  def repair(stop):
    while batches.place < stop:
      example = repaired(batches.place)
      yield from batches.add(
        {k: np.asarray(v)[None] for k, v in example.items()}
      )

  while batches.place < total:
    for chunk in stream.chunks(batches.place, total):
      for place, examples in _runs(chunk, is_good):
        yield from repair(place)
        yield from batches.add(examples)
      stream.used = batches.place
    # It has ended; or too much was bad, and goes on with the next batch.
    rest = (batches.place // stream.size + 1) * stream.size
    yield from repair(min(rest, total))


def _runs(chunk, is_good):
  """Yields (first place, examples) of all that follow each other."""
  places, good = chunk.pop('place'), is_good(chunk['label'])
  if not good.all():
    places, chunk = places[good], {k: v[good] for k, v in chunk.items()}
  if not len(places):
    return
  starts = np.flatnonzero(np.diff(places, prepend=-2) != 1)
  for start, stop in zip(starts, [*starts[1:], len(places)], strict=True):
    yield int(places[start]), {k: v[start:stop] for k, v in chunk.items()}


class _Assembly:
  """Batches of one size, made of examples in order.

  Attributes:
    place: how many examples were added.
  """

  def __init__(self, size):
    self._size, self._batch, self.place = size, None, 0

  def add(self, examples):
    """Adds examples, and yields each batch that is full then."""
    count = len(examples['label'])
    while count:
      start = self.place % self._size
      n = min(count, self._size - start)
      part = {k: v[:n] for k, v in examples.items()}
      if n == self._size:  # as it is without bad examples: nothing is copied
        self._batch = part
      else:
        self._put(part, start)
      examples, count = {k: v[n:] for k, v in examples.items()}, count - n
      self.place += n
      if self.place % self._size == 0:
        yield self._batch
        self._batch = None

  def _put(self, part, start):
    if self._batch is None:
      self._batch = {
        k: np.empty((self._size, *v.shape[1:]), v.dtype)
        for k, v in part.items()
      }
    for key, value in part.items():
      self._batch[key][start : start + len(value)] = value
