import gzip
import io
import json
import pathlib
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import process_runner
import pytest
from array_record.python import array_record_module
from etils import epath
from PIL import Image

from vit_jax.data import (
  datasets,
  files,
  labels,
  prepare,
  shard_table,
  shards,
  sources,
  tf,
  vtab,
)
from vit_jax.data.prepare import (
  file_packing,
  imagenet21k,
  packing,
  tar,
  tfds_building,
  vtab_status,
)

tfds = pytest.importorskip('tensorflow_datasets')
ROOT = pathlib.Path(__file__).parent.parent.parent


class TinyTiles(tfds.core.GeneratorBasedBuilder):
  """A real TFDS data set of grey tiles, in two splits."""

  VERSION = tfds.core.Version('1.0.0')

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        {
          'image': tfds.features.Image(encoding_format='png'),
          'label': tfds.features.ClassLabel(num_classes=4),
        }
      ),
    )

  def _split_generators(self, dl_manager):
    del dl_manager
    return {
      'train': self._generate_examples(12),
      'test': self._generate_examples(5),
    }

  def _generate_examples(self, count):
    for i in range(count):
      yield i, {'image': np.full((4, 4, 3), i, np.uint8), 'label': i % 4}


def picture(value, kind='PNG', size=(6, 4)):
  file = io.BytesIO()
  Image.fromarray(np.full((*size, 3), value, np.uint8)).save(file, kind)
  return file.getvalue()


def make_folder(root, count=15):
  for i in range(count):
    file = (
      root / ('cat', 'dog')[i % 2] / f'{i:02}.{("png", "webp")[i % 3 == 0]}'
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(picture(i, ('PNG', 'WEBP')[i % 3 == 0]))
  return root


def contents(folder):
  """Returns a dict of all files that count: not those of the state."""
  paths = pathlib.Path(folder).iterdir()
  return {p.name: p.read_bytes() for p in paths if p.is_file()}


def examples(source):
  """Returns a list of (image's bytes, label) of all examples."""
  found = []
  for i in range(len(source)):
    record = {k: v[0] for k, v in source.read(np.array([i])).items()}
    example = source.parse(record)
    image = example['image']
    image = image.numpy() if hasattr(image, 'numpy') else image
    found.append((image, np.asarray(example['label']).tolist()))
  return found


def test_a_folder_becomes_shards_of_the_same_examples(tmp_path, capsys):
  folder = make_folder(tmp_path / 'photos', 30)
  prepare.prepare(str(folder), bytes_per_shard=400)
  out = tmp_path / 'photos_shards'
  text = capsys.readouterr().out
  assert '2 classes' in text
  assert f"dataset='{out}'" in text
  assert (out / 'classes.txt').read_text() == 'cat\ndog\n'
  assert (out / 'bad_examples.jsonl').read_text() == ''
  found = files.load(str(folder))
  assert set(shard_table.read(epath.Path(out)).splits) == {'train', 'val'}
  for split in ('train', 'val', 'train[2:5]'):
    packed = datasets.load(str(out), split, 'config.train')
    assert (packed.num_classes, packed.class_names) == (2, ('cat', 'dog'))
    unpacked = files.FilesSource(found, split)
    assert examples(packed.source) == examples(unpacked)
    assert packed.source.reason(0) is None
  assert packed.source.name(0).startswith('cat/')
  before = contents(out)
  prepare.prepare(str(folder), bytes_per_shard=400)  # nothing changes
  assert contents(out) == before
  with pytest.raises(ValueError, match='has another data set'):
    prepare.prepare(str(make_folder(tmp_path / 'b', 4)), out=str(out))
  assert contents(out) == before


def test_a_manifest_with_splits_and_many_labels(tmp_path):
  make_folder(tmp_path, 4)
  rows = [
    dict(path='cat/00.webp', labels=[0, 2], split='train'),
    dict(path='dog/01.png', labels=[1], split='train'),
    dict(path='cat/02.png', labels=[2], split='test'),
  ]
  path = tmp_path / 'list.jsonl'
  path.write_text('\n'.join(map(json.dumps, rows)))
  prepare.prepare(str(path))
  out = epath.Path(tmp_path / 'list_shards')
  source, num_classes, names = shards.load(out, 'train')
  assert (num_classes, names) == (3, None)
  assert [label for _, label in examples(source)] == [[1, 0, 1], [0, 1, 0]]
  assert len(shards.load(out, 'all')[0]) == 3


def damage(folder):
  (folder / 'cat' / 'empty.png').write_bytes(b'')
  (folder / 'cat' / 'text.png').write_bytes(b'no image')
  cut = picture(3, 'JPEG', (90, 90))
  (folder / 'dog' / 'cut.jpg').write_bytes(cut[: len(cut) * 2 // 3])


def test_bad_images_are_listed_and_left_out(tmp_path, capsys):
  folder = make_folder(tmp_path / 'photos', 30)
  damage(folder)
  with pytest.raises(ValueError, match=r'3 of 33 images are bad, more than'):
    prepare.prepare(str(folder), max_bad_share=0, bytes_per_shard=400)
  out = tmp_path / 'photos_shards'
  assert not (out / 'dataset.json').exists()
  assert len((out / 'bad_examples.jsonl').read_text().splitlines()) == 3
  written = {p: p.stat().st_mtime_ns for p in out.glob('*.array_record')}
  assert written  # all of them: the share is of the whole
  capsys.readouterr()
  prepare.prepare(str(folder), bytes_per_shard=400)  # so few are no matter
  assert written == {p: p.stat().st_mtime_ns for p in out.glob('*.array_r*')}
  bad = (out / 'bad_examples.jsonl').read_text().splitlines()
  reasons = {r['name']: r['reason'] for r in map(json.loads, bad)}
  assert sorted(reasons) == ['cat/empty.png', 'cat/text.png', 'dog/cut.jpg']
  assert reasons['cat/empty.png'] == 'the file is empty'
  assert 'not an image' in reasons['cat/text.png']
  assert '3 bad images were left out' in capsys.readouterr().out
  assert len(shards.load(epath.Path(out), 'all')[0]) == 30
  # A look at headers alone does not see that pixels are missing.
  header = tmp_path / 'header'
  prepare.prepare(str(folder), out=str(header), check='header', max_bad_share=1)
  assert len((header / 'bad_examples.jsonl').read_text().splitlines()) == 2


def test_mended_images_need_no_new_folder(tmp_path):
  folder = make_folder(tmp_path / 'photos', 30)
  damage(folder)
  prepare.prepare(str(folder), bytes_per_shard=400)
  out = tmp_path / 'photos_shards'
  assert len(shards.load(epath.Path(out), 'all')[0]) == 30
  before = {p: p.stat().st_mtime_ns for p in out.glob('*.array_record')}
  (folder / 'dog' / '01.png').write_bytes(picture(77))
  for name in ('cat/empty.png', 'cat/text.png', 'dog/cut.jpg'):
    (folder / name).write_bytes(picture(9))
  prepare.prepare(str(folder), bytes_per_shard=400)
  assert (out / 'bad_examples.jsonl').read_text() == ''
  packed, _, _ = shards.load(epath.Path(out), 'all')
  found = files.load(str(folder))
  whole = [
    example
    for split in shard_table.read(epath.Path(out)).splits
    for example in examples(files.FilesSource(found, split))
  ]
  assert examples(packed) == whole
  assert len(whole) == 33
  kept = [p for p, time_ns in before.items() if p.stat().st_mtime_ns == time_ns]
  assert 0 < len(before) - len(kept) <= 4  # one for each of those four


def test_too_many_bad_images_fail_at_the_end(tmp_path):
  folder = make_folder(tmp_path / 'photos', 30)
  damage(folder)
  (folder / 'dog' / 'more.png').write_bytes(b'')
  with pytest.raises(ValueError, match='4 of 34 images are bad, more than'):
    prepare.prepare(str(folder))
  prepare.prepare(str(folder), max_bad_share=0.2)
  for path in folder.rglob('*.*'):
    path.write_bytes(b'')
  with pytest.raises(ValueError, match='has no image that can be read'):
    prepare.prepare(str(folder), max_bad_share=1)
  assert not (tmp_path / 'photos_shards' / 'dataset.json').exists()


def test_shards_are_never_inside_of_what_is_packed(tmp_path, monkeypatch):
  folder = make_folder(tmp_path / 'a' / 'photos', 4)
  for out in (folder, folder / 'x', folder / 'cat' / '..' / 'y'):
    with pytest.raises(ValueError, match='is inside of'):
      prepare.prepare(str(folder), out=str(out))
  monkeypatch.chdir(folder)
  prepare.prepare('.')
  monkeypatch.chdir(folder / 'cat')
  prepare.prepare('../')
  assert [p.name for p in sorted((tmp_path / 'a').iterdir())] == [
    'photos',
    'photos_shards',
  ]
  assert file_packing.default_out('/') == '/_shards'
  with pytest.raises(ValueError, match='is inside of'):
    prepare._check_beside('/', '/_shards')


@pytest.mark.parametrize(
  ('name', 'flag', 'where'),
  [
    ('digits', 'from', 'imagenet21k and jft300m'),
    ('digits', 'out', 'PATH'),
    ('cifar10', 'out', 'TFDS_DATA_DIR'),
    ('cifar10', 'from', 'imagenet21k'),
    ('./photos', 'all', 'vtab'),
    ('./photos', 'release', 'imagenet21k'),
    ('./photos', 'from', 'the path alone'),
    ('jft300m', 'release', 'imagenet21k'),
    ('vtab', 'check', 'PATH'),
  ],
)
def test_flags_that_would_do_nothing_are_refused(name, flag, where):
  with pytest.raises(ValueError, match=rf'--{flag} is for .*{where}'):
    prepare.check_flags(name, [flag])
  prepare.check_flags('imagenet21k', ['from', 'out', 'release', 'check'])
  prepare.check_flags('./photos', ['out', 'shard_mb', 'max_bad_share'])
  prepare.check_flags('vtab', ['all'])


def test_jft_has_its_number_of_classes(tmp_path, data_dir):
  folder = make_folder(tmp_path / 'photos', 4)
  with pytest.raises(
    ValueError, match=r'has 2 classes, but jft300m has 18,291; .*photos_shards'
  ):
    prepare.prepare('jft300m', str(folder))


def test_no_room_on_the_disk(tmp_path, monkeypatch):
  folder = make_folder(tmp_path / 'photos')
  monkeypatch.setattr(packing, 'free_bytes', lambda path: 100)
  with pytest.raises(ValueError, match=r'needs about .* GB free; make room'):
    prepare.prepare(str(folder))
  assert packing.CHECKS  # not a single shard was written
  assert not list((tmp_path / 'photos_shards').glob('*.array_record'))


# Packs slowly, so that there is time to kill it.
SLOWLY = """
import sys, time
from vit_jax.data import images, prepare
from vit_jax.data.prepare import packing
read = images.read
def slowly(path):
  time.sleep(0.05)
  return read(path)
images.read = slowly
prepare.prepare(sys.argv[1], out=sys.argv[2], bytes_per_shard=800)
"""


def test_what_was_killed_goes_on(tmp_path):
  folder = make_folder(tmp_path / 'photos', 60)
  prepare.prepare(str(folder), out=str(tmp_path / 'a'), bytes_per_shard=800)
  out = tmp_path / 'b'
  command = [sys.executable, '-c', SLOWLY, str(folder), str(out)]
  for wanted in (2, 5):
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as run:
      deadline = time.monotonic() + 60
      while len(list(out.glob('*.array_record'))) < wanted:
        assert run.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
      run.send_signal(signal.SIGKILL)
    assert not (out / 'dataset.json').exists()
  kept = {p: p.stat().st_mtime_ns for p in sorted(out.glob('*.array_record'))}
  prepare.prepare(str(folder), out=str(out), bytes_per_shard=800)
  assert contents(out) == contents(tmp_path / 'a')
  assert not list((out / '.packing').glob('*.array_record'))
  for path in list(kept)[:-1]:  # the kill may have come before its note
    assert path.stat().st_mtime_ns == kept[path]


def tar_bytes(entries):
  """Returns a tar file of (TarInfo or name, bytes)."""
  file = io.BytesIO()
  with tarfile.open(fileobj=file, mode='w', format=tarfile.GNU_FORMAT) as made:
    for info, content in entries:
      if isinstance(info, str):
        info = tarfile.TarInfo(info)
      info.size = len(content)
      made.addfile(info, io.BytesIO(content))
  return file.getvalue()


def synset_tars(synsets, count=4):
  return {
    f'{synset}.tar': tar_bytes(
      (f'{synset}_{i}.JPEG', picture(10 * n + i, 'JPEG')) for i in range(count)
    )
    for n, synset in enumerate(synsets)
  }


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
  monkeypatch.setattr(tfds.core.constants, 'DATA_DIR', str(tmp_path / 'tfds'))
  return tmp_path / 'tfds'


SYNSETS = ('n15102455', 'n00004475', 'n01440764')


def test_imagenet21k_from_the_fall11_tar(tmp_path, data_dir, capsys):
  inner = synset_tars(SYNSETS)
  whole = tmp_path / 'fall11_whole.tar'
  whole.write_bytes(tar_bytes(inner.items()))
  prepare.prepare('imagenet21k', str(whole), bytes_per_shard=2500)
  assert 'fall11: 3 synsets' in capsys.readouterr().out
  data = datasets.load('imagenet21k', 'train', 'config.train')
  known = labels.synsets('imagenet21k')
  found = [label for _, label in examples(data.source)]
  assert found == [known.index(s) for s in SYNSETS for _ in range(4)]
  assert data.source.name(5).startswith('n00004475/n00004475_1.JPEG')
  assert len(list((data_dir / 'imagenet21k').glob('*.array_record'))) > 2
  # Half of it, as a kill leaves it, and the tars as a folder.
  folder = tmp_path / 'tars'
  folder.mkdir()
  for name, content in inner.items():
    (folder / name).write_bytes(content)
  out = tmp_path / 'out'
  prepare.prepare('imagenet21k', str(folder), str(out), bytes_per_shard=2500)
  before = contents(out)
  for path in (out / 'dataset.json', out / 'train-00001.array_record'):
    path.unlink()
  for path in sorted((out / '.packing').glob('train-*'))[2:]:
    path.unlink()
  prepare.prepare('imagenet21k', str(folder), str(out), bytes_per_shard=2500)
  assert contents(out) == before
  source, _, _ = shards.load(epath.Path(out), 'train')
  assert sorted(examples(source)) == sorted(examples(data.source))


def test_imagenet21k_from_the_winter21_tar(tmp_path, data_dir):
  whole = tmp_path / 'winter21_whole.tar.gz'
  inner = synset_tars(SYNSETS).items()
  content = tar_bytes((f'winter21_whole/{name}', x) for name, x in inner)
  whole.write_bytes(gzip.compress(content))
  prepare.prepare('imagenet21k', str(whole), bytes_per_shard=2500)
  out = epath.Path(data_dir / 'imagenet21k_winter21')
  source, num_classes, names = shards.load(out, 'train')
  assert num_classes == 3
  assert names[1].startswith('tench')
  found = [label for _, label in examples(source)]
  assert found == [2] * 4 + [0] * 4 + [1] * 4
  whole.write_bytes(gzip.compress(content)[:-200])
  with pytest.raises(ValueError, match=r'cannot be read|cut short'):
    prepare.prepare('imagenet21k', str(whole), str(tmp_path / 'out'))
  with pytest.raises(ValueError, match='needs --from'):
    prepare.prepare('imagenet21k')


def test_a_malicious_tar_does_no_harm(tmp_path, data_dir, monkeypatch):
  monkeypatch.setattr(imagenet21k, '_MAX_IMAGE_BYTES', 5000)
  entries = [(f'n01440764_{i}.JPEG', picture(i, 'JPEG')) for i in range(3)]
  for kind, name in (
    (tarfile.SYMTYPE, 'link.JPEG'),
    (tarfile.LNKTYPE, '../hard.JPEG'),
    (tarfile.CHRTYPE, 'device.JPEG'),
    (tarfile.FIFOTYPE, 'pipe.JPEG'),
    (tarfile.DIRTYPE, 'folder'),
  ):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, '/etc/passwd'
    entries.append((info, b''))
  entries.append(('../../../escape\x1b[2J.JPEG', picture(7, 'JPEG')))
  entries.append(('/abs.JPEG', picture(8, 'JPEG')))
  entries.append(('large.JPEG', bytes(6000)))
  folder = tmp_path / 'tars'
  folder.mkdir()
  (folder / 'n01440764.tar').write_bytes(tar_bytes(entries))
  before = sorted(tmp_path.iterdir())
  out = tmp_path / 'tars_out'
  prepare.prepare('imagenet21k', str(folder), str(out), max_bad_share=0.3)
  assert sorted(tmp_path.iterdir()) == sorted([*before, out])
  source, _, _ = shards.load(epath.Path(out), 'train')
  found = [source.name(i).partition(' ')[0] for i in range(len(source))]
  assert found[3:] == ['n01440764/escape?[2J.JPEG', 'n01440764/abs.JPEG']
  assert '6,000 bytes' in (out / 'bad_examples.jsonl').read_text()


def test_tar_files_that_are_damaged(tmp_path):
  content = bytearray(tar_bytes([('a', b'x' * 600), ('b', b'y')]))

  def members(data, end=None):
    return [m.name for m in tar.members(io.BytesIO(data), 't', 0, end)]

  assert members(content) == ['a', 'b']
  with pytest.raises(ValueError, match='cut short'):
    members(content[:1000])
  with pytest.raises(ValueError, match='does not fit'):
    members(content, 1024)
  content[130] ^= 1
  with pytest.raises(ValueError, match='is no tar file, or is damaged'):
    members(content)
  info = tarfile.TarInfo('giant')
  info.size = 2**62
  giant = info.tobuf(tarfile.GNU_FORMAT)
  # Its size is not believed, within another tar or without.
  with pytest.raises(ValueError, match='cut short'):
    members(giant + bytes(512))
  with pytest.raises(ValueError, match='does not fit'):
    members(giant, 10**6)


def test_unpacked_imagenet21k_has_the_published_classes(tmp_path, data_dir):
  folder = tmp_path / 'unpacked'
  for synset in SYNSETS:
    (folder / synset).mkdir(parents=True)
    for i in range(9):
      (folder / synset / f'{i}.JPEG').write_bytes(picture(i, 'JPEG'))
  prepare.prepare('imagenet21k', str(folder))
  data = datasets.load('imagenet21k', 'train', 'config.train')
  table = shard_table.read(epath.Path(data_dir / 'imagenet21k'))
  assert set(table.splits) == {'train'}
  known = labels.synsets('imagenet21k')
  assert sorted(x for _, x in examples(data.source)) == sorted(
    known.index(s) for s in SYNSETS for _ in range(9)
  )
  assert table.class_names == imagenet21k.class_names(known)
  assert table.class_names[known.index('n01440764')].startswith('tench')
  with pytest.raises(ValueError, match='--release is for tar files'):
    prepare.prepare('imagenet21k', str(folder), release='fall11')
  (folder / 'n99999999').mkdir()
  (folder / 'n99999999' / '1.JPEG').write_bytes(picture(1, 'JPEG'))
  with pytest.raises(ValueError, match="'n99999999' is not one of"):
    prepare.prepare('imagenet21k', str(folder))


def test_tfrecord_is_converted_bit_for_bit(data_dir, capsys):
  old = tfds.builder('tiny_tiles', file_format='tfrecord')
  old.download_and_prepare()
  expected = {
    split: [r.numpy() for r in tf.data.TFRecordDataset(info.filepaths)]
    for split, info in old.info.splits.items()
  }
  assert tfds_building.status('tiny_tiles').state == 'tfrecord'
  prepare.prepare('tiny_tiles')
  text = capsys.readouterr().out
  assert 'Converting' in text
  assert 'training reads it once it has a row there' in text
  assert 'tiny_tiles is ready in' in text
  for split, records in expected.items():
    found = tfds_building.prepare('tiny_tiles').info.splits[split]
    (file,) = found.filepaths
    assert 'array_record' in str(file)
    assert (
      array_record_module.ArrayRecordReader(str(file)).read_all() == records
    )
  assert tfds_building.status('tiny_tiles').state == 'ready'
  source = sources.TfdsSource('tiny_tiles', 'train', 4)  # as training reads it
  assert source.read(np.arange(12))['record'].tolist() == expected['train']
  as_tfrecord = tfds.builder('tiny_tiles').as_dataset(split='train')
  assert len(list(as_tfrecord)) == 12  # what read it before still can
  prepare.prepare('tiny_tiles')
  assert 'Converting' not in capsys.readouterr().out


def test_a_conversion_that_was_killed_goes_on(data_dir):
  builder = tfds.builder('tiny_tiles', file_format='tfrecord')
  builder.download_and_prepare()
  tfds_building.prepare('tiny_tiles')
  folder = pathlib.Path(builder.data_dir)
  info = folder / 'dataset_info.json'
  text = json.loads(info.read_text())
  del text['alternativeFileFormats']
  info.write_text(json.dumps(text))
  (file,) = folder.glob('tiny_tiles-train.array_record*')
  whole = file.read_bytes()
  file.write_bytes(whole[:100])
  assert tfds_building.status('tiny_tiles').state == 'tfrecord'
  tfds_building.prepare('tiny_tiles')
  assert file.read_bytes() == whole


def test_tfds_needs_room_and_says_which_files(data_dir, monkeypatch):
  monkeypatch.setattr(packing, 'free_bytes', lambda path: 10**6)
  with pytest.raises(ValueError, match=r'needs about .* set TFDS_DATA_DIR'):
    prepare.prepare('cifar10')
  monkeypatch.setattr(packing, 'free_bytes', lambda path: 10**15)

  def fail(*args, **kwargs):
    raise OSError('no network')

  found = sources.builder('cifar10:3.*.*')
  monkeypatch.setattr(type(found), 'download_and_prepare', fail)
  with pytest.raises(ValueError) as error:
    prepare.prepare('cifar10')
  assert 'no network' in str(error.value)
  assert 'cifar-10-binary.tar.gz' in str(error.value)
  assert str(data_dir / 'downloads' / 'manual') in str(error.value)


def test_vtab_shows_how_far_its_tasks_are(monkeypatch, capsys):
  states = {
    'pets': tfds_building.Status('ready', '/x'),
    'svhn': tfds_building.Status('tfrecord', '/x'),
    'resisc45': tfds_building.Status('manual', 'Get the rar.'),
    'dtd': tfds_building.Status('error', 'No such version.'),
  }
  by_name = {vtab.TASKS[k].tfds_name: v for k, v in states.items()}
  other = tfds_building.Status('download', '/x', 2 * 10**9)
  monkeypatch.setattr(
    tfds_building, 'status', lambda name: by_name.get(name, other)
  )
  monkeypatch.setattr(
    vtab_status.importlib.util, 'find_spec', lambda name: name == 'cv2' or None
  )
  vtab_status.show()
  text = capsys.readouterr().out
  lines = [' '.join(line.split()) for line in text.splitlines()[:19]]
  assert 'pets natural ready' in lines
  assert 'svhn natural prepared as tfrecord, to be converted' in lines
  assert 'resisc45 specialized needs files by hand' in lines
  assert 'clevr_count structured to be downloaded, 2.00 GB' in lines
  line = 'clevr_distance structured to be downloaded, with clevr_count'
  assert line in lines
  assert 'To be downloaded: 24.00 GB in all.' in text  # 16 sets, 4 are others
  assert 'Get the rar.' in text
  assert 'by hand (TFDS' not in text  # the line above says it
  assert 'h5py' in text
  assert 'OpenCV' not in text
  assert '1 of the 19 tasks are ready' in text

  def fail(name):
    if name in by_name:
      raise ValueError(by_name[name].text)

  monkeypatch.setattr(tfds_building, 'prepare', fail)
  with pytest.raises(SystemExit, match=r'4 data sets are not ready[^$]*rar'):
    vtab_status.prepare_all()


def test_manual_files_are_asked_for(data_dir):
  found = tfds_building.status('resisc45:3.*.*')
  assert found.state == 'manual'
  assert str(data_dir / 'downloads' / 'manual') in found.text
  assert 'lacks NWPU-RESISC45' in found.text
  (data_dir / 'downloads' / 'manual' / 'NWPU-RESISC45').mkdir(parents=True)
  assert tfds_building.status('resisc45:3.*.*').state == 'download'


def test_what_cannot_be_prepared_is_explained(tmp_path, data_dir, capsys):
  prepare.prepare('digits')
  assert 'nothing to prepare' in capsys.readouterr().out
  with pytest.raises(ValueError, match='/nowhere does not exist'):
    prepare.prepare('/nowhere')
  with pytest.raises(ValueError, match="TFDS knows no data set 'nowhere'"):
    prepare.prepare('nowhere')
  with pytest.raises(ValueError, match='are local'):
    prepare.prepare('gs://bucket/photos')


def test_the_command(tmp_path):
  folder = make_folder(tmp_path / 'photos', 4)

  def run(*args):
    return process_runner.run('-m', 'vit_jax.data.prepare', *args)

  done = run(f'{folder}/', '--check=header')
  assert done.returncode == 0, done.stderr
  assert f'{tmp_path / "photos_shards"} is ready' in done.stdout
  failed = run(str(tmp_path / 'none' / ''), '--check=header')
  assert failed.returncode == 1
  assert failed.stderr.splitlines()[-1].startswith('Error: ')
  assert 'does not exist' in failed.stderr
  failed = run('digits', '--out=/x')
  assert failed.returncode == 1
  assert failed.stderr.startswith('Error: --out is for imagenet21k')
