import json
import os
import resource
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import checkpoint, sharding

CONFIG = {
  'seed': 0,
  'log_every': 10,
  'model': {'name': 'vit', 'depth': None},
  'sharding': {'params': [('a', ('data',))]},
  'evals': {'test': {'every': 3}},
}
STATE = {'step': jnp.zeros((), jnp.int32), 'w': jnp.arange(8.0), 'none': None}
SHAPES = jax.eval_shape(lambda: STATE)


def manager(workdir, config=CONFIG, shapes=SHAPES, **kwargs):
  inputs = {'image_shape': (8, 8, 3)}
  return checkpoint.Manager(workdir, config, shapes, inputs, **kwargs)


def test_saves_keep_the_last_and_describe_themselves(tmp_path, make_mesh):
  layout = sharding.layout(SHAPES, make_mesh(1))
  with manager(tmp_path / 'run', keep=2) as checkpoints:
    assert checkpoints.restore_latest(layout) is None
    for step in (1, 2, 3):
      checkpoints.save(step, STATE | {'w': STATE['w'] * step})
  folder = tmp_path / 'run' / 'checkpoints'
  assert sorted(os.listdir(folder)) == ['2', '3']
  (config,) = (folder / '3' / 'config').glob('metadata')
  assert json.loads(config.read_text()) == json.loads(json.dumps(CONFIG))
  (inputs,) = (folder / '3' / 'inputs').glob('metadata')
  assert json.loads(inputs.read_text()) == {'image_shape': [8, 8, 3]}

  # Onto other devices: the layout is the new run's.
  layout = sharding.layout(SHAPES, make_mesh(4), [('w', ('data',))])
  with manager(tmp_path / 'run') as checkpoints:
    state = checkpoints.restore_latest(layout)
  np.testing.assert_array_equal(state['w'], np.arange(8.0) * 3)
  assert state['w'].sharding == layout['w']


def test_due(tmp_path):
  checkpoints = manager(tmp_path, every=3)
  due = [step for step in range(1, 9) if checkpoints.due(step, 8)]
  assert due == [3, 6, 8]


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


def test_a_damaged_checkpoint_is_named(tmp_path, make_mesh):
  save_one(tmp_path)
  for path in (tmp_path / 'checkpoints' / '1' / 'state').glob('**/*'):
    if path.is_file():
      path.write_bytes(path.read_bytes()[:10])
  with (
    pytest.raises(ValueError, match=r'checkpoints/1 cannot be restored .*move'),
    manager(tmp_path) as checkpoints,
  ):
    checkpoints.restore_latest(sharding.layout(SHAPES, make_mesh(1)))


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


def test_a_disk_that_fills_up_loses_nothing(tmp_path, make_mesh):
  noise = np.random.default_rng(0).normal(size=200_000)  # does not compress
  state = {'w': jnp.asarray(noise, jnp.float32)}
  shapes = jax.eval_shape(lambda: state)
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  with (
    pytest.raises(OSError, match=r'could not be written .*step 1 is safe'),
    manager(tmp_path, shapes=shapes) as checkpoints,
  ):
    checkpoints.save(1, state)
    checkpoints.wait()
    try:  # now every write beyond 100 kB of a file fails
      resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
      checkpoints.save(2, {'w': 2 * state['w']})
      checkpoints.wait()
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  with manager(tmp_path, shapes=shapes) as checkpoints:
    restored = checkpoints.restore_latest(sharding.layout(shapes, make_mesh(1)))
  np.testing.assert_array_equal(restored['w'], state['w'])


@pytest.mark.parametrize('name', ['SIGTERM', 'SIGINT'])
def test_signals_ask_to_stop(tmp_path, name, capfd):
  number = getattr(signal, name)
  outside = signal.getsignal(number)
  with manager(tmp_path) as checkpoints:
    assert not checkpoints.preempted
    os.kill(os.getpid(), number)
    assert checkpoints.preempted
    assert signal.getsignal(number) is outside  # a second one is not held up
    checkpoints.save(1, STATE)
    with pytest.raises(checkpoint.Preempted, match=f'{name} after step 1.'):
      checkpoints.stop(1)
  assert (tmp_path / 'checkpoints' / '1').is_dir()
  assert f'{name}: saving after the step' in capfd.readouterr().err


@pytest.mark.parametrize('kwargs', [dict(every=0), dict(keep=0)])
def test_mistakes_are_explained(tmp_path, kwargs):
  with pytest.raises(ValueError, match=r'config.checkpoint.\w+=0 is not at le'):
    manager(tmp_path / 'run', **kwargs)
  assert not (tmp_path / 'run').exists()
