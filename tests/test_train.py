import json
import os
import re
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_jax import (
  checkpoint,
  goodput,
  metrics,
  models,
  optimizers,
  train,
  weights,
)
from vit_jax.data import datasets, pipeline, sources


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


def seconds_by_cause(line):
  total = line['goodput/seconds']
  return {cause: line[f'goodput/{cause}'] * total for cause in goodput.CAUSES}


def test_train_from_python(tiny_config, tmp_path, capsys):
  tiny_config.step.ema_decay = 0.5
  state = train.train(tiny_config, tmp_path)
  assert state.step == 4
  lines = read_metrics(tmp_path)
  assert [line['step'] for line in lines] == [1, 2, 3, 4, 4, 4, 4]
  assert set(lines[3]) >= {
    'step', 'train/loss', 'train/accuracy', 'train/learning_rate',
    'train/gradient_norm', 'train/images_per_second',
  }  # fmt: skip
  parts = [lines[4][f'goodput/{cause}'] for cause in goodput.CAUSES]
  assert sum(parts) == pytest.approx(1)
  assert lines[4]['goodput/compile'] > 0.01
  assert set(lines[6]) == {'step', 'test/accuracy', 'test/loss'}
  # The last goodput has what came after the save that the first was written at.
  begun, ended = map(seconds_by_cause, lines[4:6])
  assert begun['evaluation'] == begun['checkpoint'] == 0
  assert ended['evaluation'] > 0.01
  assert ended['checkpoint'] > 0
  assert list((tmp_path / 'tensorboard').glob('events*'))
  assert (tmp_path / 'checkpoints' / '4').is_dir()
  out = capsys.readouterr().out
  assert f'test accuracy {lines[6]["test/accuracy"]:.2%}' in out
  assert f'Everything is in {tmp_path}' in out

  # Run again, a finished run is evaluated again, to the same numbers.
  again = train.train(tiny_config, tmp_path)
  jax.tree.map(np.testing.assert_array_equal, again, state)
  *before, goodput_again, evaluated = read_metrics(tmp_path)
  assert before == [*lines[:4], lines[5]]
  assert evaluated == lines[6]
  # It had lost nothing meanwhile.
  assert goodput_again['goodput/restart'] == 0
  again = seconds_by_cause(goodput_again)
  assert again['compile'] == pytest.approx(ended['compile'])
  assert again['evaluation'] > ended['evaluation']


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
    (2, 'step'),  # goodput, when it was saved
    (2, 'step'),  # and evaluated
    (2, 'test/loss'),
    (3, 'train/update_norm'),
    (4, 'train/update_norm'),
    (4, 'step'),
    (4, 'step'),
    (4, 'test/loss'),
  ]


def test_a_signal_during_an_evaluation_is_saved_for_at_once(
  tiny_config, tmp_path, monkeypatch
):
  tiny_config.total_steps = 9
  tiny_config.log_every = 9
  tiny_config.evals.test.update(every=3, batch_size=16)
  seen = []
  batches = pipeline.EvalData.batches

  def interrupted(self):
    for number, batch in enumerate(batches(self)):
      if number == 2:
        os.kill(os.getpid(), signal.SIGTERM)
      seen.append(number)
      yield batch

  monkeypatch.setattr(pipeline.EvalData, 'batches', interrupted)
  with pytest.raises(checkpoint.Preempted, match='SIGTERM after step 3'):
    train.train(tiny_config, tmp_path)
  assert seen == [0, 1, 2]  # of 23
  assert [p.name for p in (tmp_path / 'checkpoints').iterdir()] == ['3']
  stopped = read_metrics(tmp_path)[-1]
  # Begun again, it does that evaluation first.
  monkeypatch.setattr(pipeline.EvalData, 'batches', batches)
  assert train.train(tiny_config, tmp_path).step == 9
  lines = read_metrics(tmp_path)
  steps = [x['step'] for x in lines if 'test/loss' in x]
  assert steps == [3, 6, 9]
  # Its goodput goes on from where the first process had stopped.
  before, after = map(seconds_by_cause, (stopped, lines[-2]))
  assert before['restart'] == 0 < after['restart']
  assert all(after[cause] >= before[cause] for cause in goodput.CAUSES)
  wall = lines[-2]['goodput/unix_time'] - stopped['goodput/unix_time']
  assert sum(after.values()) == pytest.approx(
    sum(before.values()) + wall, abs=0.1
  )


def test_steps_are_traced_and_waits_for_input_counted(
  tiny_config, tmp_path, monkeypatch, capsys
):
  tiny_config.total_steps = 8
  tiny_config.evals = {}
  tiny_config.profile.update(start=2, num_steps=2)
  batches = pipeline.TrainData.batches

  def slow(self, start):
    for batch in batches(self, start):
      time.sleep(0.1)
      yield batch

  monkeypatch.setattr(pipeline.TrainData, 'batches', slow)
  train.train(tiny_config, tmp_path)
  assert 'Traced 2 steps' in capsys.readouterr().out
  profiles = tmp_path / 'tensorboard' / 'plugins' / 'profile'
  assert list(profiles.glob('*/*.xplane.pb'))
  *_, line = (x for x in read_metrics(tmp_path) if 'goodput/input' in x)
  # All but the wait that a step of a few milliseconds hides.
  assert line['goodput/input'] * line['goodput/seconds'] > 0.4


def test_a_dry_run_says_what_a_run_takes(tiny_config, tmp_path):
  tiny_config.sharding.params = 'fsdp'
  text = train.dry_run(tiny_config)
  assert 'blocks/mlp_in/kernel ' in text
  assert 'Estimated memory' in text


def test_zero_steps_just_evaluate(tiny_config, tmp_path):
  tiny_config.total_steps = 0
  tiny_config.optimizer.warmup_steps = 10_000
  train.train(tiny_config, tmp_path)
  _, line = read_metrics(tmp_path)  # after goodput
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
    ({'mesh.data': 3}, 'data=3 times model=1 is not'),
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
