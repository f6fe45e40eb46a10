import io
import os

import numpy as np
import pytest
import tensorflow_datasets as tfds
from gcs.flaky_proxy import Fault
from PIL import Image

from vit_jax import storage
from vit_jax.data import (
  datasets,
  pipeline,
  prepare,
  selection,
  shards,
  sources,
)

COLORS = {'cat': (255, 0, 0), 'dog': (0, 0, 255)}


def put(root, *names):
  for name in names:
    stream = io.BytesIO()
    Image.new('RGB', (6, 4), COLORS[name[:3]]).save(stream, 'PNG')
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(stream.getvalue())


def load(path, split='all'):
  return datasets.load(os.fspath(path), split, 'config.train')


def names(data):
  return [data.source.name(i) for i in range(len(data.source))]


def batch(path, make_mesh):
  """Returns the first training batch of a data set as numpy arrays."""
  data = pipeline.TrainData(
    make_mesh(1), seed=1, dataset=os.fspath(path), split='train', batch_size=8,
    preprocess='resize(4)', max_bad_share=0.0,
  )  # fmt: skip
  first = next(data.batches(0))
  assert data.num_bad == 0
  return {name: np.asarray(array) for name, array in first.items()}


@pytest.fixture
def manifest(folder):
  """A manifest of eight images in the bucket."""
  images = [f'{name}{i}.png' for i in range(4) for name in ('cat', 'dog')]
  put(folder, *images)
  lines = ''.join(f'{image},{image[:3]},train\n' for image in images)
  (folder / 'list.csv').write_text('path,label,split\n' + lines)
  return folder / 'list.csv'


def test_a_manifest_and_its_images(manifest, folder):
  data = load(manifest)
  assert data.class_names == ('cat', 'dog')
  assert names(data)[:2] == [f'{folder}/cat0.png', f'{folder}/dog0.png']
  assert (
    data.source.read(np.array([1]))['image'][0]
    == (folder / 'dog0.png').read_bytes()
  )
  (folder / 'list.csv.classes.txt').write_text('ape\ndog\ncat\n')
  assert load(manifest).class_names == ('ape', 'dog', 'cat')


def test_a_store_that_fails_changes_no_batch(manifest, proxy, make_mesh):
  expected = batch(manifest, make_mesh)
  proxy.faults += [
    Fault(503, method='GET', path='cat', every=3, times=1),
    Fault('drop', method='GET', path='cat', every=2, times=1),
    Fault('slow', every=3, seconds=0.2),
  ]
  found = batch(manifest, make_mesh)
  assert all(fault.done for fault in proxy.faults)
  for name, array in expected.items():
    np.testing.assert_array_equal(found[name], array)


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_a_store_that_refuses_is_no_bad_image(manifest, proxy, make_mesh):
  load(manifest)
  proxy.faults.append(Fault(403, path='cat2'))
  with pytest.raises(storage.StoreError, match='cat2.png cannot be read: acce'):
    batch(manifest, make_mesh)


def test_an_image_that_is_missing_is_a_bad_one(manifest, folder):
  (folder / 'cat1.png').unlink()
  data = load(manifest)
  assert data.source.read(np.array([2]))['image'][0] == b''
  assert data.source.reason(2)


def test_errors_name_the_path(folder, proxy):
  with pytest.raises(ValueError, match=f'{folder}/no.csv.* does not exist'):
    load(folder / 'no.csv')
  with pytest.raises(ValueError, match='gs://other/a.csv: there is no bucket'):
    load('gs://other/a.csv')
  (folder / 'bad.csv').write_bytes(b'path,label\n\xff,1\n')
  with pytest.raises(ValueError, match='bad.csv is not text in UTF-8'):
    load(folder / 'bad.csv')
  put(folder / 'photos', 'cat/1.png')
  with pytest.raises(ValueError, match='single images far away; list them'):
    load(folder / 'photos')


def test_packed_shards(folder, proxy, make_mesh, tmp_path):
  """array_record reads them by itself, and finds the server, too."""
  local = tmp_path / 'photos'
  put(local, *(f'{name}/{i}.png' for i in range(6) for name in COLORS))
  proxy.faults += [
    Fault(503, method='POST|PUT', every=3, times=1),
    Fault(429, method='GET', every=5, times=1),
    Fault('drop', method='POST|PUT', every=4, times=1),
  ]
  prepare.prepare(str(local), out=folder / 'packed', bytes_per_shard=400)
  proxy.faults.clear()
  data = load(folder / 'packed')
  assert data.class_names == ('cat', 'dog')
  expected = load(local)
  assert len(data.source) == len(expected.source) == 12
  expected = batch(local, make_mesh)
  proxy.faults += [
    Fault(503, method='GET', path='train-.*alt=media', times=2),
    Fault('slow', every=7, seconds=0.2),
  ]
  found = batch(folder / 'packed', make_mesh)
  assert all(fault.done for fault in proxy.faults)
  proxy.faults.clear()
  for name, array in expected.items():
    np.testing.assert_array_equal(found[name], array)

  proxy.faults.append(Fault(403, path='train-.*alt=media'))
  with pytest.raises(
    storage.StoreError, match='shard cannot be read.*403.*reading gs://bucket'
  ):
    batch(folder / 'packed', make_mesh)
  proxy.faults.clear()

  (folder / 'packed' / 'val-00000.array_record').unlink()
  with pytest.raises(ValueError, match=r'gs://.*val-00000.*is missing'):
    shards.load(folder / 'packed', 'val')


class TinyColors(tfds.core.GeneratorBasedBuilder):
  """A real TFDS data set of eight images."""

  VERSION = tfds.core.Version('1.0.0')

  def _info(self):
    features = {
      'image': tfds.features.Image(encoding_format='png'),
      'label': tfds.features.ClassLabel(num_classes=8),
    }
    return tfds.core.DatasetInfo(
      builder=self, features=tfds.features.FeaturesDict(features)
    )

  def _split_generators(self, dl_manager):
    del dl_manager
    return {'train': self._generate_examples()}

  def _generate_examples(self):
    for i in range(8):
      yield i, {'image': np.full((4, 6, 3), i, np.uint8), 'label': i}


def test_what_tfds_has_prepared(folder, proxy, tmp_path, monkeypatch):
  """It is prepared on a disk, and copied to the bucket."""

  def records(data_dir):
    monkeypatch.setattr(tfds.core.constants, 'DATA_DIR', os.fspath(data_dir))
    source = sources.TfdsSource('tiny_colors', 'train[2:]', 8)
    return source.read(np.arange(len(source)))['record'].tolist()

  monkeypatch.setattr(tfds.core.constants, 'DATA_DIR', str(tmp_path))
  prepare.prepare('tiny_colors')
  for path in tmp_path.rglob('*'):
    if path.is_file():
      name = path.relative_to(tmp_path).as_posix()
      (folder / 'tfds' / name).write_bytes(path.read_bytes())
  expected = records(tmp_path)
  assert len(set(expected)) == 6
  proxy.faults += [
    Fault(503, method='GET', every=7, times=2),
    Fault('drop', method='GET', every=9, times=1),
  ]
  assert records(folder / 'tfds') == expected
  assert proxy.faults[0].done
  with pytest.raises(ValueError, match='TFDS_DATA_DIR=gs://no/tfds: there is'):
    records('gs://no/tfds')


def test_lists_of_duplicates(folder):
  selection.write_drop_list(folder / 'drop', [1, 5], 'photos', 'train', 9)
  found = selection.read_drop_list(f'{folder}/drop', 'train', 9)
  assert found.tolist() == [1, 5]
  with pytest.raises(ValueError, match='no_drop.* cannot be read'):
    selection.read_drop_list(f'{folder}/no_drop', 'train', 9)
