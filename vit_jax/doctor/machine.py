"""What the machine has: who holds its accelerators, memory, cores, limits."""

import contextlib
import glob
import os
import pathlib
import re
import resource

from vit_jax.doctor import installation
from vit_jax.doctor.finding import FAIL, OK, WARN, Finding, output_of

# Paths that tests replace.
PROC = pathlib.Path('/proc')
DEV = '/dev'
CGROUP = pathlib.Path('/sys/fs/cgroup')
LOCK_FILE = pathlib.Path('/tmp/libtpu_lockfile')

# The oldest driver that JAX's CUDA plugins work with (JAX's installation page).
_MIN_DRIVER = {'12': 525, '13': 580}
# A data set in 1,024 shards, as TFDS makes ImageNet, keeps all of them open.
_MIN_OPEN_FILES = 4096
_MIN_CORES_A_DEVICE = 4
_IMAGES_A_CORE = 800  # a second, 500 x 375 JPEGs to 224: docs/data.md


def tpu_files():
  """Returns the device files of TPU chips."""
  return sorted(
    glob.glob(f'{DEV}/accel[0-9]*') + glob.glob(f'{DEV}/vfio/[0-9]*')
  )


def nvidia_driver():
  """Returns the version of the NVIDIA driver, such as '570.86.15', or ''."""
  try:
    text = (PROC / 'driver/nvidia/version').read_text()
  except OSError:
    return (
      output_of(
        'nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader'
      )
      or ''
    ).partition('\n')[0]
  found = re.search(r'Kernel Module.*?(\d+\.\d+(?:\.\d+)?)', text)
  return found[1] if found else ''


def check_tpu(require):
  """Returns Findings on who holds the TPU."""
  files = tpu_files()
  if not files:
    return []
  holders, unknown = _holders(files)
  if holders:
    names = ', '.join(f'{name} (pid {pid})' for pid, name in holders)
    pids = ' '.join(str(pid) for pid, _ in holders)
    return [
      Finding(
        'tpu',
        FAIL if require == 'tpu' else WARN,
        f'held by {names}',
        f'wait for it, or end it: kill {pids}. Only one process can use a TPU.',
      )
    ]
  if LOCK_FILE.exists() and not os.access(LOCK_FILE, os.W_OK):
    return [
      Finding(
        'tpu',
        WARN,
        f'{LOCK_FILE} belongs to another user, and nothing seems to use it',
        f'sudo rm {LOCK_FILE}',
      )
    ]
  text = f'{len(files)} device files, held by no process'
  if unknown:
    text += f' of yours (of {unknown} others only root can tell)'
  return [Finding('tpu', OK, text)]


def _holders(files):
  """Returns [(pid, name)] that have a file open, and how many are unknown."""
  holders, unknown = [], 0
  for process in PROC.glob('[0-9]*'):
    try:
      links = list((process / 'fd').iterdir())
    except PermissionError:
      unknown += 1
      continue
    except OSError:  # it has just ended
      continue
    targets = set()
    for link in links:
      with contextlib.suppress(OSError):  # closed since then
        targets.add(os.readlink(link))
    if targets & set(files):
      with contextlib.suppress(OSError):
        name = (process / 'comm').read_text().strip()
        holders.append((int(process.name), name))
  return sorted(holders), unknown


def check_nvidia(require):
  """Returns Findings on the driver, JAX's plugin, and who uses the GPUs."""
  driver = nvidia_driver()
  plugins = {
    cuda: installation.installed(f'jax-cuda{cuda}-plugin')
    for cuda in _MIN_DRIVER
  }
  plugins = {cuda: version for cuda, version in plugins.items() if version}
  worst = FAIL if require == 'gpu' else WARN
  if not driver:
    if not plugins:
      return []
    return [
      Finding(
        'nvidia',
        worst,
        "JAX's CUDA plugin is installed, but there is no NVIDIA driver",
        'install the driver, or run it on another machine.',
      )
    ]
  if not plugins:
    return [
      Finding(
        'nvidia',
        worst,
        f"driver {driver}, but JAX's CUDA plugin is not installed",
        "pip install -e '.[cuda]'",
      )
    ]
  for cuda in plugins:
    needed = _MIN_DRIVER[cuda]
    if int(driver.partition('.')[0]) < needed:
      return [
        Finding(
          'nvidia',
          FAIL,
          f'driver {driver} is too old for CUDA {cuda}',
          f'update the driver to {needed} or later.',
        )
      ]
  cuda = ', '.join(plugins)
  return [Finding('nvidia', OK, f'driver {driver}, CUDA {cuda}'), *_gpu_users()]


def _gpu_users():
  users = output_of(
    'nvidia-smi',
    '--query-compute-apps=pid,process_name,used_memory',
    '--format=csv,noheader',
  )
  if not users:
    return []
  return [
    Finding(
      'gpu memory',
      WARN,
      f'used by {"; ".join(users.splitlines())}',
      'JAX takes three quarters of the memory at its start: end those, or '
      'lower XLA_PYTHON_CLIENT_MEM_FRACTION.',
    )
  ]


def check_memory():
  """Returns a Finding on main memory, or what a container has of it."""
  try:
    text = (PROC / 'meminfo').read_text()
  except OSError:  # macOS
    return Finding('memory', OK, 'not known here')
  total, available = (
    int(re.search(rf'{name}:\s+(\d+) kB', text)[1]) * 1024
    for name in ('MemTotal', 'MemAvailable')
  )
  with contextlib.suppress(OSError, ValueError):  # no container; 'max'
    total = min(total, int((CGROUP / 'memory.max').read_text()))
    available = min(available, total - _memory_used())
  available = min(available, total)
  gib = 2**30
  found = f'{available / gib:.1f} of {total / gib:.1f} GiB are free'
  if available >= 4 * gib:
    return Finding('memory', OK, found)
  return Finding(
    'memory',
    WARN if available >= gib else FAIL,
    found,
    'the program alone takes 2 GiB, and a checkpoint passes through main '
    'memory: end other programs, or use a larger machine.',
  )


def _memory_used():
  """Returns the bytes that a container cannot do without."""
  used = int((CGROUP / 'memory.current').read_text())
  # Files that were read once are kept only as long as there is room.
  stat = (CGROUP / 'memory.stat').read_text()
  found = re.search(r'^inactive_file (\d+)$', stat, re.M)
  return used - int(found[1] if found else 0)


def check_cores(num_accelerators):
  """Returns a Finding on the cores that make the batches."""
  try:
    cores = len(os.sched_getaffinity(0))
  except AttributeError:  # macOS
    cores = os.cpu_count()
  found = f'{cores}, good for about {cores * _IMAGES_A_CORE:,} images a second'
  needed = _MIN_CORES_A_DEVICE * num_accelerators
  if cores >= needed:
    return Finding('cores', OK, found)
  return Finding(
    'cores',
    WARN,
    f'{found}, for {num_accelerators} accelerators',
    f'use a machine with {needed} cores or more: accelerators may wait for '
    'images. benchmarks/input_pipeline.py measures it.',
  )


def check_open_files():
  """Returns a Finding on the number of files that a process may open."""
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  if soft >= _MIN_OPEN_FILES or soft == resource.RLIM_INFINITY:
    return Finding('open files', OK, f'up to {soft:,}')
  allowed = 'unlimited' if hard == resource.RLIM_INFINITY else f'{hard:,}'
  return Finding(
    'open files',
    WARN,
    f'up to {soft:,}; a data set in 1,024 shards keeps all of them open',
    f'ulimit -n {_MIN_OPEN_FILES} before the run (at most {allowed}).',
  )
