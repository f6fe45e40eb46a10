"""Some of a source's examples: all but duplicates, or a random subset.

The lists of duplicates that `vit_jax.data.deduplicate` writes are text: a line
of JSON that says which examples they are of, then one index a line.
"""

import json

import numpy as np

from vit_jax import storage
from vit_jax.data import order

# Of all subsets, whatever the run's seed: a smaller one is inside a larger one.
_SUBSET_SEED = 20_101_929


class Selection:
  """A source of some of another source's examples.

  Args:
    source: see `sources`.
    length: how many.
    locate: function from places in the selection, int64 [n], to indices of
      `source`, int64 [n].
  """

  def __init__(self, source, length, locate):
    self._source, self._length, self._locate = source, length, locate
    self.spec, self.parse = source.spec, source.parse

  def __len__(self):
    return self._length

  def read(self, indices):
    return self._source.read(self._locate(indices))

  def name(self, index):
    return self._source.name(self._one(index))

  def reason(self, index):
    return self._source.reason(self._one(index))

  def _one(self, index):
    return int(self._locate(np.array([index]))[0])


def subset(source, size):
  """Returns a random choice of `size` examples, the same everywhere.

  A smaller subset of the same source is inside a larger one. It is computed
  from one permutation and takes no memory.

  Raises:
    ValueError: if there are not so many.
  """
  if not isinstance(size, int) or not 1 <= size <= len(source):
    raise ValueError(
      f'subset={size!r} is not a number of examples from 1 to {len(source):,}, '
      'all there are.'
    )

  def locate(places):
    return order.permutation(places, _SUBSET_SEED, 0, len(source))

  return Selection(source, size, locate)


def without(source, dropped):
  """Returns the source without some of its examples, otherwise in its order.

  Args:
    source: see `sources`.
    dropped: int array of indices, in any order.
  """
  dropped = np.unique(np.asarray(dropped, np.int64))
  # How many examples are kept before each dropped one.
  kept_before = dropped - np.arange(len(dropped))

  def locate(places):
    return places + np.searchsorted(kept_before, places, side='right')

  return Selection(source, len(source) - len(dropped), locate)


def write_drop_list(path, indices, dataset, split, num_examples):
  """Writes which examples of a split to leave out.

  Args:
    path: of the text file, local or gs://.
    indices: iterable of ints, sorted.
    dataset: name or path of the data set.
    split: of it.
    num_examples: that the split has.
  """
  header = dict(dataset=dataset, split=split, num_examples=num_examples)
  path = storage.path(path)
  with storage.errors(path, 'written'), path.open('w') as file:
    file.write(json.dumps(header) + '\n')
    file.writelines(f'{index}\n' for index in indices)


def read_drop_list(path, split, num_examples):
  """Returns the indices of a list to leave out, int64 [n].

  Args:
    path: of a file that `write_drop_list` wrote.
    split: that the list is to be applied to.
    num_examples: that it has.

  Raises:
    ValueError: if it is no such file, or one of other examples.
  """
  try:
    with storage.errors(path):
      text = storage.path(path).read_text()
    header, _, rest = text.partition('\n')
    header = json.loads(header)
    indices = np.array(rest.split(), np.int64)
    of, made_for = header['num_examples'], header['split']
  except OSError as error:
    raise ValueError(
      f'drop={path!r} cannot be read ({error.strerror or error}); '
      '`python -m vit_jax.data.deduplicate` writes such lists.'
    ) from None
  except (ValueError, TypeError, KeyError):
    raise ValueError(
      f'drop={path!r} is not a list of examples to leave out; `python -m '
      'vit_jax.data.deduplicate` writes such lists.'
    ) from None
  fits = not len(indices) or 0 <= indices.min() <= indices.max() < num_examples
  if (made_for, of) != (split, num_examples) or not fits:
    raise ValueError(
      f'drop={path!r} was made for {header.get("dataset")!r}, split '
      f'{made_for!r} of {of} examples, but is to be applied to split {split!r} '
      f'of {num_examples}; run `python -m vit_jax.data.deduplicate` on it.'
    )
  return indices
