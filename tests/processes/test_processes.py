"""Real processes that train, fail, and die."""

import json
import shutil
import signal
import socket
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import process_runner
import pytest

from vit_jax import processes

HOST = socket.gethostname()
STEPS = 30
TINY_RUN = [
  '--config=configs/digits.py',
  '--config.total_epochs=None',
  f'--config.total_steps={STEPS}',
  '--config.log_every=5',
  '--config.model.hidden_size=16',
  '--config.model.mlp_dim=32',
  '--config.model.depth=2',
  '--config.model.dropout=0.1',
  '--config.train.batch_size=32',
  '--config.optimizer.warmup_steps=10',
  '--config.checkpoint.every=5',
  '--config.evals.test.every=15',
]


@pytest.fixture(scope='module', autouse=True)
def compile_once(tmp_path_factory):
  """Lets all processes share what one has compiled."""
  with pytest.MonkeyPatch.context() as patch:
    cache = tmp_path_factory.mktemp('compiled')
    patch.setenv('JAX_COMPILATION_CACHE_DIR', str(cache))
    patch.setenv('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.5')
    yield


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
  commands = process_runner.training(num, *TINY_RUN, f'--workdir={workdir}')
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


@pytest.mark.slow
def test_two_processes_train_as_one_does(alone, tmp_path):
  outs = train(2, tmp_path)
  assert_same_run(tmp_path, alone)
  # Each of the 359 test images counts once: the accuracy is k / 359.
  for line in metrics(tmp_path):
    if 'test/accuracy' in line:
      count = line['test/accuracy'] * 359
      assert count == pytest.approx(round(count), abs=1e-3)
  assert f'Done after {STEPS} steps' in outs[0]
  # The others say nothing of it.
  assert 'step' not in outs[1]
  assert 'Next' not in outs[1]


@pytest.fixture(scope='module')
def killed(tmp_path_factory):
  """(workdir, seconds, exit codes, errors) of 2 of which one was killed."""
  workdir = tmp_path_factory.mktemp('killed')
  commands = process_runner.training(2, *TINY_RUN, f'--workdir={workdir}')
  with process_runner.started(commands, devices=2) as running:
    deadline = time.monotonic() + 200
    while not (workdir / 'checkpoints' / '10').exists():
      assert all(process.poll() is None for process in running)
      assert time.monotonic() < deadline
      time.sleep(0.01)
    running[1].send_signal(signal.SIGKILL)
    begin = time.monotonic()
    codes, _, errors = process_runner.finish(running, timeout=60)
    return workdir, time.monotonic() - begin, codes, errors


@pytest.mark.slow
def test_a_killed_process_stops_the_run(killed):
  _, seconds, codes, errors = killed
  assert codes == [1, -signal.SIGKILL]
  assert seconds < 20
  assert process_runner.last_line(errors[0]) == (
    f'Error: process 1 ({HOST}) ended without a word (killed, or out of '
    'memory). This process stops too; the same command continues from the last '
    'checkpoint.'
  )


@pytest.mark.slow
@pytest.mark.parametrize('num', [1, 4])
def test_another_number_of_processes_continues(killed, alone, tmp_path, num):
  shutil.copytree(killed[0], tmp_path / 'run')
  outs = train(num, tmp_path / 'run')
  assert 'images, from step ' in outs[0]
  assert_same_run(tmp_path / 'run', alone)


def test_processes_that_do_not_agree_say_in_what(tmp_path):
  other = tmp_path / 'other'  # a copy of the code, a line longer
  for folder in ('vit_jax', 'configs'):
    shutil.copytree(process_runner.ROOT / folder, other / folder)
  with (other / 'vit_jax' / 'flops.py').open('a') as file:
    file.write('# Changed.\n')
  workdir = f'--workdir={tmp_path}/run'
  commands = process_runner.training(3, *TINY_RUN, workdir)
  commands[2].append('--config.seed=7')
  cwds = [process_runner.ROOT, other, process_runner.ROOT]
  with process_runner.started(commands, cwds=cwds) as running:
    codes, _, errors = process_runner.finish(running)
  assert codes == [1] * 3
  for error in errors:
    assert 'Error: The 3 processes do not agree:\n' in error
    assert '\n  code of vit_jax: "' in error
    assert f'" on process 1 ({HOST}), "' in error
    assert (
      f'\n  config.seed: 7 on process 2 ({HOST}), 0 on process 0 ({HOST}) and '
      'others\nStart all with the same command, code, packages and devices.'
    ) in error
    assert 'devices' not in error.partition('\nStart')[0]
    assert 'Traceback' not in error
  assert not (tmp_path / 'run').exists()


# What process 1 does, after all have computed something together. Then all go
# on to do so.
MEMBER = """
import os, signal, sys, time
address, num, number, what = sys.argv[1:]
from vit_jax import command_line, processes
with command_line.one_line_errors(), processes.joined(
    address, int(num), int(number), start_timeout=60, lost_timeout=4):
  import jax, numpy as np
  from jax.experimental import multihost_utils
  def together():
    return multihost_utils.process_allgather(np.ones(3))
  assert together().shape == (2, 3)
  print('together', flush=True)
  if number == what[-1]:
    exec(what[:-2])
  if 'alone' in what:
    time.sleep(600)
  while 'end' not in what:
    together()
    time.sleep(0.1)
print('end')
"""


def run_members(what):
  """Returns what `finish` does, and the seconds that all took to end."""
  address = process_runner.free_address()
  commands = [['-c', MEMBER, address, 2, i, what] for i in range(2)]
  with process_runner.started(commands) as running:
    for process in running:
      while 'together' not in process.stdout.readline():
        assert process.poll() is None, process.communicate()
    begin = time.monotonic()
    frozen = [running[int(what[-1])]] if 'SIGSTOP' in what else []
    rest = [process for process in running if process not in frozen]
    result = process_runner.finish(rest, timeout=60)
    return *result, time.monotonic() - begin


def kill(name):
  return f'os.kill(os.getpid(), signal.{name})'


GO_ON = 'This process stops too; the same command continues from the last '
GO_ON += 'checkpoint.'


@pytest.mark.parametrize(
  ('what', 'cause'),
  [
    # The other waits for it on the devices, and in Python.
    (f'{kill("SIGKILL")} 1', f'process 1 ({HOST}) ended without a word '
     '(killed, or out of memory).'),
    (f'{kill("SIGKILL")} #alone 1', f'process 1 ({HOST}) ended without a word '
     '(killed, or out of memory).'),
    # It is the one that all others hear of each other from.
    (f'{kill("SIGKILL")} 0', f'process 0 ({HOST}) ended without a word '
     '(killed, or out of memory).'),
    (f'{kill("SIGSTOP")} 1', f'process 1 ({HOST}) has not been heard of for '
     '4 s.'),
    ('raise KeyError("x y") 1', f'process 1 ({HOST}) stopped: KeyError: '
     "'x y'."),
  ],
)  # fmt: skip
def test_a_lost_process_stops_the_other_with_a_reason(what, cause):
  codes, outs, errors, seconds = run_members(what)
  survivor = 1 - int(what[-1]) if len(codes) == 2 else 0
  assert codes[survivor] == 1
  assert process_runner.last_line(errors[survivor]) == f'Error: {cause} {GO_ON}'
  assert 'Traceback' not in errors[survivor]
  assert 'end' not in ''.join(outs)
  assert seconds < (15 if 'SIGSTOP' in what else 10)
  if 'KeyError' in what:
    assert codes == [1, 1]
    assert "KeyError: 'x y'\n" in errors[1]
    assert process_runner.last_line(errors[1]) == (
      f'Error: process 1 ({HOST}) stopped, for what is said above; all others '
      'stop too.'
    )


def test_the_processes_end_together():
  codes, outs, errors, _ = run_members('time.sleep(2) #end 1')
  assert codes == [0, 0], errors
  assert all(out.endswith('end\n') for out in outs)


def test_one_process_needs_nothing_of_this():
  with processes.joined():
    assert not processes.several()
    assert processes.gather('x', 3) == [3]
    processes.barrier('x')
  with processes.joined('127.0.0.1:1', 1, 0):
    assert not processes.several()
  with pytest.raises(KeyError), processes.joined():
    raise KeyError


def test_seconds_are_checked():
  with (
    pytest.raises(ValueError, match=r'--lost_timeout=0 is not above 0\.'),
    processes.joined(lost_timeout=0),
  ):
    pass
