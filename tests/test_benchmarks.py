"""The benchmarks run, and their JSON lines have what is promised."""

import json
import pathlib

import process_runner
import pytest

ROOT = pathlib.Path(__file__).parent.parent


def run(name, *flags):
  """Returns the JSON line of a benchmark, run with the least of work."""
  result = process_runner.run(
    '-m', f'benchmarks.{name}', *flags, JAX_DISABLE_MOST_OPTIMIZATIONS='1'
  )
  assert result.returncode == 0, result.stderr
  (line,) = result.stdout.splitlines()
  return json.loads(line)


def test_train_step():
  result = run(
    'train_step',
    '--variant=Ti/16',
    '--image_size=16',
    '--batch_size=1',
    '--steps=1',
    '--log_every=1',
    '--repeats=2',
  )
  assert result['model'] == 'ViT-Ti/16'
  assert result['devices'] == 1
  assert result['mfu'] is None  # a CPU's peak is not known
  for name in (
    'images_per_second',
    'model_flops_per_second',
    'allocated_bytes',
    'compile_seconds',
  ):
    assert result[name] > 0
  # 2 tokens through 5.4M parameters, 3 times 2 FLOPs each, and the rest.
  flops = result['model_flops_per_second'] / result['images_per_second']
  assert 60e6 < flops < 80e6
  assert 0 < result['loop_cost_milliseconds'] < 100
  assert result['loop_overhead'] > -1
  assert result['loop_overhead_with_input'] > -1


def test_input_pipeline():
  result = run(
    'input_pipeline',
    '--batch_size=4',
    '--repeats=1',
    '--batches=1',
    '--num_jpegs=8',
  )
  assert 50_000 < result['mean_jpeg_bytes'] < 200_000
  assert result['images_per_second'] > 0
  assert result['ratio'] > 0


@pytest.mark.slow
def test_compile_ahead():
  pytest.importorskip('libtpu')
  result = run(
    'compile_ahead',
    '--config=configs/digits.py',
    '--topology=v3:2x2',
    '--config.model.hidden_size=16',
    '--config.model.mlp_dim=32',
    '--config.model.depth=2',
    '--config.model.num_heads=2',
  )
  assert (result['num_devices'], result['fits']) == (8, True)
  for name in ('build_seconds', 'compile_seconds', 'peak_bytes'):
    assert result[name] > 0


def test_checkpoint():
  result = run(
    'checkpoint', '--gigabytes=0.01', '--width=256', '--steps=2', '--repeats=2'
  )
  assert 9e6 < result['state_bytes'] < 11e6
  for name in ('save', 'save_beside_steps', 'raw_write', 'restore'):
    assert result[f'{name}_gigabytes_per_second'] > 0
  save, raw = (
    result[f'{name}_gigabytes_per_second'] for name in ('save', 'raw_write')
  )
  assert abs(result['share_of_raw_write'] - save / raw) < 0.1  # rounded, each
  assert 0 < result['stall_milliseconds'] <= result['stall_milliseconds_max']
  for name in ('next_step_milliseconds', 'lost_milliseconds', 'slow_down'):
    assert {name, f'orbax_{name}'} <= result.keys()
