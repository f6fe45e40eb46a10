import json
import time

import pytest
from gcs.flaky_proxy import Fault

from vit_jax import metrics


def lines(folder):
  path = folder / 'metrics.jsonl'
  text = path.read_text() if path.exists() else ''
  return [
    (line['step'], line.get('train/loss'))
    for line in map(json.loads, text.splitlines())
  ]


def write(writer, *steps):
  for step in steps:
    writer.scalars(step, 'train', {'loss': float(step)})


def eventually(is_so):
  deadline = time.monotonic() + 20
  while not is_so():
    assert time.monotonic() < deadline
    time.sleep(0.01)


def test_what_was_flushed_outlives_a_kill(folder):
  killed = metrics.Writer(folder, 10, 100, 0)
  write(killed, 1, 2, 3)
  killed.flush()
  eventually((folder / 'metrics.jsonl').exists)
  write(killed, 4)
  assert lines(folder) == [(1, 1.0), (2, 2.0), (3, 3.0)]

  with metrics.Writer(folder, 10, 100, 2) as writer:  # step 2 has a checkpoint
    write(writer, 3, 4, 5)
  assert lines(folder) == [(n, float(n)) for n in range(1, 6)]
  assert len(list((folder / 'tensorboard').iterdir())) == 2
  killed.__exit__(None, None, None)  # ends its threads


def test_a_store_that_fails_stops_no_training(folder, proxy, capsys):
  with metrics.Writer(folder, 10, 100, 0) as writer:
    proxy.faults.append(Fault(403))
    write(writer, 1)
    writer.flush()
    out = ''

    def is_said():
      nonlocal out
      writer.flush()
      out += capsys.readouterr().out
      return 'Warning' in out

    eventually(is_said)
    assert f'Warning: {folder}/metrics.jsonl cannot be written: access' in out
    assert 'Training goes on, and tries it again.' in out
    proxy.faults.clear()
    write(writer, 2)
  assert lines(folder) == [(1, 1.0), (2, 2.0)]

  with (
    pytest.raises(OSError, match='The files are kept: `gcloud storage cp -r'),
    metrics.Writer(folder, 10, 100, 2) as writer,
  ):
    write(writer, 3)
    proxy.faults.append(Fault(403))
  # What ended a run is what it says.
  proxy.faults.clear()
  with (
    pytest.raises(FloatingPointError),
    metrics.Writer(folder, 10, 100, 2) as writer,
  ):
    proxy.faults.append(Fault(403))
    write(writer, 3, float('nan'))


def test_a_store_that_fails_holds_up_no_step(folder, proxy):
  """Gcsfs tries for half a minute; the loop has gone on long before."""
  with metrics.Writer(folder, 10, 100, 0) as writer:
    write(writer, 1)  # TensorFlow starts
    proxy.faults.append(Fault(503))
    start = time.monotonic()
    for step in (2, 3, 4):
      writer.flush()
      write(writer, step)
    assert time.monotonic() - start < 1
    assert any(method != 'GET' for method, _ in proxy.requests)
    proxy.faults.clear()
  assert lines(folder) == [(n, float(n)) for n in range(1, 5)]
