"""Real processes that are killed, stopped, or fail alone."""

import os
import re
import signal
import time

import process_runner
import pytest

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
      stop = checkpoints.stop_requested()
      if stop or checkpoints.due(step, last):
        checkpoints.save(step, state)
      if stop:
        checkpoints.stop(step)
      said += checkpoints.news()
    checkpoints.wait(lambda *lines: said.extend(lines))
except (checkpoint.Preempted, OSError, ValueError) as error:
  end = f'{type(error).__name__}: {error}'
print(json.dumps({
  'restored': restored, 'said': said, 'end': end, 'step': int(state['step']),
  'sums': checksums.whole(state)}), flush=True)
"""


def start(count, workdir, last=12, faults=('', '', '', '')):
  """Starts the processes, of 4 devices together, as a context."""
  address = process_runner.free_address()
  commands = [
    ['-c', PROCESS, address, number, count, workdir, last, faults[number]]
    for number in range(count)
  ]
  return process_runner.started(commands, devices=4 // count)


def run(count, workdir, **kwargs):
  """Returns what each of them printed."""
  with start(count, workdir, **kwargs) as processes:
    return process_runner.results(processes, timeout=150)


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
  assert other['said'] == one['said']  # the true cause, everywhere
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
def test_a_report_that_fails_at_the_end_stops_none(tmp_path):
  """Nobody waits for it for ever, and all learn why it was missing."""
  fault = """
old = writing.Write._report
tries = []
def fail(self, values):
  if self.step == 5 and not tries:
    tries.append(self.step)
    time.sleep(1)
    raise OSError(5, 'Input/output error')
  return old(self, values)
writing.Write._report = fail
"""
  one, other = run(2, tmp_path, last=5, faults=['', fault])
  assert one['end'] == other['end'] == ''
  assert one['said'] == other['said']
  assert (
    'step 5 could not be written (process 1: OSError: [Errno 5] Input/'
    in (one['said'][0])
  )
  assert steps(tmp_path) == ['4', '5']


@pytest.mark.slow
def test_an_error_of_all_leaves_the_checkpoint_on_its_way(tmp_path):
  """No process ends before process 0 has completed it: that would end it."""
  fault = """
complete, leave = writing.Write._complete, checkpoint.Manager.__exit__
def slow(self, values):
  time.sleep(3)
  complete(self, values)
def news(self):
  if self._write is not None:
    raise ValueError('a loss that is nan')
  return []
def left(self, *args):
  leave(self, *args)
  said.append(os.listdir(workdir + '/checkpoints'))
writing.Write._complete = slow
checkpoint.Manager.news = news
checkpoint.Manager.__exit__ = left
"""
  for found in run(2, tmp_path, faults=[fault, fault]):
    assert found['end'] == 'ValueError: a loss that is nan'
    assert found['said'] == [['4']]


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
  with start(2, tmp_path, last=100_000) as processes:
    for process in processes:
      assert process.stdout.readline() == 'ready\n', process.communicate()
    deadline = time.monotonic() + 60
    while not (tmp_path / 'checkpoints' / '8').is_dir():
      assert time.monotonic() < deadline
      time.sleep(0.05)
    processes[number].send_signal(getattr(signal, name))
    one, other = process_runner.results(processes, timeout=150)
  assert one['step'] == other['step']
  step = one['step']
  for found in (one, other):
    assert re.match(rf'Preempted: .* after step {step:,}\.', found['end'])
  assert one['sums'] == other['sums']
  assert max(map(int, steps(tmp_path))) == step
