import io
import json
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from vit_jax.data import datasets, files, sources, tf


def encoded(color, kind='PNG'):
  stream = io.BytesIO()
  Image.new('RGB', (6, 4), color).save(stream, kind)
  return stream.getvalue()


def put(root, *names):
  for name in names:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded('red', 'WEBP' if 'webp' in name else 'PNG'))
  return str(root)


def load(path, split='all', **kwargs):
  return datasets.load(str(path), split, 'config.train', **kwargs)


def names(data):
  return [data.source.name(i) for i in range(len(data.source))]


@pytest.fixture
def photos(tmp_path):
  return put(
    tmp_path / 'photos',
    *(f'cat/{i}.JPG' for i in range(30)),
    'dog/rex/at the sea/7.PNG', 'dog/a.webp', 'dog/.hidden.png',
    'bird/ä.jpeg', 'bird/notes.txt', 'empty/notes.txt',
  )  # fmt: skip


def test_a_folder_of_class_folders(photos):
  data = load(photos)
  assert data.class_names == ('bird', 'cat', 'dog')
  assert data.num_classes == 3
  assert len(data.source) == 33
  assert names(data)[0] == f'{photos}/bird/ä.jpeg'
  assert names(data)[-2:] == [
    f'{photos}/dog/a.webp', f'{photos}/dog/rex/at the sea/7.PNG'
  ]  # fmt: skip
  records = data.source.read(np.array([32, 0, 5]))
  assert records['label'].tolist() == [2, 0, 1]
  for image in records['image']:
    np.testing.assert_array_equal(tf.io.decode_png(image)[0, 0], [255, 0, 0])


def test_a_hash_of_the_path_divides_train_and_val(photos, tmp_path):
  train, val, everything = (load(photos, s) for s in ('train', 'val', 'all'))
  assert 0 < len(val.source) < 10
  assert sorted(names(train) + names(val)) == sorted(names(everything))
  assert sorted(names(load(photos, 'train+val'))) == sorted(names(everything))
  # A new image moves no other one.
  put(tmp_path / 'photos', 'ape/1.png')
  assert set(names(val)) <= set(names(load(photos, 'val')))
  assert set(names(train)) <= set(names(load(photos, 'train')))
  # Of many images, a tenth.
  manifest = tmp_path / 'm.csv'
  manifest.write_text('path,label\n' + ''.join(f'{i},0\n' for i in range(9000)))
  assert 800 < len(load(manifest, 'val').source) < 1000


def test_folders_of_splits(tmp_path):
  root = put(tmp_path, 'train/b/1.png', 'train/a/1.png', 'val/b/2.png')
  assert load(root, 'train').class_names == ('a', 'b')
  val = load(root, 'val')
  assert names(val) == [f'{root}/val/b/2.png']
  assert val.source.read(np.array([0]))['label'] == 1
  assert len(load(root, 'train+val').source) == 3
  with pytest.raises(ValueError, match="split='test' is unknown.*all, train"):
    load(root, 'test')


def test_classes_of_another_set_or_of_a_file(photos, tmp_path):
  wanted = ('dog', 'cat', 'bird', 'cow')
  data = load(photos, class_names=wanted)
  assert data.class_names == wanted
  assert data.source.read(np.array([32]))['label'] == 0
  with pytest.raises(ValueError, match="photos/bird: 'bird' is not one of the"):
    load(photos, class_names=('dog', 'cat'))
  (tmp_path / 'photos/classes.txt').write_text('cat\ndog\nbird\n')
  assert load(photos).class_names == ('cat', 'dog', 'bird')
  (tmp_path / 'photos/classes.txt').write_text('cat\ncat\n')
  with pytest.raises(ValueError, match=r'classes.txt names a class twice'):
    load(photos)


def test_what_is_no_set_of_images_is_explained(tmp_path, photos):
  with pytest.raises(ValueError, match='nothing.* does not exist; give the pa'):
    load(tmp_path / 'nothing')
  (tmp_path / 'hollow').mkdir()
  with pytest.raises(ValueError, match='hollow has no images; .bmp, .gif'):
    load(tmp_path / 'hollow')
  put(tmp_path / 'photos', 'loose.JPG')
  with pytest.raises(
    ValueError, match=r'photos/loose.JPG is in no class folder; move it'
  ):
    load(photos)


def write_manifest(path, rows):
  if path.suffix == '.jsonl':
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  else:
    lines = [','.join(rows[0])] + [
      ','.join(
        ';'.join(map(str, v)) if isinstance(v, list) else str(v)
        for v in row.values()
      )
      for row in rows
    ]
    path.write_text('\n'.join(lines))
  return str(path)


@pytest.mark.parametrize('kind', ['csv', 'jsonl'])
def test_manifests(tmp_path, kind):
  put(tmp_path, 'x/1.png', '2.png')
  named = write_manifest(
    tmp_path / f'a.{kind}',
    [
      {'path': 'x/1.png', 'label': 'cat', 'split': 'train'},
      {'path': '2.png', 'label': 'ape', 'split': 'test'},
      {'path': str(tmp_path / '2.png'), 'label': 'cat', 'split': 'train'},
    ],
  )
  train = load(named, 'train')
  assert train.class_names == ('ape', 'cat')
  assert names(train) == [str(tmp_path / 'x/1.png'), str(tmp_path / '2.png')]
  records = train.source.read(np.array([0, 1]))
  assert records['label'].tolist() == [1, 1]
  assert len(records['image'][0]) and len(records['image'][1])
  many = write_manifest(
    tmp_path / f'b.{kind}',
    [
      {'path': 'x/1.png', 'labels': [0, 3]},
      {'path': '2.png', 'labels': [2]},
      {'path': '2.png', 'labels': []},
    ],
  )
  data = load(many)
  assert (data.num_classes, data.class_names) == (4, None)
  assert data.source.spec['label'] == tf.TensorSpec([4], tf.uint8)
  assert data.source.read(np.array([0, 1, 2]))['label'].tolist() == [
    [1, 0, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0]
  ]  # fmt: skip


@pytest.mark.parametrize('same_number', [True, False])
def test_one_label_each_in_a_list_is_targets_nevertheless(
  tmp_path, same_number
):
  rows = [
    {'path': '1.png', 'labels': [0]},
    {'path': '2.png', 'labels': [1] if same_number else [0, 1]},
  ]
  data = load(write_manifest(tmp_path / 'm.jsonl', rows))
  assert data.source.spec['label'].shape == (2,)


@pytest.mark.parametrize(
  ('rows', 'message'),
  [
    ('path,label\na.png,0\nb.png,\n', 'line 3: a label is missing'),
    ('path,label\na.png,-1\n', r'line 2: label -1 is not in \[0, 0\)'),
    ('path,label\na.png,0\nb.png,cat\n', 'names and numbers as labels'),
    ('file,label\na.png,0\n', 'line 2: it needs path, and either label or'),
    ('path,kind\na.png,0\n', 'line 2: it needs path, and either label or'),
    ('path,label\n', 'has no images'),
    ('{"path": "a.png", "label": 1.5}\n', 'line 1: labels are names or whole'),
    ('{"path": "a.png", "label": true}\n', 'line 1: labels are names or whol'),
    ('{"path": "a.png", "labels": 3}\n', 'line 1: labels is not a list'),
    ('{"path": 3, "label": 1}\n', 'line 1: path is not a text'),
    ('\n[]\n', 'line 2: it is not a JSON object'),
    ('{"path"', 'line 1: it is not a JSON object'),
  ],
)
def test_what_is_wrong_in_a_manifest_is_named_by_its_line(
  tmp_path, rows, message
):
  path = tmp_path / ('m.jsonl' if rows.lstrip()[0] in '{[' else 'm.csv')
  path.write_text(rows)
  with pytest.raises(ValueError, match=message):
    load(path)


def test_a_label_out_of_range_is_named_by_its_line(tmp_path):
  path = tmp_path / 'm.csv'
  path.write_text('path,label\na.png,1\nb.png,2\n')
  (tmp_path / 'm.csv.classes.txt').write_text('cat\ndog\n')
  with pytest.raises(ValueError, match=r'line 3: label 2 is not in \[0, 2\)'):
    load(path)


def test_text_in_another_encoding_is_explained(tmp_path):
  path = tmp_path / 'm.csv'
  path.write_bytes('path,label\nä.png,1\n'.encode('latin-1'))
  with pytest.raises(ValueError, match='is not text in UTF-8'):
    load(path)


def test_what_cannot_be_read_says_why(photos, tmp_path):
  (tmp_path / 'photos/dog/a.webp').write_bytes(b'')
  (tmp_path / 'photos/bird/ä.jpeg').unlink()
  put(tmp_path / 'photos', 'bird/ä.jpeg')
  source = load(photos).source
  (tmp_path / 'photos/bird/ä.jpeg').unlink()
  records = source.read(np.array([0, 31, 1]))
  assert [bool(image) for image in records['image']] == [False, False, True]
  assert source.reason(0) == 'No such file or directory'
  assert source.reason(31) == 'the file is empty'
  assert source.reason(1) is None


def test_paths_take_little_memory():
  rows = [(None, f'n{i % 999:08}/n{i:08}_{i:06}.JPEG', [i % 999])
          for i in range(100_000)]  # fmt: skip
  tracemalloc.start()
  found = files.Files(rows, None, 999, '/data')
  size, _ = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert size < 100 * len(rows)
  assert found.path(99_999) == '/data/n00000099/n00099999_099999.JPEG'


def test_sources_agree_on_their_form(photos):
  for source in (
    load(photos).source,
    load(photos, subset=3).source,
    sources.ArraySource(
      {'image': np.zeros((2, 1, 1, 3)), 'label': np.arange(2)}
    ),
  ):
    for attribute in ('spec', 'read', 'parse', 'name', 'reason'):
      assert hasattr(source, attribute)


def test_manifests_and_images_in_a_bucket(bucket):
  put(bucket, 'a/1.png')
  (bucket / 'a/m.csv').write_text('path,label\n1.png,cat\n')
  data = load('gs://bucket/a/m.csv')
  assert data.class_names == ('cat',)
  assert names(data) == ['gs://bucket/a/1.png']
  content = (bucket / 'a/1.png').read_bytes()
  assert data.source.read(np.array([0]))['image'][0] == content
  (bucket / 'a/m.csv.classes.txt').write_text('ape\ncat\n')
  assert load('gs://bucket/a/m.csv').class_names == ('ape', 'cat')
  with pytest.raises(ValueError, match='single images far away; list them'):
    load('gs://bucket/a')
