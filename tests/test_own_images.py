"""Fine-tuning on a folder of one's own images, from the commands alone."""

import json
import pathlib

import numpy as np
import process_runner
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from configs import finetune
from vit_jax import train

ROOT = pathlib.Path(__file__).parent.parent
NAMES = ('naught', 'one', 'two')
TINY = {
  'total_steps': 40,
  'log_every': 20,
  'init.checkpoint': '',
  'model.variant': 'Ti/4',
  'model.hidden_size': 32,
  'model.depth': 2,
  'model.mlp_dim': 64,
  'model.num_heads': 2,
  'model.dtype': 'float32',
  'train.batch_size': 32,
  'train.preprocess': 'resize(8)',
  'optimizer.name': 'adam',
  'optimizer.lr': 3e-3,
  'optimizer.warmup_steps': 5,
  'checkpoint.every': 20,
  'evals.val.preprocess': 'resize(8)',
}


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
  """A folder of 537 images in three classes, of several formats."""
  root = tmp_path_factory.mktemp('photos')
  pixels, labels = load_digits(return_X_y=True)
  extensions = ('png', 'JPG', 'webp', 'bmp')
  for number in np.flatnonzero(labels < 3):
    image = (pixels[number].reshape(8, 8) * (255 / 16)).astype(np.uint8)
    extension = extensions[number % 4]
    path = root / NAMES[labels[number]] / f'{number % 7}/{number}.{extension}'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).resize((24, 24)).save(path, quality=95)
  return root


def run(module, *args):
  return process_runner.run('-m', f'vit_jax.{module}', *args)


def _lines(workdir):
  return (workdir / 'metrics.jsonl').read_text().splitlines()


def flags(**more):
  return [f'--config.{name}={value}' for name, value in (TINY | more).items()]


@pytest.fixture(scope='module')
def trained(photos, tmp_path_factory):
  """The folder of a run on the photos, and what it said."""
  workdir = tmp_path_factory.mktemp('run')
  result = run('main', '--config=configs/finetune.py', f'--workdir={workdir}',
               f'--config.train.dataset={photos}', *flags())  # fmt: skip
  assert result.returncode == 0, result.stderr
  return workdir, result.stdout


def test_one_command_trains_on_a_folder(trained, photos):
  workdir, said = trained
  assert '3 classes (naught, one, two)' in said
  lines = [json.loads(line) for line in _lines(workdir)]
  assert lines[-1]['val/accuracy'] > 0.9
  assert lines[0]['train/bad_examples'] == 0
  assert (workdir / 'classes.txt').read_text().split() == list(NAMES)
  config = json.loads((workdir / 'config.json').read_text())
  assert config['model']['num_classes'] == 3
  assert config['evals']['val']['dataset'] == str(photos)


def test_predictions_have_the_folders_names(trained, photos):
  workdir, _ = trained
  result = run('predict', f'--checkpoint={workdir}', '--json', photos / 'two')
  assert result.returncode == 0, result.stderr
  best = [
    json.loads(line)['predictions'][0]['label']
    for line in result.stdout.splitlines()
  ]
  assert set(best) <= set(NAMES)
  assert best.count('two') > 0.9 * len(best)


def test_other_classes_than_before_are_refused(trained, photos):
  workdir, _ = trained
  config = finetune.get_config()
  config.update_from_flattened_dict(TINY)
  config.train.dataset = str(photos)
  before = sorted(workdir.rglob('*'))
  (photos / 'two').rename(photos / 'deux')
  try:
    with pytest.raises(ValueError, match=r'now has others \(deux, two\)'):
      train.train(config, workdir)
  finally:
    (photos / 'deux').rename(photos / 'two')
  assert sorted(workdir.rglob('*')) == before


def test_another_number_of_images_than_before_is_refused(trained, photos):
  workdir, _ = trained
  config = finetune.get_config()
  config.update_from_flattened_dict(TINY)
  config.train.dataset = str(photos)
  paths = sorted((photos / 'one').rglob('*.png'))
  contents = {path: path.read_bytes() for path in paths[:20]}
  for path in contents:
    path.unlink()
  try:
    with pytest.raises(ValueError, match=r'holds a run on \d+ images; the tra'):
      train.train(config, workdir)
  finally:
    for path, content in contents.items():
      path.write_bytes(content)


def test_an_evaluation_may_be_on_other_images(photos, tmp_path):
  """Without a reference from one to the other that changes both."""
  config = finetune.get_config()
  config.update_from_flattened_dict(TINY)
  config.train.dataset = str(photos)
  config.evals.val.dataset = str(tmp_path)
  assert config.train.dataset == str(photos)
  (tmp_path / 'two').symlink_to(photos / 'two')
  (tmp_path / 'one').symlink_to(photos / 'one')
  config.evals.val.split = 'all'
  config.total_steps, config.optimizer.warmup_steps = 0, 0
  state = train.train(config, tmp_path / 'run')
  assert state.params['head']['kernel'].shape[-1] == 3


def test_many_labels_need_the_sigmoid_loss(photos, tmp_path):
  path = tmp_path / 'm.jsonl'
  rows = [
    {'path': str(p), 'labels': [NAMES.index(p.parent.parent.name)]}
    for p in sorted(photos.rglob('*.png'))
  ]
  path.write_text('\n'.join(map(json.dumps, rows)))
  config = finetune.get_config()
  config.update_from_flattened_dict(TINY | {'total_steps': 2})
  config.optimizer.warmup_steps = 1
  config.train.dataset = str(path)
  with pytest.raises(ValueError, match='objective.loss=softmax needs one; set'):
    train.train(config, tmp_path / 'run')
  config.objective.loss = config.evals.val.loss = 'sigmoid'
  train.train(config, tmp_path / 'run')


def test_classes_that_nothing_matches_are_refused(photos, tmp_path):
  """The digits' classes are numbers, the folder's are sorted names."""
  config = finetune.get_config()
  config.update_from_flattened_dict(TINY | {'model.num_classes': 10})
  config.train.dataset = 'digits'
  config.evals.val.split = 'all'
  config.evals.val.dataset = str(photos)
  with pytest.raises(
    ValueError, match='but the training set does not, so that'
  ):
    train.train(config, tmp_path / 'run')


def test_without_a_data_set_the_error_says_what_to_give(tmp_path):
  result = run('main', '--config=configs/finetune.py', f'--workdir={tmp_path}')
  assert result.returncode == 1
  said = result.stderr.strip().splitlines()[-1]
  assert said.startswith('Error: config.train.dataset is not given; set it to ')


def test_a_bad_image_is_left_out_and_told(photos, tmp_path):
  data = tmp_path / 'data'
  data.mkdir()
  for name in NAMES:
    (data / name).symlink_to(photos / name)
  (data / 'three').mkdir()
  for number in range(20):
    (data / f'three/{number}.png').write_bytes(b'damaged')
  result = run('main', '--config=configs/finetune.py',
               f'--workdir={tmp_path / "run"}',
               f'--config.train.dataset={data}',
               '--config.evals.val.skip_bad=True',
               '--config.train.max_bad_share=0.1',
               *flags(total_steps=20, log_every=10))  # fmt: skip
  assert result.returncode == 0, result.stderr
  assert 'Left out: ' in result.stdout
  assert 'png: not an image (BMP, GIF, JPEG, PNG, WEBP)' in result.stdout
  lines = [json.loads(line) for line in _lines(tmp_path / 'run')]
  assert lines[1]['train/bad_examples'] > lines[0]['train/bad_examples'] > 0
  assert lines[-1]['val/bad_examples'] >= 1
