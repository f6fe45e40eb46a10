import json
import os
import re
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_jax import (
  checkpoint,
  metrics,
  models,
  objectives,
  optimizers,
  sharding,
  train,
  weights,
)
from vit_jax.data import datasets, pipeline, sources

IMAGES = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), np.uint8)
BATCH = {'image': IMAGES, 'label': np.arange(16, dtype=np.int32) % 10}


def parts(dropout=0.0, **optimizer):
  model = models.build(
    variant='Ti/4', num_classes=10, hidden_size=128, depth=2, mlp_dim=512,
    num_heads=2, dropout=dropout, pre_logits=True,
  )  # fmt: skip
  objective = objectives.build(model, 'classification')
  tx, _ = optimizers.build(
    total_steps=9, **(dict(lr=1e-3, weight_decay=0.1) | optimizer)
  )
  return objective, tx


def run(mesh, params='replicate', num_steps=3, **step):
  """Returns the losses of a few steps and the last state."""
  objective, tx = parts(dropout=0.2)

  def init(rng):
    ema_decay = step.get('ema_decay', 0.0)
    return train.init_state(objective, tx, (8, 8, 3), rng, ema_decay)

  rng = jax.random.key(0)
  layout = sharding.layout(jax.eval_shape(init, rng), mesh, params)
  with sharding.activations(mesh):
    state = jax.jit(init, out_shardings=layout)(rng)
    train_step = jax.jit(
      train.make_train_step(objective, tx, **step), out_shardings=(layout, None)
    )
    losses = []
    for _ in range(num_steps):
      batch = sharding.global_batch(BATCH, mesh)
      state, stats = train_step(state, batch, rng)
      losses.append(float(stats['loss']))
  return losses, state


@pytest.fixture(scope='module')
def one_device():
  mesh = jax.sharding.Mesh(
    np.array(jax.devices()[:1]).reshape(1, 1), ('data', 'model')
  )
  return run(mesh)


TENSOR_PARALLEL = [
  ('qkv/kernel', (None, None, None, 'model')),
  ('mlp_in/kernel', (None, None, 'model')),
  ('mlp_out/kernel', (None, 'model')),
]


@pytest.mark.parametrize(
  ('sizes', 'params'),
  [((8, 1), 'replicate'), ((8, 1), 'fsdp'), ((4, 2), TENSOR_PARALLEL)],
)
def test_eight_devices_give_the_losses_of_one(
  one_device, make_mesh, sizes, params
):
  losses, state = run(make_mesh(*sizes), params)
  np.testing.assert_allclose(losses, one_device[0], rtol=1e-5)
  assert losses[2] < losses[0] - 0.02
  kernel = state.params['blocks']['mlp_in']['kernel']
  kept = kernel.addressable_shards[0].data.size / kernel.size
  expected = 1 if params == 'replicate' else 1 / (8 if params == 'fsdp' else 2)
  assert kept == expected
  momentum = jax.tree.leaves(state.opt_state, is_leaf=is_adam)[0].mu
  assert momentum['blocks']['mlp_in']['kernel'].sharding == kernel.sharding


def is_adam(x):
  return isinstance(x, optax.ScaleByAdamState)


def test_accumulation_gives_the_update_of_the_whole_batch(make_mesh):
  objective, tx = parts()  # no dropout: its masks differ between parts
  state = jax.jit(lambda rng: train.init_state(objective, tx, (8, 8, 3), rng))(
    jax.random.key(0)
  )
  rng = jax.random.key(1)
  whole, stats = jax.jit(train.make_train_step(objective, tx))(
    state, BATCH, rng
  )
  step = train.make_train_step(objective, tx, accum_steps=4)
  mesh = make_mesh(4)
  with sharding.activations(mesh):
    batch = sharding.global_batch(BATCH, mesh)
    parted, parted_stats = jax.jit(step)(state, batch, rng)
  for name in ('loss', 'accuracy', 'gradient_norm'):
    np.testing.assert_allclose(parted_stats[name], stats[name], rtol=1e-5)
  # Adam's first update is the gradient's sign: compare what it averages.
  for a, b in zip(
    *(jax.tree.leaves(s.opt_state) for s in (parted, whole)), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-7)


def test_polyak_average_by_hand():
  objective, tx = parts(name='sgd')
  state = jax.jit(
    lambda rng: train.init_state(objective, tx, (8, 8, 3), rng, 0.9)
  )(jax.random.key(0))
  step = jax.jit(train.make_train_step(objective, tx, ema_decay=0.9))
  expected = np.asarray(state.params['head']['kernel'])
  for _ in range(3):
    state, _ = step(state, BATCH, jax.random.key(0))
    expected = 0.9 * expected + 0.1 * np.asarray(state.params['head']['kernel'])
  np.testing.assert_allclose(state.average['head']['kernel'], expected, 1e-5)
  assert state.weights is state.average
  assert state._replace(average=None).weights is state.params
  assert state.step == 3


def test_a_step_is_the_gradients_update_by_hand():
  objective, tx = parts(name='sgd', lr=0.5, decay='constant', weight_decay=0.0)
  state = train.init_state(objective, tx, (8, 8, 3), jax.random.key(0))
  # With the head's zero weights only its own gradient is not zero; that of the
  # bias is the mean of softmax - target = 1/10 - target.
  after, stats = jax.jit(train.make_train_step(objective, tx))(
    state, BATCH, jax.random.key(0)
  )
  gradient = (0.1 - np.eye(10)[BATCH['label']]).mean(0)
  np.testing.assert_allclose(
    after.params['head']['bias'], -0.5 * gradient, atol=1e-6
  )
  np.testing.assert_allclose(stats['loss'], np.log(10), rtol=1e-6)


@pytest.mark.parametrize(
  ('kwargs', 'message'),
  [
    (dict(accum_steps=0), 'config.step.accum_steps=0 is less than 1'),
    (dict(ema_decay=1.0), r'config.step.ema_decay=1.0 is not in \[0, 1\)'),
  ],
)
def test_step_mistakes_are_explained(kwargs, message):
  with pytest.raises(ValueError, match=message):
    train.make_train_step(*parts(), **kwargs)


def test_a_split_without_examples_is_explained(tiny_config, monkeypatch):
  nothing = sources.ArraySource(
    {'image': np.zeros((0, 8, 8, 3), np.uint8), 'label': np.zeros(0, np.int32)}
  )
  row = datasets.Dataset(10, lambda split: nothing)
  monkeypatch.setitem(datasets.DATASETS, 'empty', row)
  tiny_config.train.dataset = 'empty'
  with pytest.raises(
    ValueError, match="config.train.split='train' has no exam"
  ):
    train.train(tiny_config, 'unused')


def read_metrics(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


def test_train_from_python(tiny_config, tmp_path, capsys):
  tiny_config.step.ema_decay = 0.5
  state = train.train(tiny_config, tmp_path)
  assert state.step == 4
  lines = read_metrics(tmp_path)
  assert [line['step'] for line in lines] == [1, 2, 3, 4, 4]
  assert set(lines[3]) >= {
    'step', 'train/loss', 'train/accuracy', 'train/learning_rate',
    'train/gradient_norm', 'train/images_per_second',
  }  # fmt: skip
  assert set(lines[4]) == {'step', 'test/accuracy', 'test/loss'}
  assert list((tmp_path / 'tensorboard').glob('events*'))
  assert (tmp_path / 'checkpoints' / '4').is_dir()
  out = capsys.readouterr().out
  assert f'test accuracy {lines[4]["test/accuracy"]:.2%}' in out
  assert f'Everything is in {tmp_path}' in out

  # Run again, a finished run is evaluated again, to the same numbers.
  again = train.train(tiny_config, tmp_path)
  jax.tree.map(np.testing.assert_array_equal, again, state)
  assert read_metrics(tmp_path) == lines


def test_a_signal_between_two_questions_is_saved_for(
  tiny_config, tmp_path, monkeypatch
):
  tiny_config.total_steps = 9
  scalars = metrics.Writer.scalars

  def interrupt(self, step, section, values):
    scalars(self, step, section, values)
    if step == 2:  # after the loop has asked whether to save this step
      os.kill(os.getpid(), signal.SIGTERM)

  monkeypatch.setattr(metrics.Writer, 'scalars', interrupt)
  with pytest.raises(checkpoint.Preempted, match='SIGTERM after step 3'):
    train.train(tiny_config, tmp_path)
  assert [p.name for p in (tmp_path / 'checkpoints').iterdir()] == ['3']


def test_an_evaluation_that_was_interrupted_is_done_again(
  tiny_config, tmp_path, monkeypatch
):
  tiny_config.evals.test.every = 2
  tiny_config.checkpoint.every = 2
  with monkeypatch.context() as patch:

    def die(*args, **kwargs):
      raise KeyboardInterrupt

    patch.setattr(pipeline.EvalData, 'batches', die)
    with pytest.raises(KeyboardInterrupt):
      train.train(tiny_config, tmp_path)
  train.train(tiny_config, tmp_path)
  names = [(x['step'], *sorted(x)[-1:]) for x in read_metrics(tmp_path)]
  assert names == [
    (1, 'train/update_norm'),
    (2, 'train/update_norm'),
    (2, 'test/loss'),
    (3, 'train/update_norm'),
    (4, 'train/update_norm'),
    (4, 'test/loss'),
  ]


def test_activations_are_constrained_to_the_batch_axis(make_mesh):
  objective, tx = parts()
  state = jax.eval_shape(
    lambda: train.init_state(objective, tx, (8, 8, 3), jax.random.key(0))
  )
  step = jax.jit(train.make_train_step(objective, tx))
  with sharding.activations(make_mesh(8)):
    text = step.lower(state, BATCH, jax.random.key(0)).as_text()
  constraints = re.findall(r'sharding_constraint .*', text)
  assert len(constraints) >= 4  # stem, blocks, logits, and their gradients
  assert all('{"data"}' in line for line in constraints), constraints


def test_zero_steps_just_evaluate(tiny_config, tmp_path):
  tiny_config.total_steps = 0
  tiny_config.optimizer.warmup_steps = 10_000
  train.train(tiny_config, tmp_path)
  (line,) = read_metrics(tmp_path)
  # The head starts at zero: all classes are equal.
  assert line['test/loss'] == pytest.approx(np.log(10), rel=1e-5)


def test_training_stops_on_nan(tiny_config, tmp_path, monkeypatch):
  def sick_rule():
    return optax.scale_by_schedule(
      lambda step: jnp.where(step < 2, 1.0, jnp.nan)
    )

  monkeypatch.setitem(optimizers.OPTIMIZERS, 'sick', sick_rule)
  tiny_config.optimizer.name = 'sick'
  tiny_config.total_steps = 8
  tiny_config.checkpoint.every = 1
  with pytest.raises(FloatingPointError) as error:
    train.train(tiny_config, tmp_path)
  assert 'At step 3 train/update_norm is nan' in str(error.value)
  assert 'finite at step 2. Lower config.optimizer.lr' in str(error.value)
  # What the third update has spoiled is not saved.
  assert sorted(p.name for p in (tmp_path / 'checkpoints').iterdir()) == [
    '1',
    '2',
  ]


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (dict(seeed=1), "config.seeed is not a field .*mean 'seed'"),
    ({'optimizer.lrr': 1}, "config.optimizer.lrr .*mean 'lr'"),
    ({'optimizer.name': 'adm'}, "config.optimizer.name='adm'.*mean 'adam'"),
    ({'model.name': 'vot'}, "config.model.name='vot'.*mean 'vit'"),
    ({'model.num_classes': 9}, "'digits' has 10 classes; set config.model"),
    ({'objective.name': 'x'}, "objective.name='x' .* classification"),
    ({'train.dataset': 'digts'}, "dataset='digts' .*mean 'digits'"),
    ({'train.preprocess': 'flop_lr'}, "='flop_lr' .*mean 'flip_lr'"),
    ({'train.preprocess': 'resize(6)'}, '6x6 pixels do not divide'),
    ({'train.batch_size': 100}, '=100 does not divide over 8 devices; use a'),
    ({'step.accum_steps': 4}, 'in 4 accumulation steps; use a multiple of 32'),
    ({'total_epochs': 1.0}, 'set exactly one of them'),
    ({'evals.test.kind': 'x'}, "config.evals.test.kind='x' is unknown"),
    ({'mesh.data': 3}, r'config.mesh: data=3 times model=1 is not'),
    ({'sharding.params': 'x'}, "config.sharding.params='x' is unknown"),
    ({'checkpoint.keep': 0}, 'config.checkpoint.keep=0 is not at least 1'),
    (
      {'evals.test.preprocess': 'resize(6)'},
      'config.evals.test: Images of 6x6',
    ),
    ({'train.preprocess': 'central_crop(12)'}, 'config.train.preprocess: An'),
    ({'log_every': 0}, 'config.log_every=0 is not at least 1'),
  ],
)
def test_mistakes_are_explained_and_nothing_is_written(
  tiny_config, tmp_path, change, message
):
  with tiny_config.unlocked():
    for name, value in change.items():
      *sections, field = name.split('.')
      section = tiny_config
      for part in sections:
        section = section[part]
      section[field] = value
  workdir = tmp_path / 'run'
  with pytest.raises(ValueError, match=message):
    train.train(tiny_config, workdir)
  assert not workdir.exists()


def test_starts_from_the_weights_of_another_run(tiny_config, tmp_path, capsys):
  """A head for other labels, other image sizes, sharded; then resumes."""
  tiny_config.total_steps = 2
  first = train.train(tiny_config, tmp_path / 'first')
  second = tiny_config.copy_and_resolve_references()
  second.total_steps = 0
  second.train.preprocess = 'resize(16)'
  second.evals = {}
  second.step.ema_decay = 0.5
  second.sharding.params = 'fsdp'
  second.init.checkpoint = str(tmp_path / 'first')
  capsys.readouterr()
  state = train.train(second, tmp_path / 'second')
  out = capsys.readouterr().out
  assert re.search(r'resized +position_embedding .*5, 16\) -> \(1, 17, 16', out)
  assert re.search(r'reset +head/kernel +head/kernel', out)
  assert not state.params['head']['kernel'].any()
  assert state.params['position_embedding'].shape == (1, 17, 16)
  for params in (state.params, state.average):
    np.testing.assert_array_equal(
      params['blocks']['mlp_in']['kernel'],
      first.params['blocks']['mlp_in']['kernel'],
    )
  # Not the average is trained but the parameters, and both may be given away.
  # The first step only moves the new head, which starts at 0.
  second.total_steps, second.optimizer.warmup_steps = 2, 0
  state = train.train(second, tmp_path / 'third')
  old, new = (
    jax.device_get(s.params['blocks']['mlp_in']['kernel'])
    for s in (first, state)
  )
  average = jax.device_get(state.average['blocks']['mlp_in']['kernel'])
  assert abs(new - old).max() > 0
  np.testing.assert_allclose(average, (old + new) / 2, atol=1e-6)

  # Runs describe themselves, and their averages are what is loaded.
  loaded = weights.load_checkpoint(tmp_path / 'third')
  assert loaded.image_size == (16, 16)
  assert loaded.labels == tuple('0123456789')
  for a, b in zip(
    *map(jax.tree.leaves, (loaded.params, state.average)), strict=True
  ):
    np.testing.assert_array_equal(a, b)
  loaded = weights.load_checkpoint(tmp_path / 'first' / 'checkpoints')
  assert loaded.preprocess == ''  # as its evaluation does
  assert loaded.model == models.build(**tiny_config.model)


def test_weights_that_do_not_fit_are_explained(tiny_config, tmp_path):
  tiny_config.init.checkpoint = str(tmp_path / 'nothing')
  with pytest.raises(
    ValueError, match=r'config.init.checkpoint: .*nothing does not e'
  ):
    train.train(tiny_config, tmp_path / 'run')
