import json
import sys

import numpy as np
import pytest
from etils import epath

from vit_jax.data import preprocess, shard_table, shard_writer, shards, tf

pytest.importorskip('array_record')


def png(value, size=(2, 3)):
  return tf.io.encode_png(np.full((*size, 3), value, np.uint8)).numpy()


def example(number, labels):
  record = shards.make_example(png(number), labels, f'{number}.png')
  return shard_writer.Example(number, f'{number}.png', record)


def write(path, splits, many=False, num_classes=3, size=300):
  """Writes shards of two or three examples each; returns their Table."""
  path = epath.Path(path)
  with shard_writer.folder(path, 'test', splits):
    parts = {}
    for split, rows in splits.items():

      def examples(position, rows=rows):
        return (r for r in rows if position is None or r.position > position)

      written = shard_writer.write_split(path, split, examples, size)
      parts[split] = tuple(w.shard for w in written)
    names = tuple('abc'[:num_classes]) if num_classes <= 3 else None
    table = shard_table.Table(num_classes, names, many, parts, 'test')
    shard_writer.write_table(path, table)
  return table


@pytest.fixture
def folder(tmp_path):
  rows = [example(i, [i % 3]) for i in range(10)]
  write(tmp_path / 's', {'train': rows[:7], 'val': rows[7:]})
  return epath.Path(tmp_path / 's')


def labels(source):
  records = source.read(np.arange(len(source)))['record']
  return [
    source.parse({'record': r})['label'].numpy().tolist() for r in records
  ]


def test_splits_and_records(folder):
  assert shards.is_prepared(folder)
  source, num_classes, class_names = shards.load(folder, 'train')
  assert (len(source), num_classes, class_names) == (7, 3, ('a', 'b', 'c'))
  assert len(shard_table.read(folder).splits['train']) > 2
  assert labels(source) == [0, 1, 2, 0, 1, 2, 0]
  record = source.read(np.array([5]))['record'][0]
  image = preprocess.decode()(source.parse({'record': record})['image'], None)
  assert image.shape == (2, 3, 3)
  assert image[0, 0, 0] == 5
  assert source.reason(5) is None
  assert source.name(5).startswith('5.png (')
  assert 'train-0000' in source.name(5)
  assert labels(shards.load(folder, 'train[4:]+val[:1]')[0]) == [1, 2, 0, 1]
  middle = shards.load(folder, 'train[3:6]')[0]
  assert [middle.name(i)[0] for i in range(3)] == ['3', '4', '5']
  assert len(shards.load(folder, 'all')[0]) == 10
  with pytest.raises(ValueError, match="split='tran' is unknown"):
    shards.load(folder, 'tran')
  with pytest.raises(ValueError, match='has no examples'):
    shards.load(folder, 'train[:0]')


def test_many_labels_become_targets(tmp_path):
  rows = [example(0, [0, 2]), example(1, []), example(2, [1])]
  write(tmp_path, {'train': rows}, many=True)
  source, _, _ = shards.load(epath.Path(tmp_path), 'train')
  assert labels(source) == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize('many', [False, True])
@pytest.mark.parametrize('bad', [3, -1, 2**32 + 1])  # the last is 1 in 32 bits
def test_labels_outside_the_classes_are_seen(tmp_path, many, bad):
  write(tmp_path, {'train': [example(0, [1]), example(1, [bad])]}, many)
  source, _, _ = shards.load(epath.Path(tmp_path), 'train')
  assert source.reason(0) is None
  assert source.reason(1) == f'label {bad} is not in [0, 3)'
  with pytest.raises(
    tf.errors.InvalidArgumentError, match=r'is not in \[0, 3\)'
  ):
    labels(source)
  records = tf.data.Dataset.from_tensor_slices(
    source.read(np.array([1]))['record'].astype(bytes)
  )
  parsed = records.map(lambda r: source.parse({'record': r}))
  with pytest.raises(
    tf.errors.InvalidArgumentError, match=r'is not in \[0, 3\)'
  ):
    next(iter(parsed))


def test_a_record_that_is_damaged_has_a_reason(folder):
  file = sorted(folder.glob('train-*'))[1]
  damaged = bytearray(file.read_bytes())
  start = damaged.index(b'3.png')
  damaged[start] ^= 1
  file.write_bytes(bytes(damaged))
  source, _, _ = shards.load(folder, 'train')
  bad = [i for i in range(7) if source.reason(i)]
  assert bad
  assert 'mismatch' in source.reason(bad[0])
  assert source.name(bad[0]).startswith(str(file))
  read = source.read(np.arange(7))['record']
  assert [i for i in range(7) if read[i] == b''] == bad


def test_shards_that_are_not_as_the_table_says(folder):
  file = sorted(folder.glob('train-*'))[1]
  whole = file.read_bytes()
  file.write_bytes(whole[:-1])
  with pytest.raises(
    ValueError, match=r'train-00001.*bytes, not.*data.prepare'
  ):
    shards.load(folder, 'train')
  assert len(shards.load(folder, 'val')[0]) == 3  # of other shards
  file.unlink()
  with pytest.raises(ValueError, match=r'train-00001.array_record is missing'):
    shards.load(folder, 'train')
  file.write_bytes(whole)
  table = json.loads((folder / 'dataset.json').read_text())
  table['splits']['train'][1]['num_examples'] += 1
  (folder / 'dataset.json').write_text(json.dumps(table))
  with pytest.raises(ValueError, match=r'has \d records, not \d'):
    shards.load(folder, 'train')


def shard(**fields):
  line = dict(file='x.array_record', num_examples=1, num_bytes=1) | fields
  return {'splits': {'train': [line]}}


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'format': 2}, 'format=2'),
    ({'format': True}, 'format=True'),
    ({'num_classes': 0}, 'num_classes=0'),
    ({'num_classes': 3.0}, 'num_classes=3.0'),
    ({'num_classes': 10**9}, 'num_classes=1000000000'),
    ({'class_names': ['a']}, 'class_names'),
    ({'class_names': [1, 2, 3]}, 'class_names'),
    ({'many_labels': 1}, 'many_labels=1'),
    ({'splits': {}}, 'at least one split'),
    ({'splits': {'../x': []}}, 'not a name'),
    ({'more': 1}, 'the table.more is not a field'),
    ({'source': 3}, 'source'),
    (shard(file='../x'), "file='../x'"),
    (shard(file='/etc/passwd'), "file='/etc/passwd'"),
    (shard(file='.hidden'), "file='.hidden'"),
    (shard(file='x\n'), 'file='),
    (shard(file=3), 'file=3'),
    (shard(num_examples=-1), 'num_examples=-1'),
    (shard(num_examples=10**30), 'num_examples='),
    (shard(num_bytes=0), 'num_bytes=0'),
    (shard(more=1), 'more is not a field'),
    ({'splits': {'a': [{}]}}, 'splits.a lacks file'),
    ({'splits': {k: shard()['splits']['train'] for k in 'ab'}}, 'file twice'),
  ],
)
def test_a_table_that_was_tampered_with(folder, change, message):
  table = json.loads((folder / 'dataset.json').read_text())
  (folder / 'dataset.json').write_text(json.dumps(table | change))
  with pytest.raises(ValueError) as error:
    shards.load(folder, 'train')
  assert message in str(error.value)
  assert 'dataset.json' in str(error.value)


@pytest.mark.parametrize('text', ['', '[]', '[' * 100_000, '{"a": 1}', '\0'])
def test_a_table_that_is_none(folder, text):
  (folder / 'dataset.json').write_text(text)
  with pytest.raises(ValueError, match=r'dataset\.json'):
    shards.load(folder, 'train')


def test_a_rerun_writes_only_what_is_missing(folder, tmp_path):
  rows = [example(i, [i % 3]) for i in range(10)]
  splits = {'train': rows[:7], 'val': rows[7:]}
  before = {f.name: f.read_bytes() for f in folder.glob('*.*')}
  times = {f.name: f.stat().mtime for f in folder.glob('*.array_record')}
  (folder / 'train-00001.array_record').unlink()
  write(folder, splits)
  assert {f.name: f.read_bytes() for f in folder.glob('*.*')} == before
  after = {f.name: f.stat().mtime for f in folder.glob('*.array_record')}
  changed = {name for name in times if times[name] != after[name]}
  assert changed <= {'train-00001.array_record'}


def test_a_rerun_writes_the_shards_of_changed_files(folder):
  def write_train(stamps, is_bad):
    def examples(position):
      for i in range(0 if position is None else position + 1, 7):
        record = None if is_bad(i) else example(i, [0]).record
        yield shard_writer.Example(i, f'{i}', record, 'bad', stamps[i])

    def now(position, end):
      return stamps[0 if position is None else position + 1 : end + 1]

    with shard_writer.folder(folder / 'x', 'test', ['train']):
      split = shard_writer.write_split(
        folder / 'x', 'train', examples, 300, now
      )
      return list(split)

  stamps = list('abcdefg')
  first = write_train(stamps, lambda i: i == 1)
  assert first[0].bad == [('1', 'bad')]
  assert write_train(stamps, lambda i: False) == first
  (folder / 'x' / 'dataset.json').write_text('{}')
  again = write_train(['a', 'B', *stamps[2:]], lambda i: False)
  assert not (folder / 'x' / 'dataset.json').exists()
  assert again[0].bad == []
  assert again[0].end == first[0].end  # so that the others stay
  assert again[0].shard.num_examples == first[0].shard.num_examples + 1
  assert again[1:] == first[1:]


@pytest.mark.parametrize('split', ['/tmp/x', '../x', 'my split', '', 'all'])
def test_no_split_is_written_elsewhere(tmp_path, split):
  with pytest.raises(ValueError, match='cannot be packed: a name is 1 to 100'):
    write(tmp_path / 's', {'train': [example(0, [0])], split: []})
  assert not (tmp_path / 's').exists()


def test_a_folder_that_cannot_be_made(tmp_path):
  (tmp_path / 'file').write_text('x')
  with pytest.raises(ValueError, match=r'--out=.*file is a file; give a'):
    write(tmp_path / 'file', {'train': [example(0, [0])]})
  for path in (tmp_path / 'file' / 'x', '/proc/x'):
    with pytest.raises(ValueError, match=r'--out=.*x cannot be written'):
      write(path, {'train': [example(0, [0])]})


def test_a_dataset_json_of_others_is_no_table(folder, tmp_path):
  other = epath.Path(tmp_path / 'photos')
  other.mkdir()
  for text in ('{"name": "cats", "format": "jpeg"}', '[' * 10**5, '\0'):
    (other / 'dataset.json').write_text(text)
    assert not shards.is_prepared(other)
    with (
      pytest.raises(ValueError, match='is not empty'),
      shard_writer.folder(other, 'test', ['train']),
    ):
      pass
  (other / '.packing').mkdir()
  assert shards.is_prepared(other)


def test_notes_that_are_damaged_are_written_again(folder):
  rows = [example(i, [i % 3]) for i in range(10)]
  before = (folder / 'dataset.json').read_bytes()
  (folder / '.packing' / 'train-00001.json').write_text('[' * 10**5)
  write(folder, {'train': rows[:7], 'val': rows[7:]})
  assert (folder / 'dataset.json').read_bytes() == before


def test_without_array_record_the_error_says_what_to_install(
  folder, monkeypatch
):
  monkeypatch.setitem(sys.modules, 'array_record.python', None)
  with pytest.raises(ValueError, match=r"pip install -e '.\[data\]'"):
    shards.load(folder, 'train')


def test_a_folder_of_something_else_is_left_alone(folder, tmp_path):
  with (
    pytest.raises(ValueError, match='has another data set'),
    shard_writer.folder(folder, 'another', ['train']),
  ):
    pass
  (tmp_path / 'mine').mkdir()
  (tmp_path / 'mine' / 'thesis.txt').write_text('x')
  with (
    pytest.raises(ValueError, match='is not empty'),
    shard_writer.folder(epath.Path(tmp_path / 'mine'), 'test', ['train']),
  ):
    pass
  with (
    shard_writer.folder(folder, 'test', ['train']),
    pytest.raises(ValueError, match='another process'),
    shard_writer.folder(folder, 'test', ['train']),
  ):
    pass


def test_a_packing_that_was_not_finished_says_so(folder):
  (folder / 'dataset.json').unlink()
  assert shards.is_prepared(folder)
  with pytest.raises(ValueError, match='not packed to its end'):
    shards.load(folder, 'train')
