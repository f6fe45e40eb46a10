"""A run that is killed again and again gives the same, to the bit."""

import json
import os
import random
import re
import signal
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import process_runner
import pytest

STEPS, KILLS = 600, 20
# What differs from one run to another.
TIMES = re.compile(r'images_per_second|mfu|second|goodput')


def begin(workdir):
  return process_runner.training(
    *process_runner.tiny_run(STEPS),
    '--config.log_every=10',
    '--config.checkpoint.every=10',
    '--config.evals.test.every=100',
    f'--workdir={workdir}',
  )


def finish(workdir):
  """Returns what a run prints that nothing stops."""
  with begin(workdir) as process:
    out, err = process.communicate(timeout=400)
  assert process.returncode == 0, err
  return out + err


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
  output = process.communicate()
  # Not the exit status of a process that had ended before.
  assert process.returncode == -signal.SIGKILL, output
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
@pytest.mark.usefixtures('compile_once')
def test_twenty_kills_change_no_bit(tmp_path):
  rng = random.Random(0)
  straight, killed = tmp_path / 'straight', tmp_path / 'killed'
  finish(straight)
  places = []
  for _ in range(KILLS):
    with begin(killed) as process:
      places.append(kill_at_random(process, killed, rng))
  assert min(map(places.count, ('start', 'save', 'loop'))) >= 2, places
  assert 'damaged' not in finish(killed)
  (state, lines), (expected, expected_lines) = result(killed), result(straight)
  assert lines == expected_lines
  jax.tree.map(np.testing.assert_array_equal, state, expected)
