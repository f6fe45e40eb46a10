import io
import json
import os
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from vit_jax.data import datasets, files, pipeline, sources, tf


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
    'bird/ä.jpeg', 'bird/notes.txt', 'empty/.notes.txt',
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


def test_names_of_splits_in_any_spelling(tmp_path):
  root = put(tmp_path, 'Training/a/1.png', 'TRAIN/b/1.png', 'Testing/b/2.png',
             'valid/a/3.png')  # fmt: skip
  (tmp_path / '__MACOSX/Training').mkdir(parents=True)
  (tmp_path / 'stray').mkdir()
  (tmp_path / 'stray/notes.txt').touch()
  data = load(root)
  assert data.class_names == ('a', 'b')
  assert [names(load(root, s)) for s in ('val', 'test')] == [
    [f'{root}/valid/a/3.png'], [f'{root}/Testing/b/2.png']
  ]  # fmt: skip
  assert len(load(root, 'train').source) == 2
  put(tmp_path, 'stray/1.png')
  with pytest.raises(
    ValueError, match='TRAIN is named like a split, but.*stra'
  ):
    load(root)
  # It may be a class: of those that ride on rails.
  rails = put(tmp_path / 'rails', 'train/1.png', 'tram/1.png')
  (tmp_path / 'rails/classes.txt').write_text('train\ntram\n')
  assert len(load(rails).source) == 2


def test_val_is_test_where_there_is_no_other(tmp_path):
  root = put(tmp_path, 'train/b/1.png', 'train/a/1.png', 'test/b/2.png')
  assert names(load(root, 'val')) == [f'{root}/test/b/2.png']
  assert set(files.load(root).splits) == {'train', 'test', 'all'}


def test_a_class_without_readable_images_is_an_error(tmp_path):
  root = put(tmp_path, 'cat/1.png', 'ape/1.JFIF', 'ape/2.jpe')
  assert len(load(root).source) == 3
  put(tmp_path, 'dog/1.heic', 'dog/x/2.HEIC')
  with pytest.raises(ValueError, match='dog has 2 files, none.*most are .heic'):
    load(root)


def test_of_a_single_class_there_is_nothing_to_learn(tmp_path, make_mesh):
  root = put(tmp_path, 'cat/1.png')
  with pytest.raises(
    ValueError, match="single class, 'cat', and there is nothing to learn"
  ):
    pipeline.TrainData(make_mesh(1), 0, root, 'all', 8, 'resize(8)')
  (tmp_path / 'classes.txt').write_text('cat\ndog\n')
  data = pipeline.TrainData(make_mesh(1), 0, root, 'all', 8, 'resize(8)')
  assert data.num_classes == 2


def test_a_folder_that_cannot_be_listed_is_an_error(photos, monkeypatch):
  scandir = os.scandir

  def refuse(path):
    if str(path).endswith('rex'):
      raise PermissionError(13, 'Permission denied')
    return scandir(path)

  monkeypatch.setattr(os, 'scandir', refuse)
  with pytest.raises(
    ValueError, match='dog/rex: Permission denied; make it re'
  ):
    load(photos)


def test_a_link_to_itself_is_no_class(photos, tmp_path):
  (tmp_path / 'photos/self').symlink_to(tmp_path / 'photos/self')
  assert load(photos).num_classes == 3


@pytest.mark.parametrize('name', [b'caf\xe9', 'a\nb', 'a\x85b', 'a\u2028b'])
def test_names_that_are_no_line_of_text_are_refused(tmp_path, name):
  folder = os.path.join(os.fsencode(tmp_path), os.fsencode(name))
  put(tmp_path, 'cat/1.png')
  os.mkdir(folder)
  with open(os.path.join(folder, b'1.png'), 'wb') as file:
    file.write(encoded('red'))
  with pytest.raises(
    ValueError, match='(caf|a).*cannot be the name of a class'
  ):
    load(tmp_path)


def test_classes_are_lines(tmp_path):
  root = put(tmp_path, 'cat/1.png', 'dog/1.png')
  (tmp_path / 'classes.txt').write_bytes(
    '\ufeffdog\r\ncat\r\na\u2028b\n'.encode()
  )
  assert load(root).class_names == ('dog', 'cat', 'a\u2028b')


def test_small_classes_have_an_image_in_val():
  # None of these has a hash that would put it there.
  rows = [
    (None, path, [label])
    for label in range(30)
    for path in [f'{label}/{i}' for i in range(200)
                 if files._hash(f'{label}/{i}') % 10][: 1 + label % 3]
  ]  # fmt: skip

  def val(rows, **kwargs):
    found = files.Files(rows, None, 30, '/', **kwargs)
    whole = [*found.splits['train'], *found.splits['val']]
    assert sorted(whole) == list(range(len(rows)))
    return sorted(found.path(i) for i in found.splits['val'])

  held_out = val(rows)
  assert len(held_out) == 20  # one of each class of two or three
  assert len({path.split('/')[1] for path in held_out}) == 20
  assert val(rows[::-1]) == held_out
  lowest = min(rows, key=lambda row: files._hash(row[1]))
  assert val(rows, many_labels=True) == [f'/{lowest[1]}']
  # What the user says stays.
  named = [('train', path, labels) for _, path, labels in rows]
  assert set(files.Files(named, None, 30, '/').splits) == {'train', 'all'}


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


def test_kinds_of_files(tmp_path):
  text = ' path , label\na.png, cat\nb.png, ape\n'
  for name in ('list.CSV', 'list.tsv'):
    (tmp_path / name).write_text(text)
  assert load(tmp_path / 'list.CSV').class_names == ('ape', 'cat')
  with pytest.raises(
    ValueError, match='list.tsv is a file that is not read; g'
  ):
    load(tmp_path / 'list.tsv')


def test_numbers_with_gaps_need_a_list_of_classes(tmp_path):
  path = tmp_path / 'm.csv'
  path.write_text('path,label\na.png,0\nb.png,9\n')
  with pytest.raises(ValueError, match='without gaps'):
    load(path)
  assert load(path, class_names=tuple('abcdefghij')).num_classes == 10
  (tmp_path / 'm.csv.classes.txt').write_text('\n'.join('abcdefghij'))
  assert load(path).num_classes == 10
  path.write_text('path,label\na.png,07\nb.png,08\n')
  (tmp_path / 'm.csv.classes.txt').unlink()
  assert load(path).class_names == ('07', '08')


@pytest.mark.parametrize(
  ('rows', 'message'),
  [
    ('path,label\na.png,0\nb.png,\n', 'line 3: a label is missing'),
    ('path,label\na.png,-1\n', r'line 2: label -1 is not in \[0, 1,000,001\)'),
    ('path,label\na.png,0\nb.png,cat\n', 'names and numbers as labels'),
    (
      'path,label\na.png,0\nb.png,01\n',
      "line 3: label '01' after 0: there are",
    ),
    (
      'path,label\na.png,99999999999999\n',
      '2: label 99999999999999 is not',
    ),
    ('path,label\na.png,1000000000\n', r'2: .*00 is not in \[0, 1,000,001\)'),
    ('path,label\na.png,2019\nb.png,2020\n', '2 numbers .*a model of 2,021 cl'),
    ('path,label,split\na,0,a b\n', "line 2: split='a b' is no name of a"),
    ('path,label,split\na,0,all\n', "line 2: split='all' is no name of a"),
    ('file,label\na.png,0\n', "columns are 'file', 'label'; it needs path and"),
    ('path,kind\na.png,0\n', "columns are 'path', 'kind'; it needs path and"),
    ('path;label\na.png;0\n', "columns are 'path;label'; .* commas between"),
    ('path,label\n', 'lists no images; write one a line'),
    ('{"path": "a.png", "label": 1' + '0' * 23 + '}\n', '1: label 10{23} is'),
    ('{"path": "a.png", "label": "a\\nb"}\n', "'a.nb' cannot be the name of"),
    ('[' * 100_000 + '\n', 'line 1: it is not a JSON object'),
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


def test_manifests_take_little_memory(tmp_path):
  path, size = tmp_path / 'm.csv', 50_000
  path.write_text('path,label\n' + ''.join(
    f'photos/n{i % 999:08}/{i:08}.jpg,name {i % 999}\n' for i in range(size)
  ))  # fmt: skip
  tracemalloc.start()
  found = files.load(str(path))
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 150 * size
  assert found.labels(size - 1) == sorted(
    range(999), key=lambda i: f'name {i}'
  ).index((size - 1) % 999)


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
