import io
import json
import pathlib
import sys

import numpy as np
import pytest
from PIL import Image

from vit_jax.data import datasets, deduplicate, selection
from vit_jax.data.deduplicate import __main__ as command
from vit_jax.data.deduplicate import evaluation, fingerprints

pytest.importorskip('apache_beam')
pytest.importorskip('faiss')


PLANTED = (
  'JPEG, quality 50',
  'half of the size',
  '10% cut off each side',
  'mirrored',
  'grey',
  'all at once',
)


@pytest.fixture(scope='module')
def tiles():
  """Tiles of two photos, most details first, without the plain ones."""
  # Larger than they are, as those of less than 64 pixels are compared strictly.
  found = [tile.resize((212, 160)) for tile in evaluation.tiles()]
  thumbnails = [
    fingerprints.fingerprint(np.asarray(x)).thumbnail for x in found
  ]
  is_plain = fingerprints.is_plain(np.stack(thumbnails))
  found = [x for x, plain in zip(found, is_plain, strict=True) if not plain]
  return sorted(found, key=lambda x: -len(encoded(x)))


@pytest.fixture(scope='module')
def folders(tmp_path_factory, tiles):
  """Test images, a training set with copies of some, and which those are."""
  root = tmp_path_factory.mktemp('data')
  train, test = root / 'train' / 'c', root / 'test' / 'c'
  train.mkdir(parents=True)
  test.mkdir(parents=True)
  half = len(tiles) // 2
  assert half >= 20
  for number, tile in enumerate(tiles):
    (test if number < half else train).joinpath(f'{number:02}.png').write_bytes(
      encoded(tile)
    )
  rng = np.random.default_rng(0)
  for number, name in enumerate(PLANTED):
    image, options = evaluation.ALTERATIONS[name](tiles[number], rng)
    suffix = 'jpg' if options['format'] == 'JPEG' else 'png'
    (train / f'copy{number}.{suffix}').write_bytes(encoded(image, **options))
  (train / 'exact.png').write_bytes((test / '10.png').read_bytes())
  (train / 'damaged.jpg').write_bytes(b'\xff\xd8 no more')
  (train / 'empty.png').write_bytes(b'')
  return root


def encoded(image, **options):
  file = io.BytesIO()
  image.save(file, **({'format': 'PNG'} | options))
  return file.getvalue()


def run(folders, out, *options):
  command.main(
    [
      f'--train={folders}/train:all',
      f'--against={folders}/test:all',
      f'--out={out}',
      *options,
    ]
  )
  return {path.name: path.read_bytes() for path in pathlib.Path(out).iterdir()}


@pytest.fixture(scope='module')
def result(folders, tmp_path_factory):
  out = tmp_path_factory.mktemp('out')
  return out, run(folders, out, '--batch=7')


def test_all_copies_are_found_and_nothing_else(result):
  _, files = result
  assert set(files) == set(deduplicate._FILES)
  matches = [json.loads(x) for x in files['matches.jsonl'].splitlines()]
  found = {
    pathlib.Path(m['train_name']).stem: pathlib.Path(m['test_name']).stem
    for m in matches
  }
  expected = {f'copy{i}': f'{i:02}' for i in range(len(PLANTED))}
  assert found == expected | {'exact': '10'}
  exact = [m for m in matches if m['kind'] == 'exact']
  assert [(m['distance'], m['test_index']) for m in exact] == [(0.0, 10)]
  assert all(0 <= m['distance'] <= 0.1 for m in matches)
  order = [m['train_index'] for m in matches]
  assert order == sorted(order)


def test_training_leaves_them_out(folders, result):
  out, _ = result
  path = str(folders / 'train')
  whole = datasets.load(path, 'all', 'f').source
  kept = datasets.load(path, 'all', 'f', drop=str(out / 'drop.txt')).source
  dropped = selection.read_drop_list(str(out / 'drop.txt'), 'all', len(whole))
  names = {pathlib.Path(whole.name(i)).stem for i in dropped}
  assert names == {f'copy{i}' for i in range(len(PLANTED))} | {'exact'}
  assert len(kept) == len(whole) - 7
  with pytest.raises(ValueError, match='but is to be applied to'):
    datasets.load(str(folders / 'test'), 'all', 'f', drop=str(out / 'drop.txt'))


def test_bad_training_images_are_listed(result):
  _, files = result
  bad = [json.loads(x) for x in files['bad.jsonl'].splitlines()]
  assert [pathlib.Path(b['name']).name for b in bad] == [
    'damaged.jpg',
    'empty.png',
  ]
  assert bad[1]['reason'] == 'the file is empty'
  report = json.loads(files['report.json'])
  assert (report['bad'], report['dropped']) == (2, 7)
  assert report['matches'] == {'exact': 1, 'near': 6}


def test_the_sheet_shows_every_match(result):
  _, files = result
  sheet = Image.open(io.BytesIO(files['matches.png']))
  assert sheet.size == (4 * 268, 2 * 170)  # 7 pairs, 4 a row
  assert np.asarray(sheet)[:128, :256].std() > 20


@pytest.mark.parametrize(
  'options',
  [
    ('--batch=100',),
    ('--batch=7', '--', '--runner=FnApiRunner'),
  ],
)
def test_workers_and_batches_change_nothing(folders, result, tmp_path, options):
  _, files = result
  assert run(folders, tmp_path / 'out', *options) == files


def test_an_earlier_run_is_kept(folders, result):
  out, files = result
  with pytest.raises(SystemExit, match='of an earlier run; .* --overwrite'):
    run(folders, out)
  assert (out / 'drop.txt').read_bytes() == files['drop.txt']


def test_bad_test_images_are_an_error(folders, tmp_path, capsys):
  swapped = tmp_path / 'data'
  (swapped / 'test').parent.mkdir()
  (swapped / 'test').symlink_to(folders / 'train')
  (swapped / 'train').symlink_to(folders / 'test')
  with pytest.raises(SystemExit, match=r'damaged.jpg cannot be read \(.*bad'):
    run(swapped, tmp_path / 'out')
  files = run(swapped, tmp_path / 'out', '--skip_bad')
  report = json.loads(files['report.json'])
  assert (report['bad_test_images'], report['dropped']) == (2, 7)
  assert 'damaged.jpg' in capsys.readouterr().err


def test_digits_are_no_copies_of_each_other(tmp_path):
  report = deduplicate.deduplicate(
    ('digits', 'train'), [('digits', 'test')], tmp_path / 'out'
  )
  assert report['images'] == 1438
  assert report['dropped'] == 0


def test_copies_of_photos_are_told_from_their_neighbours():
  scores = dict(evaluation.evaluate())
  assert scores.pop('tiles') == 60
  for name, score in scores.items():
    assert score.precision >= 0.9, name
  assert scores['none'].recall == 1
  assert scores['JPEG, quality 50'].recall_detailed >= 0.9
  assert scores['mirrored'].recall_detailed >= 0.9


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    ('cifar10', ('cifar10', 'test')),
    ('cifar10:train[:90%]', ('cifar10', 'train[:90%]')),
    ('photos/:val+test[5:]', ('photos/', 'val+test[5:]')),
    ('gs://bucket/photos', ('gs://bucket/photos', 'test')),
    ('gs://bucket/photos:all', ('gs://bucket/photos', 'all')),
  ],
)
def test_data_sets_on_the_command_line(text, expected):
  assert command.parse_data(text, 'test') == expected


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (['--against=digits', '--out=x'], '--train is missing'),
    (['--trian=x'], 'unrecognized arguments: --trian=x; .*Beam come after --'),
    (['--train=digits', '--against=cifar', '--out=x'], "--against.*'cifar'"),
    (['--train=digits', '--against=', '--out=x'], 'is no data set|missing'),
    (
      ['--train=digits', '--against=digits', '--out=x', '--max_distance=2'],
      r'max_distance=2.0 is not in \[0, 1\)',
    ),
    (['--evaluate', '--photos=/nowhere'], 'has no images'),
    (['--batch=0'], "'0' is no number"),
  ],
)
def test_mistakes_end_in_one_line(options, message):
  with pytest.raises(SystemExit, match=f'Error: .*{message}'):
    command.main(options)


@pytest.mark.parametrize('missing', ['apache_beam', 'faiss'])
def test_what_is_missing_is_explained(missing, monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, missing, None)
  with pytest.raises(ValueError, match=r"pip install -e '.\[deduplicate\]'"):
    deduplicate.deduplicate(
      ('digits', 'train'), [('digits', 'test')], tmp_path / 'out'
    )
