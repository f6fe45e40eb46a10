"""The doctor: each failure is simulated once, some as real processes."""

import json
import os
import pathlib
import re
import subprocess
import sys
import time
from importlib import metadata

import process_runner
import pytest

from vit_jax.doctor import __main__ as doctor
from vit_jax.doctor import devices, installation, machine, workdir
from vit_jax.doctor.finding import FAIL, OK, WARN
from vit_jax.doctor.probe import Probe

ROOT = pathlib.Path(__file__).parent.parent


def run(*args, **environment):
  """Runs the command, as `process_runner.run` does."""
  return process_runner.run(
    '-m', 'vit_jax.doctor', *args, timeout=200, **environment
  )


def test_a_good_machine(tmp_path):
  report = tmp_path / 'report.json'
  folder = tmp_path / 'run'
  folder.mkdir()
  result = run(
    '--require=cpu', '--num_devices=3', f'--workdir={folder}',
    f'--json={report}', devices=3,
  )  # fmt: skip
  assert result.returncode == 0, result.stdout + result.stderr
  assert f'ok    python       {sys.version.split()[0]}' in result.stdout
  assert 'ok    devices      3 x cpu (cpu)' in result.stdout
  findings = {row['name']: row for row in json.loads(report.read_text())}
  assert findings['arithmetic']['status'] == OK
  assert f'jax {metadata.version("jax")}' in findings['packages']['text']
  assert 'read and deleted' in findings['workdir']['text']
  assert not any(folder.iterdir())


def test_a_tpu_is_required_where_the_cpu_is_asked_for():
  result = run('--require=tpu', '--num_devices=8', JAX_PLATFORMS='cpu')
  assert result.returncode == 1
  assert 'FAIL  devices      1 x cpu (cpu), not on a tpu:' in result.stdout
  assert 'JAX_PLATFORMS=cpu hides it' in result.stdout
  assert '-> unset JAX_PLATFORMS' in result.stdout
  assert '1 FAIL' in result.stdout
  # Without --workdir it is about the folder that runs have by default.
  assert re.search(
    rf'\n(ok  |warn)  workdir      {workdir.DEFAULT} can be', result.stdout
  )
  assert 'ok    gcs          access to Google Cloud Storage was' in (
    result.stdout
  )


def test_the_default_folder_is_that_of_a_run():
  source = (ROOT / 'vit_jax' / 'main.py').read_text()
  assert f"f'{workdir.DEFAULT}/{{name}}'" in source


@pytest.mark.parametrize('folder', ['gs://bucket/run', 'here', ''])
def test_a_store_that_was_not_asked_is_no_secret(folder, monkeypatch):
  class Answer:
    def __init__(self, *args):
      asked.append(args)

    def result(self, timeout):
      return CPU | {'seconds': 0.1, 'free': 30e9}, ''

  asked = []
  monkeypatch.setattr(doctor, 'Probe', Answer)
  found = {f.name: f for f in doctor.examine(folder=folder)}
  assert asked[-1][-1] == (folder or 'runs')
  assert found['workdir'].status == OK
  if folder.startswith('gs://'):
    assert 'gcs' not in found
  else:
    assert '--workdir=gs://BUCKET/run checks it' in found['gcs'].text


def test_a_platform_that_does_not_exist():
  result = run(JAX_PLATFORMS='tup')
  assert result.returncode == 1
  assert 'FAIL  devices      JAX did not start:' in result.stdout
  assert 'unset JAX_PLATFORMS lets JAX choose' in ' '.join(
    result.stdout.split()
  )


def test_a_workdir_that_is_a_file(tmp_path):
  file = tmp_path / 'file'
  file.touch()
  result = run(f'--workdir={file}')
  assert result.returncode == 1
  # Whatever the width of the terminal.
  assert f'{file}isafile' in ''.join(result.stdout.split())


def test_the_machines_of_a_cluster_have_to_be_checked_together():
  # The environment of the second of two tasks under Slurm; the first is absent.
  result = run(
    '--timeout=16', SLURM_JOB_ID='1', SLURM_STEP_NODELIST='localhost',
    SLURM_PROCID='1', SLURM_LOCALID='0', SLURM_NTASKS='2',
    SLURM_STEP_NUM_NODES='2',
  )  # fmt: skip
  assert result.returncode == 1
  text = ' '.join(result.stdout.split())
  assert 'FAIL devices JAX did not start: it ended with exit code' in text
  assert 'did not find each other within 8 s' in text


def test_a_report_that_cannot_be_written_is_said_first(tmp_path, monkeypatch):
  monkeypatch.setattr(doctor, 'examine', None)
  path = tmp_path / 'missing' / 'x'
  with pytest.raises(SystemExit) as error:
    doctor.main([f'--json={path}'])
  assert str(error.value) == (
    f'Error: --json={path}: No such file or directory; give a file in a folder '
    'that exists and can be written.'
  )

  def stopped(*args):
    assert not (tmp_path / 'x').exists()
    raise KeyboardInterrupt

  monkeypatch.setattr(doctor, 'examine', stopped)
  with pytest.raises(KeyboardInterrupt):
    doctor.main([f'--json={tmp_path}/x'])


def test_its_start_is_quick():
  code = (
    'import sys, time\nstart = time.process_time()\n'
    'from vit_jax.doctor import __main__\n'
    'print(time.process_time() - start)\n'
    "assert not {'jax', 'numpy', 'etils'} & set(sys.modules)"
  )
  result = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert float(result.stdout) < 1


def test_devices_that_do_not_start(tmp_path, monkeypatch):
  # As a TPU that another process holds.
  (tmp_path / 'hang.py').write_text('import time\ntime.sleep(60)\n')
  monkeypatch.chdir(tmp_path)
  start = time.monotonic()
  result, log = Probe('hang').result(timeout=0.5)
  assert time.monotonic() - start < 5
  (finding,) = devices.judge(result, log, 'tpu', timeout=0.5)
  assert finding.status == FAIL
  assert 'did not start within 0.5 s' in finding.text


@pytest.mark.parametrize(
  'code', ['import os; os.abort()', 'print("no json")', 'raise SystemExit(3)']
)
def test_a_probe_that_dies(code, tmp_path, monkeypatch):
  (tmp_path / 'dies.py').write_text(code)
  monkeypatch.chdir(tmp_path)
  result, _ = Probe('dies').result(timeout=20)
  assert 'it ended with exit code' in result['error']


CPU = dict(backend='cpu', devices=1, local=1, kind='cpu', memory=None, wrong=[])
TPU = dict(
  backend='tpu', devices=128, local=8, kind='TPU v3', memory=2**34, wrong=[]
)


@pytest.fixture
def bare(tmp_path, monkeypatch):
  """A machine without anything: no accelerator, no plugins, no JAX_PLATFORMS.

  Returns its root: proc/, dev/, and nvidia-smi may be put there.
  """
  for name in ('proc', 'dev/vfio', 'bin'):
    (tmp_path / name).mkdir(parents=True)
  monkeypatch.setattr(machine, 'PROC', tmp_path / 'proc')
  monkeypatch.setattr(machine, 'DEV', str(tmp_path / 'dev'))
  monkeypatch.setattr(machine, 'LOCK_FILE', tmp_path / 'libtpu_lockfile')
  monkeypatch.setattr(machine, 'CGROUP', tmp_path)
  monkeypatch.setenv('PATH', f'{tmp_path}/bin')
  monkeypatch.delenv('JAX_PLATFORMS', raising=False)
  install(monkeypatch)
  return tmp_path


def install(monkeypatch, **versions):
  """Makes these the only packages that are installed."""
  versions = {name.replace('_', '-'): v for name, v in versions.items()}
  monkeypatch.setattr(installation, 'installed', versions.get)


def add_tpu(root, holder=None):
  """Gives the machine a TPU chip, which a process may have open."""
  device = root / 'dev/accel0'
  device.touch()
  descriptors = root / 'proc' / str(holder or 1) / 'fd'
  descriptors.mkdir(parents=True)
  (descriptors / '0').symlink_to(device if holder else '/dev/null')
  (descriptors.parent / 'comm').write_text('python3\n')


def add_gpu(root, driver='570.86.15', users=''):
  (root / 'proc/driver/nvidia').mkdir(parents=True)
  (root / 'proc/driver/nvidia/version').write_text(
    'NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  '
    f'{driver}  Release Build\nGCC version: gcc 12.3.0\n'
  )
  smi = root / 'bin/nvidia-smi'
  smi.write_text(f'#!/bin/sh\necho "{users}"\n')
  smi.chmod(0o755)


def test_devices_that_are_as_they_should_be():
  found, product = devices.judge(TPU, '', 'tpu', num_devices=128)
  assert found.status == product.status == OK
  assert found.text == '128 x TPU v3 (tpu), 8 of them here, 16.0 GiB each'


def test_another_number_of_devices():
  finding, _ = devices.judge(TPU, '', 'tpu', num_devices=256)
  assert finding.status == FAIL
  assert 'and not 256' in finding.text


def test_a_device_that_computes_wrongly():
  _, finding = devices.judge(TPU | {'wrong': [5]}, '', 'tpu')
  assert finding.status == FAIL
  assert 'wrong on devices [5]' in finding.text


def test_why_there_is_no_tpu(bare, monkeypatch):
  def judged(log=''):
    (finding,) = devices.judge(CPU, log, 'tpu')
    assert finding.status == FAIL
    return f'{finding.text} -> {finding.remedy}'

  assert 'this machine has none' in judged()
  add_tpu(bare)
  assert "libtpu is not installed -> pip install -e '.[tpu]'" in judged()
  install(monkeypatch, libtpu='0.0.42')
  log = "INFO:jax:Unable to initialize backend 'tpu': ABORTED: in use by 17\n"
  assert "backend 'tpu': ABORTED: in use by 17" in judged(log)
  monkeypatch.setenv('JAX_PLATFORMS', 'cuda,cpu')
  assert 'JAX_PLATFORMS=cuda,cpu hides it' in judged()


def test_why_there_is_no_gpu(bare, monkeypatch):
  def judged():
    (finding,) = devices.judge(CPU, '', 'gpu')
    return f'{finding.text} -> {finding.remedy}'

  assert 'no NVIDIA driver' in judged()
  add_gpu(bare)
  assert "pip install -e '.[cuda]'" in judged()
  install(monkeypatch, jax_cuda12_plugin='0.10.2')
  assert 'nvidia-smi' in judged()


def test_an_accelerator_that_nothing_uses_is_no_secret(bare, monkeypatch):
  assert len(devices.judge(CPU, '')) == 2
  add_gpu(bare)
  *_, finding = devices.judge(CPU, '')
  assert finding.status == WARN
  assert 'is here, but unused' in finding.text
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')  # as was asked for
  assert len(devices.judge(CPU, '')) == 2


def test_who_holds_the_tpu(bare, monkeypatch):
  assert not machine.check_tpu('tpu')
  add_tpu(bare, holder=4711)
  (finding,) = machine.check_tpu('tpu')
  assert finding.status == FAIL
  assert finding.text == 'held by python3 (pid 4711)'
  assert 'kill 4711' in finding.remedy
  (finding,) = machine.check_tpu('')
  assert finding.status == WARN


def test_a_tpu_that_is_free(bare, monkeypatch):
  add_tpu(bare)
  (finding,) = machine.check_tpu('tpu')
  assert finding.status == OK
  machine.LOCK_FILE.touch()
  monkeypatch.setattr(os, 'access', lambda path, mode: False)
  (finding,) = machine.check_tpu('tpu')
  assert finding.status == WARN
  assert finding.remedy == f'sudo rm {machine.LOCK_FILE}'


def test_our_own_open_device_is_found():
  with open('/dev/null') as file:
    holders, _ = machine._holders(
      [os.readlink(f'/proc/self/fd/{file.fileno()}')]
    )
  assert os.getpid() in dict(holders)


def test_drivers_and_plugins(bare, monkeypatch):
  assert not machine.check_nvidia('')
  install(monkeypatch, jax_cuda13_plugin='0.10.2')
  (finding,) = machine.check_nvidia('gpu')
  assert finding.status == FAIL
  assert 'no NVIDIA driver' in finding.text
  add_gpu(bare, users='99, python, 70000 MiB')
  (finding,) = machine.check_nvidia('')
  assert finding.status == FAIL
  assert finding.text == 'driver 570.86.15 is too old for CUDA 13'
  assert '580 or later' in finding.remedy
  install(monkeypatch, jax_cuda12_plugin='0.10.2')
  good, used = machine.check_nvidia('')
  assert (good.status, good.text) == (OK, 'driver 570.86.15, CUDA 12')
  assert used.status == WARN
  assert '99, python, 70000 MiB' in used.text


@pytest.mark.parametrize(
  ('available', 'limit', 'used', 'status'),
  [
    (8, 'max', 0, OK), (2, 'max', 0, WARN), (0, 'max', 0, FAIL),
    (8, 3 * 2**30, 0, WARN), (8, 6 * 2**30, 0, OK),
    (8, 6 * 2**30, 4 * 2**30, WARN), (8, 6 * 2**30, 6 * 2**30, FAIL),
  ],
)  # fmt: skip
def test_memory(bare, available, limit, used, status):
  (bare / 'proc/meminfo').write_text(
    f'MemTotal: {2**24} kB\nMemAvailable: {available * 2**20} kB\n'
  )
  (bare / 'memory.max').write_text(f'{limit}\n')
  # A GiB of files that were read, and can be forgotten.
  (bare / 'memory.current').write_text(f'{used + 2**30}\n')
  (bare / 'memory.stat').write_text(f'anon {used}\ninactive_file {2**30}\n')
  assert machine.check_memory().status == status


def test_what_macos_does_not_tell(bare, monkeypatch):
  monkeypatch.delattr(os, 'sched_getaffinity', raising=False)
  found = machine.check_memory()
  assert (found.status, found.text) == (OK, 'not known here')
  assert str(os.cpu_count()) in machine.check_cores(0).text
  assert not machine.check_tpu('tpu')


def test_cores(monkeypatch):
  monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: range(16))
  assert machine.check_cores(0).status == OK
  assert machine.check_cores(4).status == OK
  finding = machine.check_cores(8)
  assert finding.status == WARN
  assert '32 cores' in finding.remedy


def test_open_files(monkeypatch):
  monkeypatch.setattr(machine.resource, 'getrlimit', lambda _: (1024, 2**20))
  finding = machine.check_open_files()
  assert finding.status == WARN
  assert 'ulimit -n 4096 before the run (at most 1,048,576)' in finding.remedy
  monkeypatch.setattr(machine.resource, 'getrlimit', lambda _: (2**20, 2**20))
  assert machine.check_open_files().status == OK


@pytest.fixture
def versions(monkeypatch):
  """Versions that take the place of the installed ones; None is missing."""
  replaced = {}
  real = metadata.version

  def version(name):
    result = replaced.get(name, ...)
    if result is None:
      raise metadata.PackageNotFoundError(name)
    return real(name) if result is ... else result

  monkeypatch.setattr(metadata, 'version', version)
  return replaced


def problems(**options):
  """Returns the findings of the installation that are not ok, by name."""
  findings = installation.check(**options)
  return {f.name: f for f in findings if f.status != OK}


def test_the_packages_of_this_environment_are_right():
  assert not problems()


def test_packages_outside_of_the_tested_range(versions):
  versions |= {'flax': '0.13.1', 'optax': None, 'array_record': None}
  found = problems()
  assert found['flax'].status == found['optax'].status == FAIL
  # Range and remedy are setup.py's.
  (line,) = [
    line for line in (ROOT / 'setup.py').read_text().splitlines()
    if "'flax" in line
  ]  # fmt: skip
  for bound in line.split("'")[1].removeprefix('flax').split(','):
    assert bound in found['flax'].text
    assert bound in found['flax'].remedy
  assert found['optax'].text == 'not installed'
  assert found['array_record'].status == WARN
  assert found['array_record'].remedy == "pip install -e '.[data]'"


def test_a_run_in_a_bucket_needs_more(versions):
  versions['gcsfs'] = '2024.1.0'
  assert not problems()
  found = problems(remote=True)['gcsfs']
  assert found.status == FAIL
  assert '2024.1.0 is outside of the tested range' in found.text
  assert 'paths at gs:// need it' in found.text
  versions['gcsfs'] = None
  assert problems(remote=True)['gcsfs'].remedy == "pip install -e '.[gcs]'"


def test_what_does_not_go_with_jax(versions):
  versions['jaxlib'] = '0.4.1'
  versions['libtpu'] = '0.0.2'
  versions['jax-cuda12-plugin'] = metadata.version('jax')
  versions['jax-cuda12-pjrt'] = '0.4.1'
  found = problems()
  assert set(found) == {'jaxlib', 'libtpu', 'jax-cuda12-pjrt'}
  jax = metadata.version('jax')
  assert f'for jax {jax}, which asks for jaxlib' in found['jaxlib'].text
  assert found['libtpu'].remedy == f"pip install 'jax[tpu]=={jax}'"


def test_another_python(monkeypatch):
  monkeypatch.setattr(
    installation.platform, 'python_version', lambda: '3.10.12'
  )
  assert '3.10.12 is not >=3.11' in problems()['python'].text


def test_vit_jax_is_not_installed(monkeypatch):
  def missing(name):
    raise metadata.PackageNotFoundError(name)

  monkeypatch.setattr(metadata, 'metadata', missing)
  (finding,) = installation.check()
  assert finding.status == FAIL
  assert finding.remedy == 'pip install -e .'


@pytest.mark.parametrize(
  ('free', 'status'), [(30e9, OK), (5e9, WARN), (0.5e9, FAIL)]
)
def test_room_for_checkpoints(free, status):
  finding = workdir.judge('runs/a', {'seconds': None, 'free': free})
  assert finding.status == status


def test_a_store_that_does_not_answer():
  finding = workdir.judge('gs://bucket/run', None, timeout=120)
  assert finding.status == FAIL
  assert 'gs://bucket/run did not answer within 120 s' in finding.text
  assert 'gcloud auth application-default login' in finding.remedy


def test_a_store_that_refuses():
  error = 'access is denied (no rights); ask for the role'
  finding = workdir.judge('gs://bucket/run', {'error': error})
  assert finding.text == 'gs://bucket/run: access is denied (no rights)'
  assert finding.remedy == 'ask for the role'


def test_what_is_wrong_decides_the_exit_code(monkeypatch, capsys):
  monkeypatch.setattr(doctor, 'examine', lambda *args: iter(findings))
  findings = [machine.Finding('a', WARN, 'text', 'remedy')]
  assert doctor.main([]) == 0
  findings += [machine.Finding('b', FAIL, 'text', 'remedy')]
  assert doctor.main([]) == 1
  assert '1 FAIL, 1 warn, 2 lines in all.' in capsys.readouterr().out
