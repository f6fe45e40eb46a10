"""What the doctor finds in devices and in the machine."""

import os

import pytest

from vit_jax.doctor import devices, installation, machine
from vit_jax.doctor.finding import FAIL, OK, WARN

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
