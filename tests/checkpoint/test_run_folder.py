"""A run's folder is checked before anything in it is changed."""

import json
import os
import shutil

import jax
import jax.numpy as jnp
import pytest
from checkpoint.states import CONFIG
from etils import epath

from vit_jax import checkpoint
from vit_jax.checkpoint import files, run_folder

STATE = {'w': jnp.arange(8.0)}
SHAPES = jax.eval_shape(lambda: STATE)


def manager(workdir, config=CONFIG, shapes=SHAPES, **kwargs):
  return checkpoint.Manager(workdir, config, shapes, **kwargs)


def save_one(workdir):
  with manager(workdir) as checkpoints:
    checkpoints.save(1, STATE)


def test_another_configs_run_is_left_alone(tmp_path):
  save_one(tmp_path)
  before = (tmp_path / 'config.json').read_text()
  other = CONFIG | {'seed': 1, 'model': {'name': 'vit', 'width': 3}}
  with pytest.raises(ValueError) as error:
    manager(tmp_path, other)
  assert str(error.value) == (
    f'--workdir={tmp_path} holds the run of another config:\n'
    "  config.model.depth: None there, 'absent' now\n"
    "  config.model.width: 'absent' there, 3 now\n"
    '  config.seed: 0 there, 1 now\n'
    'Use another --workdir for this one, or take these changes back.'
  )
  assert (tmp_path / 'config.json').read_text() == before

  # Without the file, the checkpoint's own copy says whose run it is.
  (tmp_path / 'config.json').unlink()
  with pytest.raises(ValueError, match='config.seed: 0 there, 1 now'):
    manager(tmp_path, other)


def test_a_config_that_saved_nothing_may_be_corrected(tmp_path):
  manager(tmp_path)
  manager(tmp_path, CONFIG | {'seed': 1})
  assert json.loads((tmp_path / 'config.json').read_text())['seed'] == 1


def test_a_damaged_config_is_named(tmp_path):
  save_one(tmp_path)
  (tmp_path / 'config.json').write_text('{"seed": ')
  with pytest.raises(ValueError, match=r'config.json is damaged \(.*another'):
    manager(tmp_path)
  assert (tmp_path / 'config.json').read_text() == '{"seed": '


def test_where_and_how_a_run_goes_on_may_change(tmp_path):
  save_one(tmp_path)
  changed = CONFIG | {
    'log_every': 1,
    'sharding': {'params': 'fsdp'},
    'evals': {},
    'model': CONFIG['model'] | {'remat': 'full'},
    'train': {'max_bad_share': 0.5},
    'step': {'accum_steps': 2},
  }
  manager(tmp_path, changed)
  written = json.loads((tmp_path / 'config.json').read_text())
  assert written == changed


def test_another_training_set_is_refused(tmp_path):
  """Its order would be another, or its classes."""
  config, inputs = CONFIG, {'num_examples': 30, 'labels': ('cat', 'dog')}

  def open_with(**changed):
    return checkpoint.Manager(tmp_path, config, SHAPES, inputs | changed)

  with open_with() as first:
    first.save(1, STATE)
  open_with()
  with pytest.raises(ValueError, match='a run on 30 images; .* now has 31, wh'):
    open_with(num_examples=31)
  with pytest.raises(ValueError, match=r'now has others \(ape, cat\)'):
    open_with(labels=('ape', 'dog'))
  with pytest.raises(ValueError, match='now has others'):  # the same, moved
    open_with(labels=('dog', 'cat'))
  assert (tmp_path / 'classes.txt').read_text() == 'cat\ndog\n'


def test_a_folder_that_cannot_be_written_is_explained(tmp_path):
  (tmp_path / 'file').write_text('mine')
  with pytest.raises(ValueError, match=r'cannot be written \(.*use another'):
    manager(tmp_path / 'file' / 'run')
  assert (tmp_path / 'file').read_text() == 'mine'


@pytest.mark.skipif(not os.path.isdir('/proc/self'), reason='needs Linux')
def test_a_read_only_file_system_is_explained():
  # Not even root can write there.
  with pytest.raises(ValueError, match='--workdir=/proc/.*/run cannot be wr'):
    manager('/proc/self/run')


def test_a_full_disk_is_explained_before_anything_is_written(tmp_path):
  shapes = {'w': jax.ShapeDtypeStruct((10**12, 1000), jnp.float32)}
  with pytest.raises(ValueError, match=r'GB free, but 4 more checkpoints of 4'):
    manager(tmp_path / 'run', shapes=shapes, keep=3)
  assert not (tmp_path / 'run').exists()


def test_what_a_killed_run_has_left_makes_room_for_it(tmp_path, monkeypatch):
  save_one(tmp_path)
  leftover = tmp_path / 'checkpoints' / '2.partial'
  leftover.mkdir()

  def usage(folder):
    return 10**9, 0, 0 if leftover.exists() else 10**9

  monkeypatch.setattr(shutil, 'disk_usage', usage)
  manager(tmp_path)
  assert os.listdir(tmp_path / 'checkpoints') == ['1']
  # Not before it is known whose run it is.
  leftover.mkdir()
  with pytest.raises(ValueError, match='the run of another config'):
    manager(tmp_path, CONFIG | {'seed': 1})
  assert leftover.exists()


def test_a_damaged_checkpoint_does_not_say_whose_run_it_is(tmp_path):
  inputs = {'num_examples': 30}
  with checkpoint.Manager(tmp_path, CONFIG, SHAPES, inputs) as checkpoints:
    checkpoints.save(1, STATE)
    checkpoints.save(2, STATE)
  last = tmp_path / 'checkpoints' / '2'
  (last / 'config' / 'metadata').unlink()
  path = last / 'inputs' / 'metadata'
  path.write_text(path.read_text().replace('30', '31'))
  (tmp_path / 'config.json').unlink()
  # The one before it says it.
  checkpoint.Manager(tmp_path, CONFIG, SHAPES, inputs)
  with pytest.raises(ValueError, match='a run on 30 images; .* now has 31, wh'):
    checkpoint.Manager(tmp_path, CONFIG, SHAPES, {'num_examples': 31})


def test_a_bucket_gets_the_config_and_the_classes(bucket):
  workdir = epath.Path('gs://bucket/run')
  inputs = {'labels': ['cat', 'dog']}
  run_folder.open_folder(workdir, CONFIG, inputs, SHAPES, 2)
  assert json.loads((bucket / 'run' / 'config.json').read_text())['seed'] == 0
  assert (bucket / 'run' / 'classes.txt').read_text() == 'cat\ndog\n'
  assert not list(bucket.glob('**/*.partial'))


def test_a_bucket_that_cannot_be_reached_is_explained(monkeypatch):
  class HttpError(Exception):
    pass

  def fail(folder):
    raise HttpError('no route')

  monkeypatch.setattr(files, 'saved', fail)
  with pytest.raises(ValueError, match=r'gs://b/run: the store fails or .*\(no '
                     'route'):  # fmt: skip
    run_folder.open_folder(epath.Path('gs://b/run'), {}, {}, SHAPES, 1)
