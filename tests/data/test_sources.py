import sys

import numpy as np
import pytest

from vit_jax.data import datasets, pipeline, prepare, sources, tf

tfds = pytest.importorskip('tensorflow_datasets')


class TinyShapes(tfds.core.GeneratorBasedBuilder):
  """A real TFDS data set: JPEGs, one label, several labels."""

  VERSION = tfds.core.Version('1.0.0')

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        {
          'image': tfds.features.Image(encoding_format='jpeg'),
          'label': tfds.features.ClassLabel(num_classes=4),
          'labels': tfds.features.Sequence(
            tfds.features.ClassLabel(num_classes=4)
          ),
        }
      ),
    )

  def _split_generators(self, dl_manager):
    del dl_manager
    return {
      'train': self._generate_examples(20),
      'test': self._generate_examples(5),
    }

  def _generate_examples(self, count):
    for i in range(count):
      image = np.full((20 + i, 30, 3), 10 * i, np.uint8)
      labels = [i % 4, (i + 1) % 4]
      yield i, {'image': image, 'label': i % 4, 'labels': labels}


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  """TFDS's folder, with the data set prepared by the project's command."""
  path = str(tmp_path_factory.mktemp('tfds'))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(tfds.core.constants, 'DATA_DIR', path)
    prepare.prepare('tiny_shapes')
    yield path


def test_tfds_splits_and_records(data_dir):
  train = sources.TfdsSource('tiny_shapes', 'train', 4)
  assert len(train) == 20
  assert len(sources.TfdsSource('tiny_shapes', 'train[:25%]', 4)) == 5
  both = sources.TfdsSource('tiny_shapes', 'train[5:]+test', 4)
  assert len(both) == 20
  records = train.read(np.array([3, 0, 3]))
  assert records['record'].shape == (3,)
  assert records['record'][0] == records['record'][2]
  example = train.parse({'record': records['record'][0]})
  image = tf.io.decode_jpeg(example['image']).numpy()
  index = image.shape[0] - 20  # the builder has shuffled them
  assert image.shape == (20 + index, 30, 3)
  assert image[0, 0, 0] == pytest.approx(10 * index, abs=2)
  assert example['label'] == index % 4


def test_many_labels_become_targets(data_dir):
  source = sources.TfdsSource('tiny_shapes', 'test', 4, label='labels')
  targets = [
    source.parse({'record': r})['label'].numpy().tolist()
    for r in source.read(np.arange(5))['record']
  ]
  expected = [[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1], [1, 0, 0, 1]]
  assert sorted(targets) == sorted([*expected, expected[0]])


def test_a_tfds_data_set_trains(data_dir, make_mesh, monkeypatch):
  row = datasets._tfds(4, 'tiny_shapes:1.*.*')
  monkeypatch.setitem(datasets.DATASETS, 'tiny_shapes', row)
  data = pipeline.TrainData(
    make_mesh(8), 0, 'tiny_shapes', 'train', 8, 'inception_crop(12)|flip_lr'
  )
  batch = next(data.batches(5))
  assert batch['image'].shape == (8, 12, 12, 3)
  # One-coloured images say their label, whatever the crop.
  indices = np.round(np.asarray(batch['image'][:, 6, 6, 0]) / 10).astype(int)
  np.testing.assert_array_equal(batch['label'], indices % 4)
  with pytest.raises(ValueError, match=r'different sizes, \(None, None, 3\)'):
    pipeline.TrainData(make_mesh(8), 0, 'tiny_shapes', 'train', 8, 'flip_lr')


def test_what_is_missing_is_explained(data_dir):
  with pytest.raises(ValueError) as error:
    datasets.load('cifar10', 'train', 'config.train')
  assert 'python -m vit_jax.data.prepare cifar10`' in str(error.value)
  assert data_dir in str(error.value)
  with pytest.raises(ValueError, match="TFDS knows no data set 'nothing'"):
    sources.TfdsSource('nothing', 'train', 4)
  with pytest.raises(ValueError, match="split='tran' is not .* train, test"):
    sources.TfdsSource('tiny_shapes', 'tran', 4)


def test_preparing_again_changes_nothing(data_dir, capsys):
  prepare.prepare('tiny_shapes')
  assert 'tiny_shapes is ready in' in capsys.readouterr().out
  prepare.prepare('digits')
  assert 'nothing to prepare' in capsys.readouterr().out


def test_without_tfds_the_message_says_how_to_install_it(monkeypatch):
  monkeypatch.setitem(sys.modules, 'tensorflow_datasets', None)
  with pytest.raises(ValueError, match=r"run `pip install -e '.\[data\]'`"):
    datasets.load('cifar10', 'train', 'config.train')


def test_digits_are_scikit_learns_in_a_fixed_split():
  from sklearn.datasets import load_digits

  images, labels = load_digits(return_X_y=True)
  train, test = (datasets.digits(split) for split in ('train', 'test'))
  assert (len(train), len(test)) == (1438, 359)
  third = test.read(np.array([2]))
  assert third['label'] == labels[14]
  assert third['image'].shape == (1, 8, 8, 3)
  np.testing.assert_array_equal(
    third['image'][0, :, :, 1],
    (images[14].reshape(8, 8) * 255 / 16).round().astype(np.uint8),
  )
  np.testing.assert_array_equal(
    train.read(np.arange(5))['label'], labels[[0, 1, 2, 3, 5]]
  )
