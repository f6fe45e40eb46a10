import itertools
import time
import tracemalloc

import numpy as np
import pytest

from vit_jax import sharding
from vit_jax.data import datasets, pipeline, sources


@pytest.fixture
def numbered(monkeypatch):
  """A data set of 50 one-pixel images that show their own number."""

  def source(split):
    assert split == 'train'
    number = np.arange(50)
    image = number.astype(np.uint8)[:, None, None, None].repeat(3, -1)
    return sources.ArraySource(
      {'image': image, 'label': number.astype(np.int32)}
    )

  row = datasets.Dataset(50, source)
  monkeypatch.setitem(datasets.DATASETS, 'numbered', row)


def train_data(mesh, batch_size=16, seed=0, preprocess=''):
  return pipeline.TrainData(
    mesh, seed, 'numbered', 'train', batch_size, preprocess
  )


def labels(batches, count):
  return [np.asarray(b['label']) for b in itertools.islice(batches, count)]


def test_an_epoch_has_every_example_once(numbered, make_mesh):
  data = train_data(make_mesh(8))
  assert data.num_examples == data.num_classes == 50
  assert data.image_shape == (1, 1, 3)
  batches = list(itertools.islice(data.batches(0), 7))
  for batch in batches:
    np.testing.assert_array_equal(batch['image'][:, 0, 0, 0], batch['label'])
    assert batch['image'].dtype == np.uint8
    assert batch['image'].sharding == sharding.batch_sharding(make_mesh(8))
  order = np.concatenate([b['label'] for b in batches])
  assert sorted(order[:50]) == sorted(order[50:100]) == list(range(50))
  assert list(order[:50]) != list(order[50:100])


def test_starting_anywhere_gives_the_same_batches(numbered, make_mesh):
  data = train_data(make_mesh(8))
  straight = labels(data.batches(0), 6)
  np.testing.assert_array_equal(labels(data.batches(4), 2), straight[4:])


def test_the_seed_changes_the_order(numbered, make_mesh):
  a, b = (train_data(make_mesh(8), seed=s) for s in (0, 1))
  assert (labels(a.batches(0), 1)[0] != labels(b.batches(0), 1)[0]).any()


@pytest.mark.parametrize('num_processes', [2, 4])
def test_processes_share_the_same_batches(
  numbered, make_mesh, monkeypatch, num_processes
):
  # Random crops of a padded pixel: the augmentation has to agree as well.
  data = train_data(make_mesh(1), preprocess='random_crop(1, padding=1)')
  whole = list(itertools.islice(data.batches(2), 4))
  monkeypatch.setattr(sharding, 'global_batch', lambda batch, mesh: batch)
  parts = []
  for rows in np.split(np.arange(16), num_processes):
    monkeypatch.setattr(sharding, 'local_rows', lambda mesh, size, r=rows: r)
    parts.append(list(itertools.islice(data.batches(2), 4)))
  for i, batch in enumerate(whole):
    for key in ('image', 'label'):
      joined = np.concatenate([part[i][key] for part in parts])
      np.testing.assert_array_equal(joined, batch[key])


def test_far_steps_cost_nothing(make_mesh, monkeypatch):
  class Huge:
    """300 million examples that are their own index."""

    def __init__(self):
      self.spec = sources.ArraySource(
        {'image': np.zeros((1, 1, 1, 3), np.uint8), 'label': np.zeros(1, 'i8')}
      ).spec
      self.num_read = 0

    def __len__(self):
      return 300_000_000

    def read(self, indices):
      self.num_read += len(indices)
      image = np.zeros((len(indices), 1, 1, 3), np.uint8)
      return {'image': image, 'label': indices}

    def parse(self, record):
      return record

  huge = Huge()
  row = datasets.Dataset(300_000_000, lambda split: huge)
  monkeypatch.setitem(datasets.DATASETS, 'huge', row)
  data = pipeline.TrainData(make_mesh(1), 0, 'huge', 'train', 64, '')
  next(data.batches(0))  # TensorFlow starts
  tracemalloc.start()
  begun = time.process_time()
  batch = next(data.batches(10**7))
  seconds = time.process_time() - begun
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert len(set(np.asarray(batch['label']).tolist())) == 64
  assert huge.num_read < 100_000  # what is prefetched, not what is skipped
  assert seconds < 1
  assert peak < 10e6  # the order alone would be 2.4 GB


@pytest.mark.parametrize('batch_size', [8, 16, 64])
def test_evaluation_counts_each_example_once(numbered, make_mesh, batch_size):
  data = pipeline.EvalData(
    make_mesh(8), 'numbered', 'train', batch_size, '', 'config.evals.test'
  )
  batches = list(data.batches())
  assert len(batches) == -(-50 // batch_size)
  assert {b['mask'].shape for b in batches} == {(batch_size,)}
  seen = [b['label'][np.asarray(b['mask']) > 0] for b in batches]
  np.testing.assert_array_equal(np.concatenate(seen), np.arange(50))


def test_mistakes_are_explained(numbered, make_mesh):
  mesh = make_mesh(8)
  with pytest.raises(ValueError, match='config.seed=-1 is negative'):
    train_data(mesh, seed=-1)
  with pytest.raises(ValueError, match='batch_size=12 does not divide over 8'):
    train_data(mesh, batch_size=12)
  with pytest.raises(
    ValueError, match=r"config.train.dataset='digit'.*'digits"
  ):
    pipeline.TrainData(mesh, 0, 'digit', 'train', 8, '')
  with pytest.raises(ValueError, match="config.train: split='val' is unknown"):
    pipeline.TrainData(mesh, 0, 'digits', 'val', 8, '')
