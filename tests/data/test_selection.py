import numpy as np
import pytest

from vit_jax.data import datasets, selection, sources


@pytest.fixture
def numbers():
  """A source of 1,000 examples that are their own number."""
  return sources.ArraySource({'label': np.arange(1000)})


def read(source):
  return source.read(np.arange(len(source)))['label']


def test_subsets_are_nested_and_always_the_same(numbers):
  small, large = (selection.subset(numbers, n) for n in (90, 300))
  assert len(small) == 90
  assert len(set(read(large))) == 300
  assert set(read(small)) < set(read(large))
  np.testing.assert_array_equal(read(small), read(large)[:90])
  again = selection.subset(numbers, 90)
  np.testing.assert_array_equal(read(small), read(again))
  assert sorted(read(selection.subset(numbers, 1000))) == list(range(1000))
  # Random: a tenth of each tenth, give or take four deviations.
  counts = np.histogram(read(large), 10, (0, 1000))[0]
  assert (abs(counts - 30) < 20).all()


def test_the_papers_subset_of_300_million_takes_no_memory():
  class Huge:
    spec = parse = None

    def __len__(self):
      return 303_000_000

    def read(self, indices):
      return indices

  nine, thirty = (selection.subset(Huge(), n * 10**6) for n in (9, 30))
  places = np.arange(10**6, 10**6 + 64)
  np.testing.assert_array_equal(nine.read(places), thirty.read(places))
  assert nine.read(places).max() > 10**8


def test_what_is_dropped_is_gone_and_the_rest_in_order(numbers):
  dropped = [0, 999, 5, 6, 7, 5, 500]
  kept = selection.without(numbers, dropped)
  np.testing.assert_array_equal(read(kept), np.delete(np.arange(1000), dropped))
  assert kept.name(0) == 'example 1'
  assert kept.reason(0) is None
  assert len(selection.without(numbers, [])) == 1000


def test_drop_lists_are_for_one_split_only(tmp_path):
  path = str(tmp_path / 'drop.txt')
  selection.write_drop_list(path, [3, 5], 'digits', 'train', 1438)
  data = datasets.load('digits', 'train', 'config.train', drop=path)
  whole = datasets.load('digits', 'train', 'config.train').source
  assert len(data.source) == 1436
  np.testing.assert_array_equal(
    data.source.read(np.array([2, 3, 4]))['image'],
    whole.read(np.array([2, 4, 6]))['image'],
  )
  with pytest.raises(
    ValueError, match="split 'train' of 1438 .* applied to split 'test' of 359"
  ):
    datasets.load('digits', 'test', 'config.train', drop=path)
  with pytest.raises(ValueError, match="applied to split 'train.:1438.' of 1"):
    datasets.load('digits', 'train[:1438]', 'config.train', drop=path)
  # The subset is one of what is left.
  both = datasets.load('digits', 'train', 'config.train', 1436, path).source
  assert len(both) == 1436


@pytest.mark.parametrize(
  'text', ['', '[]', '{"num_examples": 9, "split": ""}\nx', '{"split": ""}\n1']
)
def test_what_is_no_drop_list_is_refused(tmp_path, text):
  path = tmp_path / 'drop.txt'
  path.write_text(text)
  with pytest.raises(ValueError, match='is not a list of examples to leave'):
    selection.read_drop_list(str(path), 'train', 9)


def test_mistakes_are_explained(numbers, tmp_path):
  for size in (0, 1001, 2.5):
    with pytest.raises(ValueError, match=f'subset={size}.*from 1 to 1,000'):
      selection.subset(numbers, size)
  with pytest.raises(ValueError, match='missing.* cannot be read .No such'):
    selection.read_drop_list(str(tmp_path / 'missing'), 'train', 9)
  path = tmp_path / 'drop.txt'
  path.write_text('{"num_examples": 9, "split": "train"}\n9\n')
  with pytest.raises(ValueError, match='was made for'):
    selection.read_drop_list(str(path), 'train', 9)
