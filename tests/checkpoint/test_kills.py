"""A run that is killed again and again gives the same, to the bit."""

import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

ROOT = pathlib.Path(__file__).parents[2]
STEPS, KILLS = 600, 20
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
  """Kills it while it lives; returns where: 'start', 'save' or 'loop'."""
  where = rng.choice(['start', 'save', 'save', 'loop'])
  folder, lines = workdir / 'checkpoints', count_lines(workdir)
  deadline = time.monotonic() + 240
  until = time.monotonic() + rng.uniform(0.1, 6)
  more = rng.randrange(1, 4)

  def is_now():
    if where == 'start':
      # Or as soon as it is over, so that a fast machine's runs do not end.
      return time.monotonic() > until or count_lines(workdir) > lines
    if where == 'loop' or count_lines(workdir) < lines + more:
      return count_lines(workdir) >= lines + more
    return folder.is_dir() and any('.' in name for name in os.listdir(folder))

  while not is_now():
    assert process.poll() is None, process.communicate()
    assert time.monotonic() < deadline, process.communicate()
    time.sleep(0.0005)
  time.sleep(rng.uniform(0, 0.01))
  process.send_signal(signal.SIGKILL)
  out, _ = process.communicate()
  # Not the exit status of a process that had ended before.
  assert process.returncode == -signal.SIGKILL, out
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
  places = [
    kill_at_random(begin(killed, tmp_path / 'compiled'), killed, rng)
    for _ in range(KILLS)
  ]
  assert min(map(places.count, ('start', 'save', 'loop'))) >= 2, places
  process = begin(killed, tmp_path / 'compiled')
  out, _ = process.communicate(timeout=400)
  assert process.returncode == 0, out
  assert 'damaged' not in out
  (state, lines), (expected, expected_lines) = result(killed), result(straight)
  assert lines == expected_lines
  jax.tree.map(np.testing.assert_array_equal, state, expected)
