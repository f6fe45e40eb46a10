import numpy as np
import pytest

from vit_jax.data import datasets, preprocess, tf, vtab

tfds = pytest.importorskip('tensorflow_datasets')

# Examples in TFDS's splits.
SIZES = {
  'caltech101': dict(train=3_059, test=6_085),
  'cifar100': dict(train=50_000, test=10_000),
  'clevr': dict(train=70_000, validation=15_000, test=15_000),
  'diabetic_retinopathy_detection/btgraham-300': dict(
    sample=10, train=35_126, validation=10_906, test=42_670
  ),
  'dmlab': dict(train=65_550, validation=22_628, test=22_735),
  'dsprites': dict(train=737_280),
  'dtd': dict(train=1_880, validation=1_880, test=1_880),
  'eurosat/rgb': dict(train=27_000),
  'kitti': dict(train=6_347, validation=423, test=711),
  'oxford_flowers102': dict(train=1_020, validation=1_020, test=6_149),
  'oxford_iiit_pet': dict(train=3_680, test=3_669),
  'patch_camelyon': dict(train=262_144, validation=32_768, test=32_768),
  'resisc45': dict(train=31_500),
  'smallnorb': dict(train=24_300, test=24_300),
  'sun397/tfds': dict(train=76_127, validation=10_875, test=21_750),
  'svhn_cropped': dict(train=73_257, test=26_032, extra=531_131),
}
# Images of the test sets.
NUM_TEST = {
  'caltech101': 6_085, 'cifar100': 10_000, 'dtd': 1_880, 'flowers102': 6_149,
  'pets': 3_669, 'sun397': 21_750, 'svhn': 26_032,
  'patch_camelyon': 32_768, 'eurosat': 5_400, 'resisc45': 6_300,
  'diabetic_retinopathy': 42_670,
  'clevr_count': 15_000, 'clevr_distance': 15_000, 'dmlab': 22_735,
  'dsprites_location': 73_728, 'dsprites_orientation': 73_728,
  'kitti_distance': 711, 'smallnorb_azimuth': 12_150,
  'smallnorb_elevation': 12_150,
}  # fmt: skip
NUM_CLASSES = [
  102, 100, 47, 102, 37, 397, 10, 2, 10, 45, 5, 8, 6, 6, 16, 16, 4, 18, 9,
]  # fmt: skip


def examples(task, split):
  """Returns the list of (split, index) that TFDS's parser makes of a split."""
  infos = [
    tfds.core.SplitInfo(
      name=name,
      shard_lengths=[size],
      num_bytes=0,
      filename_template=tfds.core.ShardedFileTemplate(
        data_dir='.', dataset_name='x', filetype_suffix='array_record'
      ),
    )
    for name, size in SIZES[vtab.TASKS[task].tfds_name.split(':')[0]].items()
  ]
  found = tfds.core.splits.SplitDict(infos)[split]
  return [
    (info.filename.split('-')[1].split('.')[0], index)
    for info in found.file_instructions
    for index in range(info.skip, info.skip + info.examples_in_shard)
    if index < info.skip + info.take or info.take == -1
  ]


def test_the_tasks_are_those_of_table_9():
  assert list(vtab.TASKS) == list(NUM_TEST)
  assert [t.num_classes for t in vtab.TASKS.values()] == NUM_CLASSES
  groups = [task.group for task in vtab.TASKS.values()]
  assert groups == sorted(groups, key=vtab.GROUPS.index)
  assert [groups.count(group) for group in vtab.GROUPS] == [7, 4, 8]
  rows = {name for name in datasets.DATASETS if name.startswith('vtab_')}
  assert rows == {f'vtab_{task}' for task in vtab.TASKS}


@pytest.mark.parametrize('task', vtab.TASKS)
def test_splits(task):
  row = datasets.DATASETS[f'vtab_{task}']
  found = {name: examples(task, text) for name, text in row.splits.items()}
  assert {name: len(set(found[name])) for name in found} == {
    'train': 1_000,
    'train800': 800,
    'val200': 200,
    'test': NUM_TEST[task],
  }
  assert sorted(found['train']) == sorted(found['train800'] + found['val200'])
  assert not set(found['train']) & set(found['test'])
  assert row.num_train == 1_000


@pytest.mark.parametrize('task', vtab.TASKS)
def test_classes_are_those_of_the_feature(task):
  row = vtab.TASKS[task]
  features = tfds.builder(row.tfds_name).info.features
  feature = features[row.label]
  if row.label != 'objects':
    values = tf.range(feature.num_classes, dtype=tf.int64)
    if row.to_class:
      values = tf.map_fn(row.to_class, values)
    assert sorted(set(values.numpy())) == list(range(row.num_classes))
  assert features['image'].shape[-1] == (
    1 if task.startswith(('dsprites', 'smallnorb')) else 3
  )


@pytest.mark.parametrize(
  ('value', 'expected'),
  [
    (0.01, 0), (7.9, 0), (8.0, 0), (8.01, 1), (8.5, 1), (8.6, 2), (9.0, 2),
    (9.4, 3), (9.5, 3), (9.9, 4), (10.0, 4), (10.1, 5), (99.0, 5),
  ],
)  # fmt: skip
def test_clevr_distance(value, expected):
  pixel_coords = np.array(
    [[1, 2, 50], [3, 4, value], [5, 6, 60], [0, 0, 99.5]], np.float32
  )
  objects = {'pixel_coords': tf.constant(pixel_coords)}
  assert vtab.clevr_distance_class(objects).numpy() == expected


@pytest.mark.parametrize(('count', 'expected'), [(3, 0), (7, 4), (10, 7)])
def test_clevr_count(count, expected):
  objects = {'size': tf.zeros([count], tf.int64)}
  assert vtab.count_class(objects).numpy() == expected


@pytest.mark.parametrize(
  ('types', 'z', 'expected'),
  [
    ([0, 1, 2], [30, 10, 25], 1),
    ([0, 3], [20.5, 5], 2),  # the pedestrian is no vehicle
    ([2], [8], 0),
    ([1], [-3], 0),  # behind the camera
    ([0], [20], 1),
    ([3, 5, 7], [1, 2, 3], 3),
    ([], [], 3),
  ],
)
def test_kitti_distance(types, z, expected):
  location = np.zeros([len(z), 3], np.float32)
  location[:, 2] = z
  objects = {
    'type': tf.constant(types, tf.int64),
    'location': tf.constant(location),
  }
  assert vtab.kitti_distance_class(objects).numpy() == expected


@pytest.mark.parametrize(('n', 'k'), [(32, 16), (40, 16)])
def test_groups_of_labels(n, k):
  classes = [vtab.grouped(n, k)(label) for label in range(n)]
  assert classes == [int(label / (n / k)) for label in range(n)]
  assert classes[-1] == k - 1


@pytest.mark.parametrize(
  ('task', 'recipe'),
  [
    ('pets', 'resize(448)|random_crop(384)|flip_lr'),
    ('clevr_count', 'resize(384)|flip_lr'),
    ('dsprites_location', 'resize(384)'),
    ('dsprites_orientation', 'resize(448)|random_crop(384)'),
    ('kitti_distance', 'resize(384)|flip_lr'),
    ('smallnorb_azimuth', 'resize(448)|random_crop(384)'),
    ('smallnorb_elevation', 'resize(448)|random_crop(384)|flip_lr'),
  ],
)
def test_recipes(task, recipe):
  assert vtab.train_recipe(task) == recipe
  assert vtab.eval_recipe() == 'resize(384)'


def test_who_crops_and_flips():
  rows = vtab.TASKS.items()
  assert [task for task, row in rows if not row.crop] == [
    'clevr_count', 'clevr_distance', 'dmlab', 'dsprites_location',
    'kitti_distance',
  ]  # fmt: skip
  assert [task for task, row in rows if not row.flip] == [
    'dsprites_location', 'dsprites_orientation', 'smallnorb_azimuth',
  ]  # fmt: skip


@pytest.mark.parametrize('task', ['pets', 'dmlab'])
def test_recipes_of_other_sizes(task):
  op = preprocess.parse(vtab.train_recipe(task, 24), 'test')
  image = op(tf.zeros([30, 50, 3], tf.uint8), tf.constant([1, 2]))
  assert image.shape == (24, 24, 3)
  assert '28' in vtab.train_recipe('pets', 24)


def test_mistakes_are_explained():
  with pytest.raises(ValueError, match="task='petz' .* pets"):
    vtab.train_recipe('petz')
  for split in ('train[:100]', 'test[50%:]', 'val'):
    with pytest.raises(
      ValueError, match='split=.* none of a VTAB task.* val200'
    ):
      datasets.load('vtab_clevr_count', split, 'config.train')


def test_what_preparing_needs_is_said(tmp_path, monkeypatch):
  monkeypatch.setattr(tfds.core.constants, 'DATA_DIR', str(tmp_path))
  with pytest.raises(ValueError) as error:
    datasets.load('vtab_kitti_distance', 'train', 'config.train')
  assert 'vit_jax.data.prepare kitti:3.1.0`' in str(error.value)
  assert 'opencv' in str(error.value)
