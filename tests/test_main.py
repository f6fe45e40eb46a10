"""The command line, with real processes that are really killed."""

import contextlib
import json
import os
import signal
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import process_runner
import pytest

pytestmark = pytest.mark.usefixtures('compile_once')

STEPS = 240
TINY_RUN = [
  *process_runner.tiny_run(STEPS),
  '--config.log_every=20',
  '--config.checkpoint.every=20',
  '--config.evals.test.every=100',
]


def finish(process):
  """Returns what it printed, when it ends."""
  out, err = process.communicate(timeout=300)
  return out, err


def wait_for(process, condition):
  deadline = time.monotonic() + 120
  while not condition():
    assert process.poll() is None, process.communicate()
    assert time.monotonic() < deadline
    time.sleep(0.0005)


def metrics(workdir):
  try:
    text = (workdir / 'metrics.jsonl').read_text()
  except FileNotFoundError:
    return []
  return [json.loads(line) for line in text.splitlines(keepends=True)
          if line.endswith('\n')]  # fmt: skip


def last_step(workdir):
  lines = metrics(workdir)
  return lines[-1]['step'] if lines else 0


def is_saving(workdir, after):
  """Returns whether a checkpoint after some step is half-written now."""
  with contextlib.suppress(FileNotFoundError):
    for name in os.listdir(workdir / 'checkpoints'):
      step, _, suffix = name.partition('.')
      if suffix and int(step) > after:
        return True
  return False


def result(workdir):
  """Returns the last state as saved, and the metrics but for speed."""
  path = workdir / 'checkpoints' / str(STEPS) / 'state'
  state = ocp.StandardCheckpointer().restore(path)
  lines = [
    {k: v for k, v in line.items() if k != 'train/images_per_second'}
    for line in metrics(workdir)
    if 'goodput/step' not in line
  ]
  return state, lines


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
  """The workdir of a run that nothing stops, and what it printed."""
  workdir = tmp_path_factory.mktemp('straight')
  with process_runner.training(*TINY_RUN, f'--workdir={workdir}') as process:
    out, err = finish(process)
  assert process.returncode == 0, err
  return workdir, out


def test_a_run_ends_with_the_accuracy_and_what_to_do_next(straight):
  workdir, out = straight
  accuracy = metrics(workdir)[-1]['test/accuracy']
  assert f'Done after {STEPS} steps. test accuracy {accuracy:.2%}' in out
  assert f'Everything is in {workdir}' in out
  assert f'/tensorboard --logdir={workdir}' in out
  assert 'python -m vit_jax.main --config=configs/digits.py' in out


def test_stopped_runs_end_as_if_they_had_not_been(straight, tmp_path):
  run = [*TINY_RUN, f'--workdir={tmp_path}']
  with process_runner.training(*run) as process:
    wait_for(process, lambda: is_saving(tmp_path, after=30))
    process.send_signal(signal.SIGKILL)
    process.wait()

  done = last_step(tmp_path)
  # It continues, and is killed between two saves.
  with process_runner.training(*run) as process:
    wait_for(process, lambda: last_step(tmp_path) >= done + 40)
    process.send_signal(signal.SIGKILL)
    process.wait()

  done = last_step(tmp_path)
  with process_runner.training(*run) as process:
    wait_for(process, lambda: last_step(tmp_path) >= done + 40)
    process.send_signal(signal.SIGTERM)
    out, err = finish(process)
  assert process.returncode == 75, err  # to be started again
  assert 'Traceback' not in err
  step = max(map(int, os.listdir(tmp_path / 'checkpoints')))
  assert done < step < STEPS
  assert f'Stopped by SIGTERM after step {step}. The state is saved in' in out

  with process_runner.training(*run) as process:
    out, err = finish(process)
  assert process.returncode == 0, err
  assert f'images, from step {step} to step {STEPS} on' in out
  state, lines = result(tmp_path)
  expected_state, expected_lines = result(straight[0])
  jax.tree.map(np.testing.assert_array_equal, state, expected_state)
  # SIGTERM adds a line where it falls.
  assert [line for line in lines if line['step'] % 20 == 0] == expected_lines


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    (
      ['--config.optimizer.lrr=1'],
      "Error: --config.optimizer.lrr=1: the config has no field 'lrr' (did "
      "you mean 'lr'?); configs/common.py lists all fields.\n",
    ),
    (
      ['--config.optimzer.lr=1'],
      "the config has no field 'optimzer' (did you mean 'optimizer'?)",
    ),
    (['--config.zzz=1'], "the config has no field 'zzz'; configs/common.py"),
    (['--config.optimizer.lr=fast'], '--config.optimizer.lr=fast: could not'),
    (['stray'], "'stray' is not a flag"),
    (['--confg=1'], "Unknown command line flag 'confg'. Did you mean: config"),
    (
      ['--config=nope.py'],
      'Error: --config=nope.py: no such file; try configs/digits.py.',
    ),
    (
      ['--config=configs/vit_b_jft.py:B/8'],
      "The recipe has no 'B/8'; choose one of B/16, B/32.",
    ),
    (['--config=README.md'], 'Error: --config is no recipe that can be loaded'),
    (['--config.seed=-1'], 'Error: config.seed=-1 is negative; use 0 or more.'),
  ],
)
def test_mistakes_end_in_one_line(tmp_path, args, message):
  with process_runner.training(
    '--config=configs/digits.py', f'--workdir={tmp_path}/run', *args
  ) as process:
    out, err = finish(process)
  assert process.returncode != 0
  assert message in out + err
  assert 'Traceback' not in err
  assert not (tmp_path / 'run').exists()


def test_help_is_about_this_program():
  with process_runner.training('--help') as process:
    out, _ = finish(process)
  assert 'Every field of the config is a flag' in out
  assert '--workdir: Folder of the run' in out
