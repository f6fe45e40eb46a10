"""What becomes of examples that cannot be used: one row for each kind."""

import io
import itertools
import re
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from vit_jax import sharding
from vit_jax.data import datasets, pipeline, sources

RNG = np.random.default_rng(0)


def encoded(kind='JPEG', mode='RGB', size=(24, 18), **kwargs):
  pixels = RNG.integers(0, 256, (*size[::-1], 3)).astype(np.uint8)
  stream = io.BytesIO()
  Image.fromarray(pixels).convert(mode).save(stream, kind, **kwargs)
  return stream.getvalue()


def deep_png():
  stream = io.BytesIO()
  Image.fromarray(np.full((18, 24), 40_000, np.uint16)).save(stream, 'PNG')
  return stream.getvalue()


def rotated():
  exif = Image.Exif()
  exif[0x0112] = 6
  return encoded(exif=exif)


def animated(kind):
  frames = [Image.new('RGB', (24, 18), color) for color in ('red', 'blue')]
  stream = io.BytesIO()
  frames[0].save(stream, kind, save_all=True, append_images=frames[1:])
  return stream.getvalue()


def huge_jpeg():
  """Returns a JPEG whose header says 65,000 x 65,000 pixels."""
  jpeg = bytearray(encoded())
  start = jpeg.index(b'\xff\xc0')
  jpeg[start + 5 : start + 9] = (65_000).to_bytes(2, 'big') * 2
  return bytes(jpeg)


def huge_png():
  return _png_header(30_000, 30_000)


def _png_header(width, height):
  png = bytearray(encoded('PNG'))
  png[16:24] = width.to_bytes(4, 'big') + height.to_bytes(4, 'big')
  png[29:33] = zlib.crc32(png[12:29]).to_bytes(4, 'big')
  return bytes(png)


def flipped_bits():
  jpeg = bytearray(encoded(size=(200, 200)))
  jpeg[:600] = bytes(x ^ 0x55 for x in jpeg[:600])
  return bytes(jpeg)


USABLE = {
  'cmyk': encoded(mode='CMYK'),
  'grey': encoded(mode='L'),
  '16-bit': deep_png(),
  'animated gif': animated('GIF'),
  'animated png': animated('PNG'),
  'animated webp': animated('WEBP'),
  'rotated': rotated(),
  'palette': encoded('PNG', mode='P'),
  'transparent': encoded('PNG', mode='RGBA'),
  'trailing bytes': encoded() + b'\0' * 99,
}
BAD = {
  'empty': (b'', 'the file is empty'),
  'text': (b'Not found', 'not an image'),
  'truncated jpeg': (encoded(size=(99, 99))[:900], 'JPEG'),
  'truncated png': (encoded('PNG')[:300], 'PNG'),
  'truncated webp': (encoded('WEBP')[:90], 'decod|truncated'),
  'corrupt': (flipped_bits(), 'not an image'),
  'huge jpeg': (huge_jpeg(), '65000 x 65000 pixels are more than 120,000,000'),
  'huge png': (huge_png(), '30000 x 30000 pixels are more|900000000 pixels'),
  'thin': (_png_header(20_000, 50), '20000 x 50 pixels: one side is over 200'),
  'missing': (None, 'No such file or directory'),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """Returns a function that makes 40 good images, and those with names."""
  monkeypatch.setattr(pipeline, '_FEWEST', 1)

  def make(contents, num_good=40):
    (tmp_path / 'data/a').mkdir(parents=True)
    for number in range(num_good):
      (tmp_path / f'data/a/{number:02}.jpg').write_bytes(encoded())
    for name, content in contents.items():
      path = tmp_path / 'data/a' / name
      if content is None:  # gone since the folder was listed, as links show
        path.symlink_to('nothing')
      else:
        path.write_bytes(content)
    (tmp_path / 'data/classes.txt').write_text('a\nb\n')
    return str(tmp_path / 'data')

  return make


def train_data(dataset, mesh, batch_size=8, recipe='resize(8)', **kwargs):
  kwargs = dict(max_bad_share=1.0) | kwargs
  return pipeline.TrainData(mesh, 0, dataset, 'all', batch_size, recipe,
                            **kwargs)  # fmt: skip


def eval_data(dataset, mesh, **kwargs):
  return pipeline.EvalData(
    mesh, dataset, 'all', 8, 'resize(8)', 'config.evals.test', **kwargs
  )


def take(data, count, start=0):
  return [
    {k: np.asarray(v) for k, v in batch.items()}
    for batch in itertools.islice(data.batches(start), count)
  ]


@pytest.mark.parametrize('kind', USABLE)
def test_what_looks_unusual_is_used(folder, make_mesh, kind):
  path = folder({'00.jpg': USABLE[kind]}, num_good=0)
  data = eval_data(path, make_mesh(1))
  (batch,) = data.batches()
  assert data.num_bad == 0
  # What it looks like, by Pillow alone.
  with Image.open(io.BytesIO(USABLE[kind])) as image:
    upright = ImageOps.exif_transpose(image)
    rgb = upright.convert('RGBA' if 'trans' in kind else 'RGB')
  expected = np.asarray(rgb.resize((8, 8), Image.BILINEAR, reducing_gap=None))
  if kind == '16-bit':
    expected = np.full((8, 8, 3), 40_000 // 256)
  assert abs(np.asarray(batch['image'])[0].mean((0, 1)).astype(float)
             - expected[..., :3].mean((0, 1))).max() < 12  # fmt: skip


@pytest.mark.parametrize('kind', BAD)
def test_training_goes_on_without_and_counts(folder, make_mesh, kind):
  content, why = BAD[kind]
  path = folder({'07b.jpg': content, '20b.jpg': content})
  data = train_data(path, make_mesh(1))
  take(data, 6)  # an epoch is 5 batches and 2
  news = data.news()
  assert data.num_bad >= 2
  assert len(news) == 2  # each is named once
  assert any(f'{path}/a/07b.jpg: ' in line for line in news)
  for line in news:
    assert line.startswith('Left out: ')
    assert re.search(why, line), line
  assert data.news() == []


@pytest.mark.parametrize('kind', BAD)
def test_an_evaluation_fails_naming_the_file(folder, make_mesh, kind):
  content, why = BAD[kind]
  path = folder({'07b.jpg': content})
  with pytest.raises(ValueError, match=rf'a/07b.jpg: .*({why}).*skip_bad=True'):
    list(eval_data(path, make_mesh(1)).batches())


def test_an_evaluation_told_to_skip_masks_and_counts(folder, make_mesh):
  bad = {f'{i:02}b.jpg': content for i, (content, _) in enumerate(BAD.values())}
  path = folder(bad)
  data = eval_data(path, make_mesh(1), skip_bad=True)
  for _ in range(2):  # each evaluation counts anew
    batches = list(data.batches())
    assert data.num_bad == len(BAD)
    mask = np.concatenate([b['mask'] for b in batches])
    assert mask.shape == (56,)
    assert mask.sum() == 40
    assert not mask[50:].any()
  names = [data._examples.name(i) for i in np.flatnonzero(mask == 0)[:-6]]
  assert [name.rpartition('/')[2] for name in names] == sorted(bad)


def test_the_next_example_takes_the_place(folder, make_mesh):
  path = folder({'07b.jpg': b'', '07c.jpg': b'damaged'})
  data = train_data(path, make_mesh(1), batch_size=14)
  pixels = np.concatenate([b['image'] for b in take(data, 3)])
  whole = eval_data(path, make_mesh(1), skip_bad=True)
  stored = np.concatenate([b['image'] for b in whole.batches()])[:42]
  seen = [np.flatnonzero((stored == image).all((1, 2, 3))) for image in pixels]
  counts = np.bincount(np.concatenate(seen), minlength=42)
  assert counts[[8, 9]].tolist() == [0, 0]  # 07b and 07c
  assert counts[10] == 3  # in their place
  assert (counts[[*range(8), *range(11, 42)]] == 1).all()


@pytest.mark.parametrize('num_processes', [2, 4])
def test_processes_agree_on_what_takes_the_place(
  folder, make_mesh, monkeypatch, num_processes
):
  path = folder({f'{i:02}b.jpg': b'' for i in range(0, 12, 2)})
  data = train_data(path, make_mesh(1), recipe='inception_crop(8)|flip_lr')
  whole = take(data, 9)
  straight = [b['image'] for b in whole]
  again = [b['image'] for b in take(data, 4, start=5)]
  np.testing.assert_array_equal(again, straight[5:])
  monkeypatch.setattr(sharding, 'global_batch', lambda batch, mesh: batch)
  parts = []
  for rows in np.split(np.arange(8), num_processes):
    monkeypatch.setattr(sharding, 'local_rows', lambda mesh, size, r=rows: r)
    parts.append(take(data, 9))
  for step, batch in enumerate(whole):
    for key, value in batch.items():
      np.testing.assert_array_equal(
        np.concatenate([part[step][key] for part in parts]), value
      )


def test_too_many_stop_the_run(folder, make_mesh, monkeypatch):
  path = folder({f'{i:02}b.jpg': b'' for i in range(10)})
  with pytest.raises(ValueError) as error:
    take(train_data(path, make_mesh(1), max_bad_share=0.1), 20)
  for text in ('config.train.max_bad_share=0.1', 'b.jpg: the file is empty',
               'prepare PATH'):  # fmt: skip
    assert text in str(error.value)
  # A share is not judged of a few examples.
  monkeypatch.setattr(pipeline, '_FEWEST', 1000)
  take(train_data(path, make_mesh(1), max_bad_share=0.1), 20)
  with pytest.raises(ValueError, match='max_bad_share=2 is not in'):
    train_data(path, make_mesh(1), max_bad_share=2)


@pytest.mark.parametrize('share', [0.5, 1.0])
def test_a_set_without_a_good_example_ends(folder, make_mesh, share):
  path = folder({f'{i:02}b.jpg': b'' for i in range(10)}, num_good=0)
  with pytest.raises(ValueError, match='the file is empty'):
    take(train_data(path, make_mesh(1), max_bad_share=share), 1)


def test_a_few_are_always_allowed(folder, make_mesh, monkeypatch):
  path = folder({'07b.jpg': b'', '08b.jpg': b'', '09b.jpg': b''}, num_good=20)
  data = train_data(path, make_mesh(1), max_bad_share=0.01)
  take(data, 60)  # 20 epochs
  assert 55 < data.num_bad < 70
  assert len(data.news()) == 3  # each is named once
  with pytest.raises(ValueError, match='config.train.max_bad_share=0;'):
    take(train_data(path, make_mesh(1), max_bad_share=0), 3)


def test_processes_judge_what_they_saw_together(folder, make_mesh):
  data = train_data(folder({}), make_mesh(1), max_bad_share=0.1)
  data.check_bad(103, 1000)
  data.check_bad(9_000, 100_000)
  with pytest.raises(ValueError, match='104 of 1,000 examples could not be'):
    data.check_bad(104, 1000)


def test_the_first_ten_are_named(folder, make_mesh):
  path = folder({f'{i:02}b.jpg': b'' for i in range(20)})
  data = train_data(path, make_mesh(1))
  take(data, 8)
  assert data.num_bad > 10
  news = data.news()
  assert len(news) == 11
  assert news[-1] == 'Further bad examples are counted, but not named.'


@pytest.mark.parametrize('label', [-1, 3, 1000])
def test_labels_out_of_range(make_mesh, monkeypatch, label):
  monkeypatch.setattr(pipeline, '_FEWEST', 1)
  labels = np.arange(20) % 3
  labels[7] = label
  arrays = {
    'image': np.zeros((20, 8, 8, 3), np.uint8),
    'label': labels.astype(np.int32),
  }
  row = datasets.Dataset(3, lambda split: sources.ArraySource(arrays))
  monkeypatch.setitem(datasets.DATASETS, 'wrong', row)
  data = pipeline.TrainData(
    make_mesh(1), 0, 'wrong', 'train', 10, '', max_bad_share=0.5
  )
  for batch in take(data, 4):
    assert ((batch['label'] >= 0) & (batch['label'] < 3)).all()
  assert data.num_bad == 2
  assert f'example 7: label {label} is not in [0, 3)' in data.news()[0]
  with pytest.raises(ValueError, match=f'test: example 7: label {label} is no'):
    list(
      pipeline.EvalData(make_mesh(1), 'wrong', 'x', 8, '', 'config.evals.test')
      .batches()
    )  # fmt: skip


def test_a_mistake_of_a_source_is_no_bad_example(make_mesh, monkeypatch):
  class Broken(sources.ArraySource):
    def read(self, indices):
      raise KeyError('a mistake of ours')

  broken = Broken({'image': np.zeros((9, 8, 8, 3), 'u1'), 'label': np.zeros(9)})
  row = datasets.Dataset(1, lambda split: broken)
  monkeypatch.setitem(datasets.DATASETS, 'broken', row)
  data = pipeline.TrainData(make_mesh(1), 0, 'broken', 'train', 3, '')
  with pytest.raises(KeyError, match='a mistake of ours'):
    next(data.batches(0))
