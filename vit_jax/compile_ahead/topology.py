"""TPUs that are not here, and what their compiler says."""

import contextlib
import importlib.util
import os
import re
import sys

import jax
from jax.experimental import topologies

_FORMS = (
  'give a version and the chips along each axis: v2:4x4, v3:4x8 (64 cores), '
  'v4:2x2x4, v5e:4x8, v5p:2x2x4, v6e:4x4'
)
# Of libtpu: it is here to compile, so it should look for no TPU, leave alone
# the one that another process holds, and not complain.
_ENVIRONMENT = {
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_ACCELERATOR_TYPE': 'v3-8',
  'TPU_STDERR_LOG_LEVEL': '3',
  'TPU_MIN_LOG_LEVEL': '3',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}


def devices(topology, num_slices=1):
  """Returns the devices of a TPU topology, which can be compiled for.

  Args:
    topology: such as 'v3:4x8': a version, and the chips along each axis.
    num_slices: how many such slices there are, linked by a network.

  Raises:
    ValueError: if there is no such topology, or no compiler for it.
  """
  found = re.fullmatch(r'(v\d+[a-z]*):(\d+(?:x\d+){1,2})', topology)
  if not found:
    raise ValueError(f'--topology={topology} is no topology; {_FORMS}.')
  if num_slices < 1:
    raise ValueError(f'--num_slices={num_slices} is not at least 1.')
  if importlib.util.find_spec('libtpu') is None:
    raise ValueError(
      'libtpu, the TPU compiler, is not installed; run '
      f"`{os.path.relpath(sys.executable)} -m pip install 'jax[tpu]'`."
    )
  options = {'num_slices': num_slices} if num_slices > 1 else {}
  if found[1] == 'v4':
    # As real ones are used: a device is a chip, not one of its cores.
    options['chip_config_name'] = 'megacore'
  rows, columns, *_ = (int(size) for size in found[2].split('x'))
  if 1 in (rows, columns):  # less than a host
    options['chips_per_host_bounds'] = [min(rows, 2), min(columns, 2), 1]
  try:
    with _environment():
      return topologies.get_topology_desc(
        platform='tpu', topology_name=topology, **options
      ).devices
  except jax.errors.JaxRuntimeError as error:
    reason = str(error).splitlines()[0]
    raise ValueError(
      f'--topology={topology} is unknown to the compiler ({reason}); {_FORMS}.'
    ) from None


@contextlib.contextmanager
def _environment():
  """Tells libtpu, which asks when it is loaded; what the user set stays."""
  added = [name for name in _ENVIRONMENT if name not in os.environ]
  os.environ.update({name: _ENVIRONMENT[name] for name in added})
  try:
    yield
  finally:
    for name in added:
      del os.environ[name]


def needed_bytes(message):
  """Returns the bytes that a program needs that does not fit, else None.

  Args:
    message: of the compiler's error.
  """
  if 'RESOURCE_EXHAUSTED' not in message:
    return None
  number = r'([\d.]+)([KMGT]?)'
  found = re.search(rf'Used {number}i?B? of [\d.]+\w* hbm', message)
  found = found or re.search(rf'\({number}\) exceeds available HBM', message)
  if not found:
    return None
  return round(float(found[1]) * 1024 ** ' KMGT'.index(found[2] or ' '))
