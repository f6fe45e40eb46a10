import functools
import json

import numpy as np
import pytest

from vit_jax.data import (
  datasets,
  labels,
  objectnet,
  pipeline,
  preprocess,
  shards,
  sources,
  tf,
)

tfds = pytest.importorskip('tensorflow_datasets')

TFDS_ROWS = [name for name, row in datasets.DATASETS.items() if row.tfds_name]


def value(feature, rng):
  """Returns an example of a TFDS feature, at random."""
  if isinstance(feature, tfds.features.FeaturesDict):
    return {name: value(feature[name], rng) for name in feature}
  makers = {  # a subclass before its parent
    tfds.features.Sequence: lambda: [
      value(feature.feature, rng) for _ in range(4)
    ],
    tfds.features.ClassLabel: lambda: int(rng.integers(feature.num_classes)),
    tfds.features.Image: lambda: rng.integers(
      0, 2, [side or 30 for side in feature.shape], np.uint8
    ),
    tfds.features.BBoxFeature: lambda: tfds.features.BBox(0.1, 0.2, 0.3, 0.4),
    tfds.features.Text: lambda: 'text',
    tfds.features.Tensor: lambda: rng.random(feature.shape, np.float32),
  }
  return next(make() for k, make in makers.items() if isinstance(feature, k))


class Records(list):
  def __getitems__(self, indices):
    return [self[index] for index in indices]


@functools.cache
def records(name):
  """Returns three serialized examples with the real data set's features."""
  features = sources.builder(name).info.features
  rng = np.random.default_rng(0)
  return Records(
    features.serialize_example(value(features, rng)) for _ in range(3)
  )


@pytest.fixture
def any_records(monkeypatch):
  """Makes every TFDS data set ready, with three examples in every split."""
  monkeypatch.setattr(sources, 'ready_builder', sources.builder)
  monkeypatch.setattr(sources, '_records', lambda name, split: records(name))


@pytest.mark.parametrize('name', TFDS_ROWS)
def test_every_tfds_row_loads(name, any_records):
  split = 'train' if datasets.DATASETS[name].num_train else 'test'
  data = datasets.load(name, split, 'config.train')
  op = preprocess.parse('resize(8)', 'test')

  @tf.function(input_signature=[data.source.spec], autograph=False)
  def parsed(record):
    example = data.source.parse(record)
    return example | {'image': op(example['image'], tf.constant([0, 0]))}

  read = data.source.read(np.arange(3))
  for record in read['record']:
    example = parsed({'record': tf.constant(record)})
    assert example['image'].dtype == tf.uint8
    assert example['image'].shape == (8, 8, 3)
    brightest = tf.reduce_max(example['image']).numpy()
    assert (brightest > 1) == ('dsprites' in name)
    if name == 'imagenet2012_real':
      assert example['label'].shape == (1000,)
      assert 1 <= tf.reduce_sum(tf.cast(example['label'], tf.int32)) <= 4
    else:
      assert example.keys() == {'image', 'label'}
      assert example['label'].dtype == tf.int32
      assert example['label'].shape == ()
      assert 0 <= example['label'] < data.num_classes


@pytest.mark.parametrize(
  ('name', 'size', 'held_out'),
  [
    ('cifar10', 50_000, 1_000),
    ('cifar100', 50_000, 1_000),
    ('digits', 1_438, 144),
    ('imagenet2012', 1_281_167, 12_812),
    ('oxford_flowers102', 1_020, 102),
    ('oxford_iiit_pet', 3_680, 368),
  ],
)
def test_development_splits_part_the_training_set(name, size, held_out):
  row = datasets.DATASETS[name]
  assert row.num_train == size
  template = tfds.core.ShardedFileTemplate(
    data_dir='.', dataset_name='x', filetype_suffix='array_record'
  )
  infos = tfds.core.splits.SplitDict(
    [tfds.core.SplitInfo('train', [size], 0, template)]
  )
  (dev,) = infos[row.splits['dev']].file_instructions
  (rest,) = infos[row.splits['train_without_dev']].file_instructions
  assert (rest.skip, rest.take) == (0, size - held_out)
  assert (dev.skip, dev.take) in [(rest.take, held_out), (rest.take, -1)]


def test_digits_have_a_development_split():
  sizes = {
    split: len(datasets.load('digits', split, 'config.train').source)
    for split in ('train', 'dev', 'train_without_dev')
  }
  assert sizes == {'train': 1_438, 'dev': 144, 'train_without_dev': 1_294}


def prepare(monkeypatch, tmp_path, name, splits):
  """Has TFDS's own code prepare a data set of our examples."""
  monkeypatch.setattr(tfds.core.constants, 'DATA_DIR', str(tmp_path))
  builder = sources.builder(name)
  given = {split: iter(enumerate(examples)) for split, examples in splits}
  monkeypatch.setattr(
    type(builder), '_split_generators', lambda self, manager: given
  )
  builder.download_and_prepare()


def test_splits_of_a_prepared_data_set(tmp_path, monkeypatch):
  image = np.zeros((32, 32, 3), np.uint8)
  examples = [
    {'id': str(i), 'image': image + i, 'label': i % 10} for i in range(100)
  ]
  prepare(
    monkeypatch,
    tmp_path,
    'cifar10:3.*.*',
    [('train', examples), ('test', examples[:7])],
  )

  def read(split):
    source = datasets.load('cifar10', split, 'config.train').source
    return source.read(np.arange(len(source)))['record'].tolist()

  assert len(read('dev')) == 2
  assert len(read('test')) == 7
  assert read('train_without_dev') + read('dev') == read('train')


def test_images_without_a_real_label_do_not_count(
  tmp_path, monkeypatch, make_mesh
):
  real = [[3, 999], [], [0]]
  examples = [
    {
      'image': np.zeros((9, 9, 3), np.uint8),
      'original_label': 0,
      'real_label': classes,
      'file_name': str(i),
    }
    for i, classes in enumerate(real)
  ]
  prepare(
    monkeypatch,
    tmp_path,
    'imagenet2012_real:1.*.*',
    [('validation', examples)],
  )
  data = pipeline.EvalData(
    make_mesh(1), 'imagenet2012_real', 'validation', 4, 'resize(8)', 'evals'
  )
  (batch,) = data.batches()
  found = [
    (np.flatnonzero(label).tolist(), float(mask))
    for label, mask in zip(batch['label'], batch['mask'], strict=True)
  ]
  assert sorted(found[:3]) == [([], 0.0), ([0], 1.0), ([3, 999], 1.0)]
  assert found[3][1] == 0  # padding


def test_a_label_that_does_not_exist_makes_a_bad_example():
  found = sources.targets(tf.constant([1, 2, 1]), 3)
  assert found.numpy().tolist() == [0, 1, 1]
  assert sources.targets(tf.zeros([0], tf.int64), 3).numpy().tolist() == [0] * 3
  for labels_of_image in ([3], [0, 99], [-1, 1]):
    with pytest.raises(tf.errors.InvalidArgumentError, match='is not in .0, 3'):
      sources.targets(tf.constant(labels_of_image), 3)


def test_imagenets_order_is_that_of_tfds():
  features = sources.builder('imagenet2012:5.*.*').info.features
  assert tuple(features['label'].names) == labels.synsets('imagenet2012')


@pytest.mark.parametrize(
  ('name', 'what'),
  [
    ('imagenet21k', 'prepare imagenet21k --from=PATH'),
    ('jft300m', 'not public; .*prepare jft300m --from=MANIFEST'),
  ],
)
def test_sets_of_shards(name, what, tmp_path, monkeypatch):
  monkeypatch.setattr(tfds.core.constants, 'DATA_DIR', str(tmp_path))
  with pytest.raises(ValueError, match=f'(?s){tmp_path}/{name} .*{what}'):
    datasets.load(name, 'train', 'config.train')
  asked = []
  source = sources.ArraySource({'label': np.arange(3)})
  row = datasets.DATASETS[name]

  def load(path, split):
    asked.append((str(path), split))
    return source, num_classes, None

  monkeypatch.setattr(shards, 'is_prepared', lambda path: True)
  monkeypatch.setattr(shards, 'load', load)
  num_classes = row.num_classes
  data = datasets.load(name, 'train[:2]', 'config.train')
  assert data.source is source
  assert data.num_classes == row.num_classes
  assert asked == [(f'{tmp_path}/{name}', 'train[:2]')]
  num_classes = 7
  with pytest.raises(ValueError, match=rf"7 classes.*dataset='{tmp_path}"):
    datasets.load(name, 'train', 'config.train')


CLASSES = {  # ObjectNet's label: ImageNet's names, ImageNet's classes
  'Alarm clock': ('analog clock; digital clock', [409, 530]),
  'Banana': ('banana', [954]),
  'Chair': (
    'barber chair; folding chair; rocking chair, rocker',
    [423, 559, 765],
  ),
}


@pytest.fixture
def objectnet_folder(tmp_path, monkeypatch):
  """A distribution of ObjectNet with three classes of ImageNet's and a coin."""
  monkeypatch.setattr(tfds.core.constants, 'DATA_DIR', str(tmp_path))
  root = tmp_path / objectnet.FOLDER
  folders = {name: name.lower().replace(' ', '_') for name in CLASSES}
  folders['Coin (money)'] = 'coin_money'
  image = np.full((10, 12, 3), [255, 0, 0], np.uint8)
  image[2:-2, 2:-2] = 77
  for number, folder in enumerate(folders.values()):
    (root / 'images' / folder).mkdir(parents=True)
    for i in range(number + 1):
      path = root / 'images' / folder / f'{i}.png'
      path.write_bytes(tf.io.encode_png(image).numpy())
  # A class's line is not its number there.
  lines = np.random.default_rng(0).permutation(1000).tolist()
  texts = dict(zip(lines, labels.names_of('imagenet2012'), strict=True))
  mappings = {
    'folder_to_objectnet_label.json': {v: k for k, v in folders.items()},
    'objectnet_to_imagenet_1k.json': {k: v[0] for k, v in CLASSES.items()},
    'pytorch_to_imagenet_2012_id.json': dict(enumerate(lines)),
  }
  (root / 'mappings').mkdir()
  for name, content in mappings.items():
    (root / 'mappings' / name).write_text(json.dumps(content))
  text = ''.join(f'{texts[line]}\n' for line in range(1000))
  (root / 'mappings' / 'imagenet_to_label_2012_v2').write_text(text)
  objectnet.load.cache_clear()
  return root


def test_objectnet(objectnet_folder):
  data = datasets.load('objectnet', 'test', 'evals')
  assert (len(data.source), data.num_classes) == (1 + 2 + 3, 1000)
  read = data.source.read(np.arange(6))
  assert read['label'].dtype == np.uint8
  found = [np.flatnonzero(row).tolist() for row in read['label']]
  clock, banana, chair = (classes for _, classes in CLASSES.values())
  assert found == [clock, banana, banana, chair, chair, chair]
  for i in range(6):
    record = {name: tf.constant(read[name][i]) for name in read}
    image = data.source.parse(record)['image'].numpy()
    np.testing.assert_array_equal(image, np.full((6, 8, 3), 77, np.uint8))
  assert data.source.name(0).endswith('objectnet-1.0/images/alarm_clock/0.png')


def test_objectnet_has_to_be_whole(objectnet_folder):
  (objectnet_folder / 'images/banana').rename(objectnet_folder / 'images/x')
  with pytest.raises(ValueError, match='images/banana is missing'):
    datasets.load('objectnet', 'test', 'evals')
  path = objectnet_folder / 'mappings' / 'objectnet_to_imagenet_1k.json'
  path.write_text('{"Chair": "no such thing"}')
  with pytest.raises(ValueError, match="'no such thing' is not a class"):
    datasets.load('objectnet', 'test', 'evals')
  path.unlink()
  with pytest.raises(ValueError, match=r'https://objectnet\.dev .* unpack'):
    datasets.load('objectnet', 'test', 'evals')


def test_a_version_that_tfds_no_longer_builds_is_explained():
  with pytest.raises(ValueError, match=r'oxford_iiit_pet.*only: 4\.0\.0'):
    sources.builder('oxford_iiit_pet:3.*.*')


@pytest.mark.parametrize(
  ('split', 'message'),
  [
    (None, "config.train.split=None is no text such as 'train'"),
    ('dev[:50%]', r"Here 'dev' stands for 'train\[90%:\]'\."),
    ('train+train_without_dev', "Here 'train_without_dev' stands for"),
  ],
)
def test_splits_that_cannot_be(split, message):
  with pytest.raises(ValueError, match=message):
    datasets.load('digits', split, 'config.train')
