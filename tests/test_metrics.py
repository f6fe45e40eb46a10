import contextlib
import json
import resource
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from vit_jax import metrics


def writer(path, first_step=0, total_steps=100, peak_seconds=None):
  return metrics.Writer(
    epath.Path(path), 10, total_steps, first_step, peak_seconds
  )


def lines(path):
  text = (path / 'metrics.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


def test_lines_are_flat_numbers(tmp_path):
  with writer(tmp_path) as w:
    w.scalars(1, 'train', {'loss': jnp.float32(0.5)})
    w.scalars(1, 'test', {'accuracy': 0.25})
  first, second = lines(tmp_path)
  assert first.pop('train/images_per_second') > 0
  assert first == {'step': 1, 'train/loss': 0.5}
  assert second == {'step': 1, 'test/accuracy': 0.25}


def test_images_per_second_leave_evaluations_out(tmp_path, monkeypatch, capsys):
  """And so does the MFU, of steps that would take 0.1 s at the peak."""
  clock = iter([0.0, 100.0, 102.0, 150.0, 154.0, 154.0])
  now = [0.0]
  monkeypatch.setattr(metrics.time, 'perf_counter', lambda: now[0])
  with writer(tmp_path, peak_seconds=0.1) as w:
    now[0] = next(clock)  # the first step compiles until 100
    now[0] = next(clock)
    w.start_clock(1)
    now[0] = next(clock)  # 4 steps in 2 seconds
    w.scalars(5, 'train', {'loss': 1.0})
    now[0] = next(clock)  # an evaluation until 150
    w.scalars(5, 'test', {'loss': 1.0})
    now[0] = next(clock)  # 5 steps in 4 seconds
    w.scalars(10, 'train', {'loss': 1.0})
  rates = [x.get('train/images_per_second') for x in lines(tmp_path)]
  assert rates == [20.0, None, 12.5]
  mfus = [x.get('train/mfu') for x in lines(tmp_path)]
  assert mfus == pytest.approx([0.2, None, 0.125])
  assert '12 images/s  12% MFU' in capsys.readouterr().out


def test_a_resumed_run_drops_what_is_done_again(tmp_path):
  with writer(tmp_path) as w:
    for step in (1, 2, 3):
      w.scalars(step, 'train', {'loss': 0.0})
      w.scalars(step, 'test', {'loss': 0.5})
  with (tmp_path / 'metrics.jsonl').open('a') as file:
    file.write('null\n[1]\n{"step": 2, "train/lo')  # killed while it wrote
  with writer(tmp_path, first_step=2) as w:
    w.scalars(3, 'train', {'loss': 1.0})
  # The evaluation at step 2 is the resumed run's to do.
  assert [(x['step'], x.get('train/loss')) for x in lines(tmp_path)] == [
    (1, 0.0),
    (1, None),
    (2, 0.0),
    (3, 1.0),
  ]


def test_a_resumed_run_goes_on_from_the_last_goodput_of_its_step(tmp_path):
  with writer(tmp_path) as w:
    assert w.goodput is None
    for step, share in ((1, 0.1), (2, 0.2), (2, 0.3), (3, 0.4)):
      w.scalars(step, 'goodput', {'step': share, 'seconds': 10 * share})
  with writer(tmp_path, first_step=2) as w:
    assert w.goodput == {'step': 0.3, 'seconds': 3}
  # Else runs that were stopped often would have more lines than others.
  assert [x['goodput/step'] for x in lines(tmp_path)] == [0.1, 0.3]
  with writer(tmp_path, first_step=5) as w:
    assert w.goodput is None


def test_a_line_that_lost_its_end_does_not_spoil_the_next(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('{"step": 1, "train/loss": 2.0}')
  with writer(tmp_path, first_step=1) as w:
    w.scalars(2, 'train', {'loss': 1.0})
  assert [x['train/loss'] for x in lines(tmp_path)] == [2.0, 1.0]


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_nan_and_inf_stop_with_the_metric_and_the_steps(tmp_path, value):
  with writer(tmp_path) as w:
    w.scalars(20, 'train', {'loss': 1.0, 'accuracy': 0.0})
    with pytest.raises(
      FloatingPointError,
      match=rf'At step 40 train/loss is {value}; all metrics were finite at '
      'step 20. Lower config.optimizer.lr',
    ):
      w.scalars(40, 'train', {'loss': value, 'accuracy': 0.0})
  assert len(lines(tmp_path)) == 1


def test_plain_lines_in_a_pipe(tmp_path, capsys):
  with writer(tmp_path) as w:
    w.start_clock(1)
    w.scalars(50, 'train', {'loss': 0.25, 'accuracy': 0.5, 'other': 1.0})
    w.scalars(50, 'test', {'accuracy': 0.75, 'loss': 0.5})
    assert w.results() == 'test accuracy 75.00%, loss 0.5000'
  train, test = capsys.readouterr().out.splitlines()
  assert train.startswith('step     50/100   50%  loss 0.2500, accuracy 50.00%')
  assert 'images/s  ETA 0:0' in train
  assert test == 'step     50  test: accuracy 75.00%, loss 0.5000'


def test_one_refreshing_line_on_a_terminal(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(sys.stdout, 'isatty', lambda: True)
  with writer(tmp_path) as w:
    for step in (1, 2):
      w.scalars(step, 'train', {'loss': 0.25})
    w.scalars(2, 'test', {'loss': 0.5})
  out = capsys.readouterr().out
  assert out.count('\n') == 1
  assert out.count('\r') == 4  # two of training, two to wipe it for the test's
  assert out.endswith('test: loss 0.5000\n')


@pytest.mark.parametrize(
  ('seconds', 'text'), [(0, '0:00'), (61.4, '1:01'), (360_000, '100:00:00')]
)
def test_duration(seconds, text):
  assert metrics.duration(seconds) == text


@contextlib.contextmanager
def full_disk(size):
  """Lets the system write no file beyond a size in bytes."""
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def in_tensorboard(path):
  from tensorboard.backend.event_processing import event_accumulator

  found = event_accumulator.EventAccumulator(str(path / 'tensorboard'))
  # Of files of the same second it takes any first.
  return sorted(x.step for x in found.Reload().Tensors('test/loss'))


def test_what_cannot_be_written_is_written_later(tmp_path, capsys):
  path = tmp_path / 'metrics.jsonl'
  with writer(tmp_path) as w:
    w.scalars(1, 'test', {'loss': 1.0})
    whole = path.read_text()
    for steps in (2, 3), (5, 6):  # it is full twice
      with full_disk(path.stat().st_size + 5):
        for step in steps:
          w.scalars(step, 'test', {'loss': 1.0})
        assert path.read_text()[-5:] == '{"ste'
      w.scalars(steps[-1] + 1, 'test', {'loss': 1.0})
  assert path.read_text().startswith(whole)
  assert [x['step'] for x in lines(tmp_path)] == [1, 2, 3, 4, 5, 6, 7]
  assert in_tensorboard(tmp_path) == [1, 2, 3, 4, 5, 6, 7]
  out = capsys.readouterr().out
  assert out.count(f'Warning: {path} cannot be written: File too large.') == 2
  # That is tried again after a minute, or at the end.
  assert out.count('tensorboard cannot be written: File too large.') == 1
  assert out.count('Training goes on, and tries it again.') == 3


def test_lines_that_are_lost_are_said_but_hide_no_error(tmp_path, capsys):
  lost = 'metrics.jsonl cannot be written: File too large. The last 2 of its'
  with full_disk(5):
    with (
      pytest.raises(OSError, match=rf'{tmp_path}/{lost} lines are lost'),
      writer(tmp_path) as w,
    ):
      w.scalars(1, 'test', {'loss': 1.0})
      w.scalars(2, 'test', {'loss': 1.0})
    with pytest.raises(KeyboardInterrupt), writer(tmp_path) as w:
      w.scalars(1, 'test', {'loss': 1.0})
      w.scalars(2, 'test', {'loss': 1.0})
      raise KeyboardInterrupt
  assert f'Warning: {tmp_path}/{lost} lines are lost' in capsys.readouterr().out


def test_a_file_that_was_moved_away_gets_a_new_one(tmp_path):
  with writer(tmp_path) as w:
    w.scalars(1, 'test', {'loss': 1.0})
    (tmp_path / 'metrics.jsonl').rename(tmp_path / 'old')
    w.scalars(2, 'test', {'loss': 1.0})
  assert lines(tmp_path) == [{'step': 2, 'test/loss': 1.0}]
