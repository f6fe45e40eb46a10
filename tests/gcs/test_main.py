"""The command line with its run's folder in a bucket, and a store that fails.

The processes are real, and really killed.
"""

import json
import os
import signal
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import process_runner
import pytest
from etils import epath
from gcs.flaky_proxy import Fault

from vit_jax import weights

pytestmark = pytest.mark.usefixtures('compile_once')

STEPS = 80
TINY_RUN = [
  *process_runner.tiny_run(STEPS),
  '--config.log_every=20',
  '--config.model.unroll=2',
  '--config.checkpoint.every=20',
  '--config.evals.test.every=40',
]
FAULTS = [
  Fault(503, method='GET', every=41, times=3),
  Fault(503, method='POST|PUT', every=13, times=3),
  Fault(429, method='POST|PUT', every=17, times=3),
  Fault('drop', method='GET', every=53, times=3),
  Fault('drop', method='POST|PUT', every=19, times=3),
  Fault('cut', method='GET', path='alt=media', every=11, times=3),
  Fault('slow', every=29, times=9, seconds=0.3),
]


def metrics(folder):
  path = folder / 'metrics.jsonl'
  text = path.read_text() if path.exists() else ''
  return [json.loads(line) for line in text.splitlines()]


def result(folder):
  """Returns the last state as saved, and the metrics but for times."""
  with ocp.Checkpointer(
    ocp.CompositeCheckpointHandler(state=ocp.StandardCheckpointHandler())
  ) as checkpointer:
    state = checkpointer.restore(
      folder / 'checkpoints' / str(STEPS),
      args=ocp.args.Composite(state=ocp.args.StandardRestore()),
    ).state
  lines = [
    {k: v for k, v in line.items() if k != 'train/images_per_second'}
    for line in metrics(folder)
    if 'train/loss' in line or 'test/loss' in line
  ]
  return state, lines


def finish(process):
  out, err = process.communicate(timeout=300)
  assert process.returncode == 0, err
  assert 'Traceback' not in err
  return out


@pytest.mark.slow
def test_a_run_in_a_bucket_is_that_of_a_disk(folder, proxy, tmp_path):
  run = [*TINY_RUN, f'--workdir={tmp_path}/run']
  with process_runner.training(*run) as process:
    finish(process)

  run = [*TINY_RUN, f'--workdir={folder}']
  proxy.faults.extend(FAULTS)
  with process_runner.training(*run) as process:
    # Killed while it writes the third checkpoint.
    deadline = time.monotonic() + 120
    while not any(
      method != 'GET' and 'checkpoints%2F60' in path
      for method, path in list(proxy.requests)
    ):
      assert process.poll() is None, process.communicate()
      assert time.monotonic() < deadline
      time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
  # Metrics are copied in the background: it may lack the last before a kill.
  copied = {line['step'] for line in metrics(folder)}

  with process_runner.training(*run) as process:
    out = finish(process)
  assert 'images, from step 40 to step 80' in out
  assert f'Everything is in {folder}: checkpoints/' in out
  assert all(fault.done for fault in proxy.faults), proxy.faults
  proxy.faults.clear()

  state, lines = result(folder)
  expected_state, expected_lines = result(epath.Path(tmp_path / 'run'))
  jax.tree.map(np.testing.assert_array_equal, state, expected_state)
  assert lines == [
    line
    for line in expected_lines
    if line['step'] > 40 or line['step'] in copied or 'test/loss' in line
  ]
  assert (
    json.loads((folder / 'config.json').read_text())['total_steps'] == STEPS
  )
  steps = {p.name for p in (folder / 'checkpoints').iterdir()}
  assert {'60', '80'} <= steps
  events = [p.read_bytes() for p in (folder / 'tensorboard').iterdir()]
  assert any(b'test/accuracy' in content for content in events)

  # A step's folder without its last file is no checkpoint.
  (folder / 'checkpoints' / '999' / 'state' / 'a').write_text('a')
  expected = weights.load_checkpoint(tmp_path / 'run')
  found = weights.load_checkpoint(folder)
  jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)
  assert found.model == expected.model


@pytest.mark.slow
def test_two_processes_write_one_checkpoint_in_a_bucket(
  folder, proxy, tmp_path
):
  run = [*TINY_RUN, '--config.sharding.params=fsdp']
  local = process_runner.commands(2, *run, f'--workdir={tmp_path}/run')
  proxy.faults.extend(FAULTS)
  remote = process_runner.commands(2, *run, f'--workdir={folder}')
  for commands in (local, remote):
    with process_runner.started(commands, devices=1) as running:
      codes, outs, errors = process_runner.finish(running)
    assert codes == [0, 0], errors
  assert f'Everything is in {folder}: checkpoints/' in outs[0]
  # The reports of each process's part are gone, and no part is missing.
  last = folder / 'checkpoints' / str(STEPS)
  assert sorted(path.name for path in last.iterdir()) == [
    'checksums', 'commit_success.txt', 'config', 'inputs', 'state',
  ]  # fmt: skip
  expected = weights.load_checkpoint(tmp_path / 'run')
  found = weights.load_checkpoint(folder)
  jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)


@pytest.mark.slow
def test_mistakes_end_in_one_line(folder, proxy):
  for fault, workdir, message in (
    (None, 'gs://other/run', "there is no bucket 'other'; correct the name"),
    (Fault(401), folder, 'gcloud auth application-default login'),
  ):
    proxy.faults[:] = [fault] if fault else []
    run = [*TINY_RUN, f'--workdir={os.fspath(workdir)}']
    with process_runner.training(*run) as process:
      _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert f'Error: --workdir={os.fspath(workdir)}: ' in err
    assert message in err
    assert 'Traceback' not in err
