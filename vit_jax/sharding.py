"""Where every array lives: the device mesh, the layout of a state, batches.

The mesh has two axes. The batch is split over `data`; parameters are copied to
all devices ('replicate') or split over `data` as well ('fsdp'), and a table of
regular expressions can place them over `data` and `model` by name.
"""

import contextlib
import math
import re

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from vit_jax import names

BATCH_AXIS = 'data'
# Splitting a small array costs more in latency than it saves in memory.
_FSDP_MIN_SIZE = 2**16


def make_mesh(data=-1, model=1):
  """Returns a mesh over all devices with axes 'data' and 'model'.

  Args:
    data: number of devices along `data`; -1 takes all that are left.
    model: number of devices along `model`; -1 likewise.

  Raises:
    ValueError: if the product is not the number of devices.
  """
  sizes, count = [data, model], jax.device_count()
  if sizes.count(-1) == 1:
    rest = math.prod(size for size in sizes if size != -1)
    sizes = [count // rest if rest > 0 else 0, rest]
    if data != -1:
      sizes.reverse()
  if min(sizes) < 1 or math.prod(sizes) != count:
    raise ValueError(
      f'config.mesh: data={data} times model={model} is not the number of '
      f'devices, {count}; set one of them to -1 and the other to a divisor '
      f'of {count}.'
    )
  # Auto axes: XLA propagates shardings. Linen modules do not run under
  # Explicit axes, the default.
  return jax.make_mesh(
    tuple(sizes), (BATCH_AXIS, 'model'), axis_types=(AxisType.Auto,) * 2
  )


def layout(shapes, mesh, params='replicate'):
  """Returns the tree of shardings of a state.

  Args:
    shapes: tree of arrays or `jax.ShapeDtypeStruct`, such as a TrainState.
      Optimizer state and averages are laid out by the same rules as the
      parameters they belong to, since they share their shapes and names.
    mesh: the device mesh.
    params: 'replicate'; 'fsdp', which splits every large array over `data`
      along its largest dimension that divides; or a table of (regex, axes)
      where the first regex found in an array's name (like
      'params/blocks/mlp_in/kernel', and 'opt_state/1/mu/blocks/mlp_in/kernel'
      of the optimizer: leave the beginning open) gives one mesh axis or None a
      dimension. Arrays that no regex names are replicated.

  Raises:
    ValueError: on an unknown layout, or axes that do not fit an array.
  """
  if isinstance(params, str):
    rule = names.lookup(LAYOUTS, params, 'config.sharding.params')
  else:
    try:
      table = [(re.compile(pattern), tuple(axes)) for pattern, axes in params]
    except (ValueError, TypeError, re.error) as error:
      raise ValueError(
        f'config.sharding.params={params!r} is no table ({error}); give '
        "rows of (regex, axes), such as ('mlp_in/kernel', (None, 'model'))."
      ) from None

    def rule(name, shape, mesh):
      return _by_table(name, shape, mesh, table)

  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: NamedSharding(
      mesh, rule(names.join(path), leaf.shape, mesh)
    ),
    shapes,
  )


def _replicate(name, shape, mesh):
  del name, shape, mesh
  return PartitionSpec()


def _fsdp(name, shape, mesh):
  del name
  count = mesh.shape[BATCH_AXIS]
  divisible = [i for i, size in enumerate(shape) if size % count == 0]
  if math.prod(shape) < _FSDP_MIN_SIZE or not divisible:
    return PartitionSpec()
  largest = max(divisible, key=lambda i: shape[i])
  return PartitionSpec(*(None,) * largest, BATCH_AXIS)


def _by_table(name, shape, mesh, table):
  for pattern, axes in table:
    if not pattern.search(name):
      continue
    fits = len(axes) <= len(shape) and all(
      axis is None or (axis in mesh.shape and size % mesh.shape[axis] == 0)
      for size, axis in zip(shape, axes, strict=False)
    )
    if not fits:
      raise ValueError(
        f'config.sharding.params: {pattern.pattern!r} gives {name}, of shape '
        f'{shape}, the axes {axes}; give at most {len(shape)} of None and '
        f'{dict(mesh.shape)}, each of which divides its dimension.'
      )
    return PartitionSpec(*axes)
  return PartitionSpec()


LAYOUTS = {'replicate': _replicate, 'fsdp': _fsdp}


def batch_sharding(mesh):
  """Returns the sharding of a batch: first dimension over `data`."""
  return NamedSharding(mesh, PartitionSpec(BATCH_AXIS))


def replicated(mesh):
  """Returns the sharding of an array that every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def check_batch_size(batch_size, mesh, field, num_parts=1):
  """Raises ValueError unless `num_parts` equal parts divide over `data`."""
  multiple = mesh.shape[BATCH_AXIS] * num_parts
  is_number = isinstance(batch_size, int) and batch_size > 0
  if not is_number or batch_size % multiple:
    parts = f' in {num_parts} accumulation steps' if num_parts > 1 else ''
    raise ValueError(
      f'{field}={batch_size!r} does not divide over {mesh.shape[BATCH_AXIS]} '
      f'devices{parts}; use a multiple of {multiple}.'
    )


def local_rows(mesh, batch_size):
  """Returns which rows of a global batch this process feeds: int array."""
  slices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
  rows = {i for (rows,) in slices.values() for i in range(batch_size)[rows]}
  return np.array(sorted(rows))


def global_batch(batch, mesh):
  """Returns global arrays on the mesh from this process's rows of each."""
  return jax.make_array_from_process_local_data(batch_sharding(mesh), batch)


def sum_over_processes(number):
  """Returns the sum of a number that each process has of its own."""
  if jax.process_count() == 1:
    return number
  return int(multihost_utils.process_allgather(np.array(number)).sum())


@contextlib.contextmanager
def activations(mesh):
  """Within it, models keep activations split over the batch only."""
  with jax.set_mesh(mesh), nn.logical_axis_rules((('batch', BATCH_AXIS),)):
    yield
