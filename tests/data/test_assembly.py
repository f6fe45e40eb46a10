import numpy as np
import pytest

from vit_jax.data import assembly


class Stream:
  """Chunks of examples that are their own place, without the bad ones."""

  def __init__(self, size, bad, chunk, ends=()):
    self.size, self.used = size, 0
    self._bad, self._chunk, self._ends = set(bad), chunk, list(ends)

  def chunks(self, first, stop):
    if self._ends:
      stop = min(stop, self._ends.pop(0))
    good = [p for p in range(first, stop) if p not in self._bad]
    for i in range(0, len(good), self._chunk):
      places = np.array(good[i : i + self._chunk])
      label = np.where(places % 7 == 3, -1, places)  # such labels do not exist
      yield {'place': places, 'label': label, 'image': places[:, None] * [1, 1]}


@pytest.mark.parametrize('bad', [[], [0], [4], [11], [1, 2, 3, 9], range(12)])
@pytest.mark.parametrize('chunk', [1, 3, 4, 5])
@pytest.mark.parametrize('ends', [(), (5,), (2, 7), (0, 0, 0)])
def test_batches_are_whole_whatever_is_missing(bad, chunk, ends):
  stream = Stream(4, bad, chunk, ends)
  asked = []

  def repaired(place):
    asked.append(place)
    return {'label': np.int64(place), 'image': np.array([place, place])}

  batches = list(
    assembly.without_gaps(stream, 12, repaired, lambda label: label >= 0)
  )
  assert [b['label'].tolist() for b in batches] == [
    [0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]
  ]  # fmt: skip
  for batch in batches:
    assert set(batch) == {'label', 'image'}
    np.testing.assert_array_equal(batch['image'][:, 1], batch['label'])
  missing = sorted({*bad, 3, 10})
  assert asked == sorted(asked)
  assert set(missing) <= set(asked)
  if not ends:  # nothing else is made twice
    assert asked == missing


def test_whole_chunks_are_not_copied():
  chunks = [
    {'place': np.arange(i, i + 4), 'label': np.arange(i, i + 4)} for i in (0, 4)
  ]
  arrays = [chunk['label'] for chunk in chunks]
  stream = Stream(4, [], 4)
  stream.chunks = lambda first, stop: iter(chunks)
  batches = assembly.without_gaps(stream, 8, None, lambda label: label >= 0)
  for batch, array in zip(batches, arrays, strict=True):
    assert np.shares_memory(batch['label'], array)


def test_the_stream_learns_how_far_its_consumer_is():
  stream = Stream(4, [], 4)
  batches = assembly.without_gaps(stream, 12, None, lambda label: label >= -1)
  used = [stream.used for _ in batches]
  assert used == [0, 4, 8]
