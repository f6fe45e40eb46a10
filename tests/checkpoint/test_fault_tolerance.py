"""Real processes that are killed, stopped, or fail alone."""

import json
import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

ROOT = pathlib.Path(__file__).parent.parent

# A loop of steps that multiply, as one of several processes. FAULT is run
# first: it breaks what it likes. Prints one JSON object.
PROCESS = """
import json, os, sys, time
import jax, numpy as np
address, number, count, workdir, last, fault = sys.argv[1:]
number, count, last = map(int, (number, count, last))
if count > 1:
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  jax.distributed.initialize(address, count, number)
from vit_jax import checkpoint
from vit_jax.checkpoint import files, writing, checksums
from vit_jax import sharding

checkpoint.RETRY_SECONDS = (0.1, 0.1)
exec(fault)
mesh = sharding.make_mesh()
values = np.random.default_rng(0).normal(size=(256, 512)).astype('f4')
init = lambda: {'step': jax.numpy.int32(0), 'w': jax.numpy.array(values)}
shapes = jax.eval_shape(init)
layout = sharding.layout(shapes, mesh, 'fsdp')
step_fn = jax.jit(
  lambda s: {'step': s['step'] + 1, 'w': s['w'] * 1.01}, donate_argnums=0)
said, end = [], ''
print('ready', flush=True)
try:
  with checkpoint.Manager(workdir, {}, shapes, every=4, keep=9) as checkpoints:
    state = checkpoints.restore_latest(layout)
    restored = state is not None and int(state['step'])
    if state is None:
      state = jax.jit(init, out_shardings=layout)()
    for step in range(int(state['step']) + 1, last + 1):
      state = step_fn(state)
      time.sleep(0.02)
      stop = checkpoints.stop_requested(step)
      if stop or checkpoints.due(step, last):
        checkpoints.save(step, state)
      if stop:
        checkpoints.stop(step)
      said += checkpoints.news()
    checkpoints.wait()
    said += checkpoints.news()
except (checkpoint.Preempted, OSError, ValueError) as error:
  end = f'{type(error).__name__}: {error}'
print(json.dumps({
  'restored': restored, 'said': said, 'end': end, 'step': int(state['step']),
  'sums': checksums.whole(state)}), flush=True)
"""


def start(count, workdir, last=12, faults=('', '', '', '')):
  """Starts the processes, of 4 devices together."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}'
  flag = f'--xla_force_host_platform_device_count={4 // count}'
  processes = []
  for number in range(count):
    args = (address, number, count, workdir, last)
    process = subprocess.Popen(
      [sys.executable, '-c', PROCESS, *map(str, args), faults[number]],
      cwd=ROOT,
      env=os.environ | {'XLA_FLAGS': flag},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    processes.append(process)
  return processes


def finish(processes):
  """Returns what each of them printed."""
  try:
    outputs = [process.communicate(timeout=150) for process in processes]
  finally:
    for process in processes:
      process.kill()
  for process, (_, errors) in zip(processes, outputs, strict=True):
    assert process.returncode == 0, errors
  return [json.loads(out.splitlines()[-1]) for out, _ in outputs]


def run(count, workdir, **kwargs):
  return finish(start(count, workdir, **kwargs))


def steps(workdir):
  return sorted(os.listdir(workdir / 'checkpoints'))


@pytest.mark.slow
def test_one_process_that_cannot_write_stops_none(tmp_path):
  fault = """
old = writing.Write._start
def fail(self, state):
  if self.step in (4, 5):
    raise OSError(28, 'No space left on device')
  return old(self, state)
writing.Write._start = fail
"""
  one, other = run(2, tmp_path, faults=['', fault])
  # The second try was some steps after the first; the third succeeded.
  text = '\n'.join(one['said'])
  assert 'checkpoint of step 4 could not be written' in text
  assert 'process 1: OSError: [Errno 28] No space left on device' in text
  assert 'none was saved before. Training goes on' in text
  assert steps(tmp_path)[-1] == '8' and '12' in steps(tmp_path)
  assert '4' not in steps(tmp_path)
  assert not [name for name in steps(tmp_path) if 'partial' in name]
  assert one['sums'] == other['sums']
  # What two have saved, one process and four restore, to the bit.
  for count in (1, 4):
    for found in run(count, tmp_path):
      assert (found['restored'], found['said']) == (12, [])
      assert found['sums'] == one['sums']


@pytest.mark.slow
def test_damage_that_one_process_meets_is_agreed_on(tmp_path):
  saved, _ = run(2, tmp_path, last=8)
  fault = """
old = files.read_state
def fail(folder, target):
  if folder.name == '8':
    raise files.DamagedError('a broken disk')
  return old(folder, target)
files.read_state = fail
"""
  one, other = run(2, tmp_path, last=8, faults=['', fault])
  assert one['restored'] == other['restored'] == 4
  assert 'step 8 is damaged (process 1: a broken disk)' in one['said'][0]
  assert steps(tmp_path) == ['4', '8', 'damaged-8']
  assert one['sums'] == saved['sums']  # the same steps again


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'number'), [('SIGTERM', 1), ('SIGINT', 0)])
def test_a_signal_to_one_process_stops_all(tmp_path, name, number):
  processes = start(2, tmp_path, last=100_000)
  for process in processes:
    assert process.stdout.readline() == 'ready\n', process.communicate()
  deadline = time.monotonic() + 60
  while not (tmp_path / 'checkpoints' / '8').is_dir():
    assert time.monotonic() < deadline
    time.sleep(0.05)
  processes[number].send_signal(getattr(signal, name))
  one, other = finish(processes)
  assert one['step'] == other['step']
  step = one['step']
  for found in (one, other):
    assert re.match(rf'Preempted: .* after step {step:,}\.', found['end'])
  assert one['sums'] == other['sums']
  assert max(map(int, steps(tmp_path))) == step


STEPS, KILLS = 400, 20
# What differs from one run to another.
TIMES = re.compile(r'images_per_second|mfu|second|goodput')


def command(workdir):
  return [
    sys.executable, '-m', 'vit_jax.main',
    '--config=configs/digits.py',
    f'--workdir={workdir}',
    '--config.total_epochs=None',
    f'--config.total_steps={STEPS}',
    '--config.log_every=10',
    '--config.model.hidden_size=16',
    '--config.model.mlp_dim=32',
    '--config.model.depth=2',
    '--config.model.dropout=0.1',
    '--config.step.ema_decay=0.9',
    '--config.optimizer.warmup_steps=10',
    '--config.checkpoint.every=10',
    '--config.evals.test.every=100',
  ]  # fmt: skip


def begin(workdir, cache):
  env = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
  env |= {
    'JAX_COMPILATION_CACHE_DIR': str(cache),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.2',
  }
  return subprocess.Popen(
    command(workdir),
    cwd=ROOT,
    env=env,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def count_lines(workdir):
  try:
    return (workdir / 'metrics.jsonl').read_text().count('\n')
  except FileNotFoundError:
    return 0


def kill_at_random(process, workdir, rng):
  """Kills it; returns where: 'start', 'save', 'loop', or 'end' if too late."""
  where = rng.choice(['start', 'save', 'save', 'loop'])
  folder, lines = workdir / 'checkpoints', count_lines(workdir)
  deadline = time.monotonic() + 240
  until = time.monotonic() + rng.uniform(0.1, 6)
  more = rng.randrange(1, 4)

  def is_now():
    if where == 'start':
      return time.monotonic() > until
    if where == 'loop' or count_lines(workdir) < lines + more:
      return count_lines(workdir) >= lines + more
    return folder.is_dir() and any('.' in name for name in os.listdir(folder))

  while not is_now():
    if process.poll() is not None:
      return 'end'
    assert time.monotonic() < deadline, process.communicate()
    time.sleep(0.0005)
  time.sleep(rng.uniform(0, 0.01))
  process.send_signal(signal.SIGKILL)
  process.communicate()
  return where


def result(workdir):
  """Returns the last state as saved, and the metrics but for times."""
  path = workdir / 'checkpoints' / str(STEPS) / 'state'
  state = ocp.StandardCheckpointer().restore(path)
  lines = [
    {k: v for k, v in json.loads(line).items() if not TIMES.search(k)}
    for line in (workdir / 'metrics.jsonl').read_text().splitlines()
  ]
  return state, lines


@pytest.mark.slow
def test_twenty_kills_change_no_bit(tmp_path):
  rng = random.Random(0)
  straight, killed = tmp_path / 'straight', tmp_path / 'killed'
  process = begin(straight, tmp_path / 'compiled')
  out, _ = process.communicate(timeout=400)
  assert process.returncode == 0, out
  places = []
  while len(places) < KILLS:
    process = begin(killed, tmp_path / 'compiled')
    places.append(kill_at_random(process, killed, rng))
    if places[-1] == 'end':
      out, _ = process.communicate()
      assert process.returncode == 0, out
  assert min(map(places.count, ('start', 'save', 'loop'))) >= 2, places
  process = begin(killed, tmp_path / 'compiled')
  out, _ = process.communicate(timeout=400)
  assert process.returncode == 0, out
  assert 'damaged' not in out
  (state, lines), (expected, expected_lines) = result(killed), result(straight)
  assert lines == expected_lines
  jax.tree.map(np.testing.assert_array_equal, state, expected)
