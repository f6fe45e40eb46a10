"""The devices that JAX finds, and why it does not find those it should."""

import os
import re

from vit_jax.doctor import installation, machine
from vit_jax.doctor.finding import FAIL, OK, WARN, Finding, last_line

# What a user may call it -> what JAX_PLATFORMS may call it.
PLATFORMS = {
  'tpu': {'tpu'},
  'gpu': {'gpu', 'cuda', 'rocm'},
  'cpu': {'cpu'},
}


def judge(result, log, require='', num_devices=None, timeout=120):
  """Returns Findings on what `device_probe` has printed.

  Args:
    result: what it printed, as `Probe.result` returns it.
    log: its log.
    require: 'tpu', 'gpu' or 'cpu', where the run has to be; '' anywhere.
    num_devices: how many there should be, over all processes, or None.
    timeout: seconds after which the probe was ended.
  """
  if result is None:
    return [_hangs(timeout)]
  if 'error' in result:
    reason = result['error'] + _logged(log)
    remedy = _missing(require, log)[1] if require else _platforms()
    return [Finding('devices', FAIL, f'JAX did not start: {reason}', remedy)]
  found = f'{result["devices"]} x {result["kind"]} ({result["backend"]})'
  if result['local'] != result['devices']:
    found += f', {result["local"]} of them here'
  if result['memory']:
    found += f', {result["memory"] / 2**30:.1f} GiB each'
  if require and result['backend'] != require:
    reason, remedy = _missing(require, log)
    return [
      Finding('devices', FAIL, f'{found}, not on a {require}: {reason}', remedy)
    ]
  return [
    _count(found, result, num_devices),
    _product(result),
    *_unused(result),
  ]


def _count(found, result, num_devices):
  if num_devices in (None, result['devices']):
    return Finding('devices', OK, found)
  return Finding(
    'devices',
    FAIL,
    f'{found}, and not {num_devices}',
    'look at --num_devices, at JAX_PLATFORMS, TPU_VISIBLE_CHIPS and '
    'CUDA_VISIBLE_DEVICES, and whether the machine has what was ordered; '
    'processes that are yet to be connected see only their own GPUs.',
  )


def _product(result):
  if not result['wrong']:
    return Finding('arithmetic', OK, 'a matrix product is right on each device')
  return Finding(
    'arithmetic',
    FAIL,
    f'a matrix product is wrong on devices {result["wrong"]}',
    'the device is broken, or its driver: have the machine replaced.',
  )


def _unused(result):
  """Warns of an accelerator that nothing uses."""
  if result['backend'] != 'cpu' or 'cpu' in _asked_for():
    return []
  for platform, present in (
    ('tpu', machine.tpu_files()),
    ('gpu', machine.nvidia_driver()),
  ):
    if present:
      reason, remedy = _missing(platform, '')
      return [Finding(platform, WARN, f'is here, but unused: {reason}', remedy)]
  return []


def _hangs(timeout):
  return Finding(
    'devices',
    FAIL,
    f'JAX did not start within {timeout} s',
    'if another process holds the TPU, end it (a line above names it); of a '
    'slice of several machines all have to start at the same time: '
    'launch/tpu_vm.sh doctor; else give it longer with --timeout.',
  )


def _asked_for():
  value = os.environ.get('JAX_PLATFORMS', '')
  return {name for name in re.split(r'[,\s]+', value.lower()) if name}


def _platforms():
  value = os.environ.get('JAX_PLATFORMS')
  if value is None:
    return 'see the lines above; JAX_PLATFORMS=cpu runs without accelerator.'
  return f'JAX_PLATFORMS={value} is set; unset JAX_PLATFORMS lets JAX choose.'


def _logged(log):
  """Returns what JAX's log says of an accelerator that did not start."""
  pattern = r'(?:Unable to initialize backend|failed to initialize).*'
  found = [
    line
    for line in re.findall(pattern, log, re.IGNORECASE)
    if not re.search(r"backend '(rocm|interpreter|METAL)'", line)
  ]
  return f' ({last_line(found[-1])})' if found else ''


def _missing(platform, log):
  """Returns (why JAX does not use a platform, what to do)."""
  asked = _asked_for()
  if asked and not asked & PLATFORMS[platform]:
    value = os.environ['JAX_PLATFORMS']
    return (
      f'JAX_PLATFORMS={value} hides it',
      'unset JAX_PLATFORMS',
    )
  if platform == 'cpu':
    return 'JAX prefers accelerators', 'export JAX_PLATFORMS=cpu'
  explain = _missing_tpu if platform == 'tpu' else _missing_gpu
  reason, remedy = explain()
  return (reason or 'it did not start') + _logged(log), remedy


def _missing_tpu():
  if not machine.tpu_files():
    return (
      'this machine has none (no /dev/accel*, no /dev/vfio/*)',
      'run it on a TPU VM: launch/README.md.',
    )
  if installation.installed('libtpu') is None:
    return 'libtpu is not installed', "pip install -e '.[tpu]'"
  return '', 'end the process that holds it, if a line above names one.'


def _missing_gpu():
  if not machine.nvidia_driver():
    return (
      'this machine has no NVIDIA driver',
      'install the driver, or run it on another machine.',
    )
  plugins = ('jax-cuda12-plugin', 'jax-cuda13-plugin')
  if not any(installation.installed(plugin) for plugin in plugins):
    return "JAX's CUDA plugin is not installed", "pip install -e '.[cuda]'"
  return '', 'nvidia-smi shows whether the driver works, and who holds it.'
