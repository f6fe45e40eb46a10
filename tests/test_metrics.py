import json
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
