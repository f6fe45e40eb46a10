"""Real processes that train as one, are killed, and are stopped."""

import json
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import process_runner
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('compile_once')]

HOST = socket.gethostname()
STEPS = 30
TINY_RUN = [
  *process_runner.tiny_run(STEPS),
  '--config.log_every=5',
  '--config.train.batch_size=32',
  '--config.checkpoint.every=5',
  '--config.evals.test.every=15',
]


def metrics(workdir):
  """Returns what a run has measured, but for its speed."""
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return [
    line for line in map(json.loads, lines) if 'goodput/seconds' not in line
  ]


def final_state(workdir):
  path = workdir / 'checkpoints' / str(STEPS) / 'state'
  checkpointer = ocp.PyTreeCheckpointer()
  # As arrays of this process, whose devices are others than the run's.
  args = jax.tree.map(
    lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
    checkpointer.metadata(path).item_metadata.tree,
  )
  return checkpointer.restore(path, restore_args=args)


def train(num, workdir):
  """Trains in `num` processes, on 4 devices in all."""
  commands = process_runner.commands(num, *TINY_RUN, f'--workdir={workdir}')
  with process_runner.started(commands, devices=4 // num) as running:
    codes, outs, errors = process_runner.finish(running)
  assert codes == [0] * num, errors
  return outs


def assert_same_run(workdir, expected):
  """Asserts that two runs are the same, but for rounding and speed."""
  names = ('step', 'train/loss', 'test/loss', 'test/accuracy')
  lines, expected_lines = metrics(workdir), metrics(expected)
  assert len(lines) == STEPS // 5 + STEPS // 15
  for line, other in zip(lines, expected_lines, strict=True):
    for name in names:
      assert (name in line) == (name in other)
      # The sum over devices is in another order.
      np.testing.assert_allclose(
        line.get(name, 0), other.get(name, 0), rtol=2e-4
      )
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=2e-3),
    final_state(workdir),
    final_state(expected),
  )


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
  """The workdir of a run in one process."""
  workdir = tmp_path_factory.mktemp('alone')
  train(1, workdir)
  return workdir


@pytest.mark.parametrize('num', [2, 4])
def test_several_processes_train_as_one_does(alone, tmp_path, num):
  outs = train(num, tmp_path)
  assert_same_run(tmp_path, alone)
  # Each of the 359 test images counts once: the accuracy is k / 359.
  for line in metrics(tmp_path):
    if 'test/accuracy' in line:
      count = line['test/accuracy'] * 359
      assert count == pytest.approx(round(count), abs=1e-3)
  assert f'Done after {STEPS} steps' in outs[0]
  # The others say nothing of it.
  for out in outs[1:]:
    assert 'step' not in out
    assert 'Next' not in out


def wait_for_checkpoint(workdir, step, running):
  deadline = time.monotonic() + 200
  while not (workdir / 'checkpoints' / str(step)).exists():
    assert all(process.poll() is None for process in running)
    assert time.monotonic() < deadline
    time.sleep(0.01)


def test_a_killed_process_stops_the_run_and_another_number_goes_on(
  alone, tmp_path
):
  commands = process_runner.commands(2, *TINY_RUN, f'--workdir={tmp_path}')
  with process_runner.started(commands, devices=2) as running:
    wait_for_checkpoint(tmp_path, 10, running)
    # The one that writes, and that the other hears of the end from.
    running[0].send_signal(signal.SIGKILL)
    begin = time.monotonic()
    codes, _, errors = process_runner.finish(running, timeout=60)
  assert codes == [-signal.SIGKILL, 1]
  assert time.monotonic() - begin < 20
  assert process_runner.last_line(errors[1]) == (
    f'Error: process 0 ({HOST}) ended without a word (killed, or out of '
    'memory). This process stops too; the same command continues from the last '
    'checkpoint.'
  )
  outs = train(4, tmp_path)
  assert 'images, from step ' in outs[0]
  assert_same_run(tmp_path, alone)


def test_a_launcher_that_is_asked_to_stop_saves_the_run(tmp_path):
  # JAX looks for SIGTERM once a second; the steps must take longer than that.
  steps = 400
  command = [
    sys.executable, process_runner.ROOT / 'launch' / 'local.py',
    '--num_processes=2', '--devices_per_process=2', '--', *TINY_RUN,
    f'--workdir={tmp_path}', f'--config.total_steps={steps}',
    '--config.checkpoint.every=10',
  ]  # fmt: skip

  def launched():
    return subprocess.Popen(
      command,
      cwd=process_runner.ROOT,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )

  with launched() as launcher:
    wait_for_checkpoint(tmp_path, 10, [launcher])
    launcher.send_signal(signal.SIGTERM)
    out, _ = launcher.communicate(timeout=120)
  assert launcher.returncode == 75, out
  assert 'Traceback' not in out
  names = [path.name for path in (tmp_path / 'checkpoints').iterdir()]
  step = max(int(name) for name in names if name.isdecimal())
  assert 10 <= step < steps
  assert f'[0] Stopped by SIGTERM after step {step}. The state is saved' in out

  with launched() as launcher:
    out, _ = launcher.communicate(timeout=240)
  assert launcher.returncode == 0, out
  assert f'images, from step {step} to step {steps} on' in out
  assert f'Done after {steps} steps' in out
