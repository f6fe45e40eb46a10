"""The device mesh, and how a batch is split over it.

The mesh has three axes. A batch is split over `replica` and `data`. Parameters
are whole in every replica, and `layouts` says how they are split over `data`
and `model` within one. So only the sum of gradients crosses from one replica to
another.
"""

import contextlib
import math
import warnings

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vit_jax import layouts

# From the slowest links between devices to the fastest.
AXES = ('replica', 'data', 'model')
BATCH_AXES = ('replica', 'data')
LAYOUTS, layout = layouts.LAYOUTS, layouts.layout
# Products of activations with split parameters: XLA would rather go round the
# devices with parts of a parameter than gather it, and add up the result part
# by part. For ViT-H/14 on 16 TPU v5p with fsdp that takes 3,397 GB of memory
# traffic a step, gathering takes 780 GB. So from so many MiB only.
_TPU_OPTIONS = {'xla_jf_spmd_threshold_for_windowed_einsum_mib': '1000000'}


def make_mesh(replica=-1, data=-1, model=1, devices=None):
  """Returns a mesh with axes 'replica', 'data' and 'model'.

  On several TPU slices (or GPU hosts), whose links to each other are slow, the
  replicas are made of whole slices, or slices of whole replicas: what crosses
  the slow links is then the gradients' sum alone, unless `replica` is less than
  the number of slices.

  Args:
    replica: number of replicas; -1 is the number of slices, 1 on most machines.
    data: number of devices along `data`; -1 takes all that are left.
    model: number of devices along `model`; -1 likewise.
    devices: list of devices, such as those of a topology description; all of
      this run's by default.

  Raises:
    ValueError: if the product is not the number of devices, or the axes cannot
      be laid on the slices.
  """
  devices = jax.devices() if devices is None else list(devices)
  count = len(devices)
  num_slices = len({getattr(d, 'slice_index', 0) for d in devices})
  asked = f'replica={replica} times data={data} times model={model}'
  sizes = [num_slices if replica == -1 else replica, data, model]
  if sizes.count(-1) == 1:
    rest = math.prod(size for size in sizes if size != -1)
    sizes[sizes.index(-1)] = count // rest if rest > 0 else 0
  if min(sizes) < 1 or math.prod(sizes) != count:
    raise ValueError(
      f'config.mesh: {asked} is not the number of devices, {count}; set one of '
      f'data and model to -1 and the others to divisors of {count}.'
    )
  # A mesh whose sizes are not those of the physical torus is worth having, too.
  splits = dict(allow_split_physical_axes=True)
  if num_slices == 1:
    arranged = mesh_utils.create_device_mesh(sizes, devices, **splits)
  else:
    arranged = mesh_utils.create_hybrid_device_mesh(
      *_slice_sizes(sizes, num_slices, asked), devices, **splits
    )
  # Auto axes: XLA propagates shardings. Linen modules do not run under
  # Explicit axes, the default.
  return Mesh(arranged, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _slice_sizes(sizes, num_slices, asked):
  """Returns the sizes of the mesh within a slice, and across slices."""
  replica, data, model = sizes
  if replica % num_slices == 0:
    return (replica // num_slices, data, model), (num_slices, 1, 1)
  slices = num_slices // replica  # of each replica
  if replica * slices == num_slices and data % slices == 0:
    return (1, data // slices, model), (replica, slices, 1)
  raise ValueError(
    f'config.mesh: {asked} does not fit {num_slices} slices of '
    f'{math.prod(sizes) // num_slices} devices; leave replica at -1, one '
    'replica a slice, or use a multiple or divisor of the number of slices '
    'with `model` within a slice.'
  )


def batch_axes(mesh):
  """Returns the names of the axes over which a batch is split."""
  return tuple(axis for axis in BATCH_AXES if axis in mesh.shape)


def num_batch_parts(mesh):
  """Returns into how many parts a batch is split."""
  return math.prod(mesh.shape[axis] for axis in batch_axes(mesh))


def batch_sharding(mesh):
  """Returns the sharding of a batch: first dimension over its axes."""
  return NamedSharding(mesh, PartitionSpec(batch_axes(mesh)))


def replicated(mesh):
  """Returns the sharding of an array that every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def placed(shapes, layout):
  """Returns a tree of shapes with the shardings of a tree alike."""
  return jax.tree.map(lambda x, s: x.update(sharding=s), shapes, layout)


def compiler_options(mesh):
  """Returns the `compiler_options` of `jax.jit` that suit a mesh's devices.

  None is for the compiler's own choice; a warning tells if it had to be.
  """
  if not mesh.devices.flat[0].device_kind.startswith('TPU'):
    return None
  probe = jax.jit(
    lambda: jax.numpy.zeros(()),
    out_shardings=replicated(mesh),
    compiler_options=_TPU_OPTIONS,
  )
  try:
    probe.lower().compile()
  except jax.errors.JaxRuntimeError as error:
    # Another libtpu may not have it: better slow than not at all.
    if 'No such compile option' not in str(error):
      raise
    warnings.warn(
      f'This libtpu has no option {", ".join(_TPU_OPTIONS)}: with fsdp, steps '
      'move several times as much memory on TPU v4 and later. Install the '
      'jax[tpu] that setup.py names.',
      stacklevel=2,
    )
    return None
  return dict(_TPU_OPTIONS)


def check_batch_size(batch_size, mesh, field, num_parts=1):
  """Raises ValueError unless `num_parts` equal parts divide over devices."""
  multiple = num_batch_parts(mesh) * num_parts
  is_number = isinstance(batch_size, int) and batch_size > 0
  if not is_number or batch_size % multiple:
    parts = f' in {num_parts} accumulation steps' if num_parts > 1 else ''
    raise ValueError(
      f'{field}={batch_size!r} does not divide over {num_batch_parts(mesh)} '
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
  with (
    jax.set_mesh(mesh),
    nn.logical_axis_rules((('batch', batch_axes(mesh)),)),
  ):
    yield
