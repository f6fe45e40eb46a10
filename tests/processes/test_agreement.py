"""What processes compare; real ones do so in test_processes.py."""

import contextlib
import importlib.metadata
import threading

import jax
import pytest
from etils import epath

from vit_jax import processes
from vit_jax.processes import agreement


@contextlib.contextmanager
def in_threads(monkeypatch, num):
  """Threads are the processes; yields a function that runs something in all."""
  values, here = {}, threading.local()
  barriers = [threading.Barrier(num) for _ in range(2)]

  def gather(name, value, timeout=300):
    del timeout
    values.setdefault(name, [None] * num)[here.number] = value
    barriers[0].wait(20)
    result = list(values[name])
    barriers[1].wait(20)
    return result

  monkeypatch.setattr(processes, 'gather', gather)
  monkeypatch.setattr(processes, 'several', lambda: num > 1)
  monkeypatch.setattr(jax, 'process_index', lambda: here.number)
  monkeypatch.setattr(
    agreement.socket, 'gethostname', lambda: f'host{here.number}'
  )

  def run(function):
    results = [None] * num

    def one(number):
      here.number = number
      try:
        results[number] = function(number)
      except Exception as error:
        results[number] = error

    threads = [threading.Thread(target=one, args=(i,)) for i in range(num)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join(60)
      assert not thread.is_alive()
    return results

  yield run


def test_the_same_facts_pass(monkeypatch):
  facts = {'config.seed': 0, 'config.mesh': None, 'list': [1, (2,)]}
  with in_threads(monkeypatch, 3) as run:
    assert run(lambda number: agreement.check_same(dict(facts))) == [None] * 3


def test_the_odd_one_is_named_with_both_values(monkeypatch):
  facts = [
    {'config.seed': 1, 'version of jax': '0.10.2', 'devices': '4 x cpu'},
    {'config.seed': 0, 'version of jax': '0.10.2', 'devices': '4 x cpu'},
    {'config.seed': 0, 'version of jax': '0.10.1', 'devices': '4 x cpu',
     'more': 1},
  ]  # fmt: skip
  with in_threads(monkeypatch, 3) as run:
    errors = run(lambda number: agreement.check_same(facts[number]))
  for error in errors:
    assert isinstance(error, ValueError)
    assert str(error) == (
      'The 3 processes do not agree:\n'
      '  config.seed: 1 on process 0 (host0), 0 on process 1 (host1) and '
      'others\n'
      '  more: 1 on process 2 (host2), absent on process 0 (host0) and '
      'others\n'
      '  version of jax: "0.10.1" on process 2 (host2), "0.10.2" on process 0 '
      '(host0) and others\n'
      'Start all with the same command, code, packages, variables and devices.'
    )


def test_of_two_the_first_is_right(monkeypatch):
  with in_threads(monkeypatch, 2) as run:
    errors = run(lambda number: agreement.check_same({'x': number}))
  assert '\n  x: 1 on process 1 (host1), 0 on process 0 (host0)\n' in str(
    errors[0]
  )


def test_facts():
  config = {'seed': 0, 'model': {'depth': None, 'stem_depths': (1, 2)}}
  facts = agreement.facts(config, 'runs/x')
  assert facts['config.seed'] == 0
  assert facts['config.model.depth'] is None
  assert facts['config.model.stem_depths'] == (1, 2)
  assert facts['--workdir'] == 'runs/x'
  assert facts['version of jax'] == jax.__version__
  assert facts['devices'] == '8 x cpu'
  assert len(facts['code of vit_jax']) == 12


def test_what_the_program_is_compiled_with_is_a_fact(monkeypatch):
  def facts(**variables):
    with pytest.MonkeyPatch.context() as patch:
      for name, value in variables.items():
        patch.setenv(name, value)
      return agreement.facts({}, '')

  plain = facts()
  for name, value in {
    'XLA_FLAGS': '--xla_gpu_deterministic_ops=true',
    'LIBTPU_INIT_ARGS': '--xla_tpu_scoped_vmem_limit_kib=65536',
    'JAX_DEFAULT_MATMUL_PRECISION': 'highest',
    'JAX_THREEFRY_PARTITIONABLE': '0',
    'NVIDIA_TF32_OVERRIDE': '0',
  }.items():
    assert facts(**{name: value}) == plain | {f'variable {name}': value}
  # Who a process is, and where it puts things, is its own.
  same = facts(
    JAX_COMPILATION_CACHE_DIR='/x',
    JAX_PROCESS_ID='3',
    JAX_LOCAL_DEVICE_IDS='1',
    JAX_COORDINATOR_ADDRESS='h:1',
    XLA_FLAGS=f'{plain["variable XLA_FLAGS"]} --xla_dump_to=/x',
    HOME='/x',
  )
  assert same == plain


def test_plugins_are_packages_to_compare(monkeypatch):
  versions = {'libtpu': '0.0.1', 'jax-cuda12-plugin': '0.10.0'}

  def version(name):
    if name not in versions:
      raise importlib.metadata.PackageNotFoundError
    return versions[name]

  monkeypatch.setattr(importlib.metadata, 'version', version)
  facts = agreement.facts({}, '')
  assert {k: v for k, v in facts.items() if k.startswith('version')} == {
    'version of libtpu': '0.0.1',
    'version of jax-cuda12-plugin': '0.10.0',
  }


def test_a_mark_that_was_left_over_is_no_proof(monkeypatch, tmp_path):
  for i in range(2):
    (tmp_path / str(i)).mkdir()
    (tmp_path / str(i) / 'shared-mark').write_text('of an earlier start')
  with in_threads(monkeypatch, 2) as run:
    errors = run(
      lambda i: agreement.check_shared(epath.Path(tmp_path / str(i)), 0.4)
    )
    assert 'is not that of process 1 (host1)' in str(errors[0])
    folder = epath.Path(tmp_path / '1')
    assert run(lambda i: agreement.check_shared(folder)) == [None] * 2
  assert not list((tmp_path / '1').iterdir())


def test_one_folder_passes_and_stays_as_it_was(monkeypatch, tmp_path):
  with in_threads(monkeypatch, 2) as run:
    folder = epath.Path(tmp_path)
    assert run(lambda number: agreement.check_shared(folder)) == [None] * 2
  assert not list(tmp_path.iterdir())


def test_folders_of_one_name_on_two_machines_are_found(monkeypatch, tmp_path):
  folders = [tmp_path / str(i) for i in (0, 1, 0)]
  for folder in folders[:2]:
    folder.mkdir()
  with in_threads(monkeypatch, 3) as run:
    errors = run(
      lambda number: agreement.check_shared(
        epath.Path(folders[number]), timeout=0.4
      )
    )
  for number, error in enumerate(errors):
    assert isinstance(error, ValueError)
    assert str(error) == (
      f'--workdir={folders[number]} of process 0 is not that of process 1 '
      '(host1); all processes must write to one folder: use gs://, or a shared '
      'disk.'
    )
  assert not list(folders[0].iterdir())


def test_a_process_alone_checks_nothing(tmp_path):
  agreement.check_same({'x': 1})
  agreement.check_shared(epath.Path(tmp_path / 'not there'))
  with pytest.raises(FileNotFoundError):
    (tmp_path / 'not there').stat()
