import json
import threading
import time
import types

import jax.numpy as jnp
import pytest

from vit_jax import storage
from vit_jax.checkpoint import writing

STATE = {'w': jnp.arange(8.0)}


@pytest.fixture
def be_process(monkeypatch):
  """Lets the writes take this for process `number` of two."""

  def be(number):
    process = types.SimpleNamespace(
      process_count=lambda: 2, process_index=lambda: number
    )
    monkeypatch.setattr(writing, 'jax', process)

  return be


def write(folder, attempt=1):
  items = {'config': {}, 'inputs': {}}
  folder = storage.absolute(folder)
  return writing.Write(folder, 4, STATE, items, 2, True, attempt)


def test_a_report_that_fails_fails_the_part(tmp_path, be_process, monkeypatch):
  """Else the others would wait for it, and nobody would know."""
  be_process(1)
  go_on = threading.Event()

  def report(self, values):
    go_on.wait(20)
    raise OSError(5, 'Input/output error')

  monkeypatch.setattr(writing.Write, '_report', report)
  started = write(tmp_path)
  assert not started.written.wait(1)
  assert started.own_status == writing.BUSY
  go_on.set()
  assert started.written.wait(20)
  assert started.own_status == writing.FAILED
  started.join()
  assert 'Input/output error' in str(started.error)


def test_the_arrays_error_comes_before_the_reports(
  tmp_path, be_process, monkeypatch
):
  be_process(1)

  def fail(self, *args):
    raise OSError('the first' if args and 'w' in args[0] else 'the second')

  monkeypatch.setattr(writing.Write, '_start', fail)
  monkeypatch.setattr(writing.Write, '_report', fail)
  started = write(tmp_path)
  started.join()
  assert str(started.error) == 'the first'


def test_a_report_of_an_earlier_try_is_not_taken(tmp_path, be_process):
  be_process(0)
  reports = tmp_path / '4.partial' / 'reports'
  reports.mkdir(parents=True)
  report = json.dumps({'error': '', 'values': {'w': 1}})
  (reports / '1-1.json').write_text(report)
  started = write(tmp_path, attempt=2)
  assert started.written.wait(20)
  started.join(1)
  assert started.status == writing.BUSY
  (reports / '2-1.json').write_text(report)
  started.join(20)
  assert (started.status, started.error) == (writing.DONE, None)
  assert (tmp_path / '4' / 'state').is_dir()


def test_a_process_that_fails_waits_for_process_0(
  tmp_path, be_process, monkeypatch
):
  be_process(1)
  started = write(tmp_path)
  started.join()
  complete = threading.Timer(0.5, (tmp_path / '4').mkdir)
  complete.start()
  started.finish(20)
  assert (tmp_path / '4').is_dir()
  # But not for ever.
  (tmp_path / '4').rmdir()
  monkeypatch.setattr(writing, '_COMPLETE_SECONDS', 0.3)
  before = time.monotonic()
  started.finish(20)
  assert 0.3 <= time.monotonic() - before < 10


def test_nobody_waits_for_what_has_failed(tmp_path, be_process, monkeypatch):
  def fail(self, state):
    raise OSError('No space left')

  monkeypatch.setattr(writing.Write, '_start', fail)
  be_process(1)
  started, before = write(tmp_path), time.monotonic()
  started.finish(20)
  assert time.monotonic() - before < 10
