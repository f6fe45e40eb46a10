"""The command, as a user runs it, and its table on numbers made up."""

import json
import pathlib
import re
from types import SimpleNamespace

import process_runner
import pytest

from benchmarks import scaling_table
from vit_jax.compile_ahead import __main__ as compile_ahead

ROOT = pathlib.Path(__file__).parent.parent.parent
GIB = 2**30
RESULT = {
  'topology': 'v3:4x8', 'num_slices': 1, 'device_kind': 'TPU v3',
  'num_devices': 64, 'model': 'H/14', 'batch_size': 4096, 'batch_per_core': 64,
  'remat': 'full', 'unroll': 1, 'params': 'fsdp', 'fits': True,
  'argument_bytes': GIB, 'temporary_bytes': 2 * GIB, 'peak_bytes': 3 * GIB,
  'hbm_bytes': 15 * GIB, 'hbm_share': 0.2, 'compile_seconds': 60.0,
  'flops_per_core': 8e13, 'model_flops_per_core': 6e13,
  'flops': 5.12e15, 'allocated_bytes': 4 * GIB, 'unknown_loops': 0,
  'recomputed_share': 1 / 3, 'collective_bytes': {'all-reduce': 5_000_000},
  'sent_bytes': 9_000_000, 'sent_ratio': 1.5, 'memory_bytes': 3e11,
  'flops_seconds_bound': 1.3, 'memory_seconds_bound': 0.5,
  'links_seconds_bound': 0.1, 'network_seconds_bound': 0,
  'step_seconds_bound': 1.3, 'step_seconds_estimate': None,
  'images_per_second_bound': 3150.8, 'mfu_bound': 0.75,
  'core_days_bound': 997.3, 'total_steps': 1_035_644, 'paper_core_days': 2500,
}  # fmt: skip


def test_the_table():
  text = '\n'.join(compile_ahead.lines(RESULT))
  for part in (
    'H/14 on v3:4x8: 64 x TPU v3',
    'fits',
    '4,096, 64',
    'full, fsdp',
    '3.00 of 15.00 GiB, 20.0%',
    'laid out in all          4.00 GiB',
    '8e+13 of 5.12e+15 in all; of the model 6e+13, computed again 33%',
    'all-reduce 5',
    '9, 1.50 of what the layout needs',
    '1.300 s a step, 3,151 images/s, 75% MFU, 997.3 core-days for 1,035,644',
    '2,500 TPUv3-core-days',
  ):
    assert part in text
  assert 'estimate' not in text
  assert 'unknown' not in text
  text = '\n'.join(compile_ahead.lines(RESULT | {'unknown_loops': 2}))
  assert 'unknown loops            2, counted once' in text


def test_the_table_of_what_does_not_fit():
  needed = {'fits': False, 'peak_bytes': 24 * GIB, 'hbm_share': 1.6}
  small = {
    key: value
    for key, value in (RESULT | needed).items()
    if not key.endswith(
      ('_bound', '_estimate', 'ary_bytes', 'ment_bytes', 'cated_bytes')
    )
  }
  text = '\n'.join(compile_ahead.lines(small))
  assert 'DOES NOT FIT' in text
  assert 'at least 24.00 of 15.00 GiB, 160.0%' in text
  unknown = small | {'peak_bytes': None, 'hbm_share': None}
  text = '\n'.join(compile_ahead.lines(unknown))
  assert 'more than 15.00 GiB' in text


def command(*args):
  return process_runner.run('-m', 'vit_jax.compile_ahead', *args)


TINY = (
  '--config=configs/digits.py',
  '--config.model.hidden_size=16',
  '--config.model.mlp_dim=32',
  '--config.model.num_heads=2',
  '--config.model.depth=2',
)


@pytest.mark.slow
def test_a_recipe_is_compiled(tmp_path):
  pytest.importorskip('libtpu')
  out = tmp_path / 'ahead.json'
  result = command(*TINY, '--topology=v5e:2x2', f'--out={out}')
  assert result.returncode == 0, result.stderr
  assert result.stderr == ''  # the compiler's complaints are no one's concern
  assert 'on v5e:2x2: 4 x TPU v5 lite' in result.stdout
  assert re.search(r'evaluation test of [\d,]+ fits', result.stdout)
  written = json.loads(out.read_text())
  assert written['fits'] and written['eval']['test']['fits']
  assert 0 < written['peak_bytes'] < written['hbm_bytes']
  for key in ('flops_per_core', 'model_flops_per_core', 'step_seconds_bound'):
    assert written[key] > 0
  assert written['collective_bytes']['all-reduce'] > 0


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    (('--topology=v3',), 'Error: --topology=v3 is no topology; give a version'),
    (('--topology=v3:2x2', '--config.model.remt=full'), "no field 'remt'"),
    pytest.param(
      ('--topology=v3:2x2', '--config.model.remat=much'),
      "Error: config.model.remat='much' is unknown",
      marks=pytest.mark.slow,
    ),
    (
      ('--topology=v3:2x2', '--out=missing/x.json'),
      'Error: --out=missing/x.json: No such file or directory; give a file in',
    ),
    ((), 'Flag --topology must have a value'),
  ],
)
def test_mistakes_end_in_one_line(args, message):
  pytest.importorskip('libtpu')
  result = command(*TINY, *args)
  assert result.returncode
  assert message in result.stderr
  assert 'Traceback' not in result.stderr


def test_help_says_what_it_does():
  result = command('--help')
  for part in ('TPU compiler', '--topology', '--search', '--[no]eval', '--out'):
    assert part in result.stdout


def test_what_is_known_is_saved_before_the_evaluations(
  tiny_config, monkeypatch
):
  class Forecast:
    def __init__(self, *args):
      pass

    def train_step(self):
      return dict(RESULT)

    def eval_steps(self):
      raise ValueError('an evaluation that cannot be compiled')

  monkeypatch.setattr(compile_ahead.forecast, 'Forecast', Forecast)
  saved = []
  with pytest.raises(ValueError, match='cannot be compiled'):
    compile_ahead.run(
      tiny_config, 'v3:4x8', say=lambda text: None, save=saved.append
    )
  assert [result['peak_bytes'] for result in saved] == [3 * GIB]


def test_a_search_that_ends_early_has_saved_its_tries(tiny_config, monkeypatch):
  class Forecast:
    mesh = SimpleNamespace(size=4)

    def __init__(self, config, *args):
      if config.model.remat != 'none':
        raise ValueError('it cannot be compiled')

    def train_memory(self):
      return {'fits': False, 'hbm_share': 1.5}

  monkeypatch.setattr(compile_ahead.forecast, 'Forecast', Forecast)
  saved = []
  with pytest.raises(ValueError, match='cannot be compiled'):
    compile_ahead.run(
      tiny_config, 'v3:2x2', find=True, say=lambda line: None,
      save=saved.append,
    )  # fmt: skip
  assert [t['hbm_share'] for t in saved[-1]['tries']] == [1.5]


def test_out_is_left_as_it_was_until_there_is_a_result(tmp_path):
  new, old = tmp_path / 'new', tmp_path / 'old'
  old.write_text('{}')
  for path in (new, old):
    compile_ahead._check_out(str(path))
  assert not new.exists()
  assert old.read_text() == '{}'
  with pytest.raises(ValueError, match='Is a directory; give a file'):
    compile_ahead._check_out(str(tmp_path))


def test_the_document_has_all_rows():
  doc = scaling_table.DOC.read_text()
  table = doc.partition(scaling_table.BEGIN)[2].partition(scaling_table.END)[0]
  found = [
    tuple(cell.strip() for cell in line.split('|')[1:3])
    for line in table.splitlines()
    if '|' in line
  ]
  assert found[2:] == scaling_table.rows()  # after the head
