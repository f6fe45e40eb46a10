"""What several processes must have in common, compared before they train."""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import pathlib
import re
import secrets
import socket
import time

import jax

from vit_jax import names, processes

_PACKAGES = (
  'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy', 'tensorflow',
  'libtpu', 'jax-cuda12-plugin', 'jax-cuda12-pjrt', 'jax-cuda13-plugin',
  'jax-cuda13-pjrt',
)  # fmt: skip
# What these variables say is part of the program that is compiled,
_VARIABLES = r'XLA_FLAGS|LIBTPU_INIT_ARGS|NVIDIA_TF32_OVERRIDE|JAX_\w+'
# but for those that say who a process is, and where it puts things.
_OWN = (
  r'JAX_\w*(CACHE|DUMP|LOG|PROFILE|TRACEBACK|COORDINAT|PROCESS)\w*|'
  r'JAX_\w+_(DIR|PATH|IDS?|INDEX|ADDRESS|PORT|DEVICES)'
)


def check_same(facts):
  """Returns if all processes have the same facts.

  Args:
    facts: dict of JSON values, such as `facts(...)`.

  Raises:
    ValueError: naming what differs, on which process.
    TimeoutError: if a process does not come; see `barrier`.
  """
  if not processes.several():
    return
  hosts = processes.gather('the hosts', socket.gethostname())
  every = [
    {k: json.dumps(v) for k, v in one.items()}
    for one in processes.gather('the comparison of all processes', facts)
  ]
  lines = []
  for name in sorted(set().union(*every)):
    values = [one.get(name, 'absent') for one in every]
    # What most have is what was meant; among equals, what process 0 has.
    meant = max(values, key=values.count)
    lines += [
      f'\n  {name}: {value} on process {number} ({hosts[number]}), {meant} on '
      f'process {values.index(meant)} ({hosts[values.index(meant)]})'
      + (' and others' if values.count(meant) > 1 else '')
      for number, value in enumerate(values)
      if value != meant
    ]
  if lines:
    raise ValueError(
      f'The {len(every)} processes do not agree:{"".join(lines)}\n'
      'Start all with the same command, code, packages, variables and devices.'
    )


def facts(config, workdir):
  """Returns what all processes must have in common, for `check_same`.

  Args:
    config: dict of the config.
    workdir: the run's folder as it was given.
  """
  found = names.flatten(config, 'config.')
  for name in _PACKAGES:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      found[f'version of {name}'] = importlib.metadata.version(name)
  for name, value in os.environ.items():
    if re.fullmatch(_VARIABLES, name) and not re.fullmatch(_OWN, name):
      words = [w for w in value.split() if not w.startswith('--xla_dump_')]
      found[f'variable {name}'] = ' '.join(words)
  kinds = sorted({device.device_kind for device in jax.local_devices()})
  devices = f'{jax.local_device_count()} x {", ".join(kinds)}'
  return found | {
    '--workdir': str(workdir),
    'code of vit_jax': _code(),
    'devices': devices,
  }


def check_shared(folder, timeout=60):
  """Returns if all processes see the same folder.

  Args:
    folder: an `epath.Path` that exists.
    timeout: seconds for what process 0 writes to be seen by all.

  Raises:
    ValueError: naming the processes that see another.
  """
  if not processes.several():
    return
  mark = processes.gather('the mark of the folder', secrets.token_hex(8))[0]
  path = folder / 'shared-mark'  # of one name: it may be left over
  if jax.process_index() == 0:
    path.write_text(mark)
  processes.barrier('the mark is written', timeout)
  deadline = time.monotonic() + timeout / 2  # network disks may be late
  while not (seen := _holds(path, mark)) and time.monotonic() < deadline:
    time.sleep(0.1)
  host = None if seen else socket.gethostname()
  blind = processes.gather('the mark is read', host, timeout)
  if jax.process_index() == 0:
    path.unlink()
  who = ', '.join(f'{i} ({host})' for i, host in enumerate(blind) if host)
  if who:
    raise ValueError(
      f'--workdir={folder} of process 0 is not that of process {who}; all '
      'processes must write to one folder: use gs://, or a shared disk.'
    )


def _holds(path, text):
  try:
    return path.read_text() == text
  except OSError:
    return False


def _code():
  """Returns a hash of this package's sources."""
  folder, digest = pathlib.Path(__file__).parents[1], hashlib.sha256()
  for path in sorted(folder.rglob('*.py')):
    digest.update(f'{path.relative_to(folder)}\n'.encode())
    digest.update(path.read_bytes())
  return digest.hexdigest()[:12]
