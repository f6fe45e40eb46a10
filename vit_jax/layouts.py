"""Where every array of a state lives: layouts by name, or by a table.

- 'replicate': whole on every device.
- 'fsdp': every large array is split over `data` along its largest dimension
  that divides. XLA gathers a layer's parameters when it needs them, and sums
  gradients to the parts that the devices keep (1910.02054, ZeRO 3).
- 'tensor': pairs of layers are split over `model`, the first by its outputs and
  the second by its inputs, so that what is between them never leaves a device
  (1909.08053): attention by heads, the MLP by its hidden units, a ResNet's unit
  by the channels between its last two convolutions.
- 'fsdp_tensor': 'tensor', and what is large is split over `data`, too.
"""

import functools
import math
import re

import jax
from jax.sharding import NamedSharding, PartitionSpec

from vit_jax import names

# Splitting a small array costs more in latency than it saves in memory.
_FSDP_MIN_SIZE = 2**16
# Name, dimension (from the last) that is split over `model`, what it counts.
_TENSOR = (
  (r'(qkv|query|key_value)/(kernel|bias)', -2, 'heads'),
  (r'out/kernel', -3, 'heads'),
  (r'mlp_in/(kernel|bias)', -1, 'hidden units'),
  (r'mlp_out/kernel', -2, 'hidden units'),
  (r'conv2/kernel', -1, 'channels'),
  (r'conv3/kernel', -2, 'channels'),
)


def layout(shapes, mesh, params='replicate'):
  """Returns the tree of shardings of a state.

  Args:
    shapes: tree of arrays or `jax.ShapeDtypeStruct`, such as a TrainState.
      Optimizer state and averages are laid out by the same rules as the
      parameters they belong to, since they share their shapes and names.
    mesh: the device mesh.
    params: a name in LAYOUTS; or a table of (regex, axes) where the first regex
      found in an array's name (like 'params/blocks/mlp_in/kernel', and
      'opt_state/1/mu/blocks/mlp_in/kernel' of the optimizer: leave the
      beginning open) says what each dimension is split over: a mesh axis, a
      tuple of several, or None. Arrays that no regex names are replicated.
      Tuples may be lists, as they are once they have been JSON.

  Raises:
    ValueError: on an unknown layout, or axes that do not fit an array.
  """
  if isinstance(params, str):
    rule = names.lookup(LAYOUTS, params, 'config.sharding.params')
  else:
    try:
      table = [
        (re.compile(pattern), tuple(map(_entry, axes)))
        for pattern, axes in params
      ]
    except (ValueError, TypeError, re.error) as error:
      raise ValueError(
        f'config.sharding.params={params!r} is no table ({error}); give '
        "rows of (regex, axes), such as ('mlp_in/kernel', (None, 'model'))."
      ) from None
    rule = functools.partial(_by_table, table=table)

  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: NamedSharding(
      mesh, _spec(rule(names.join(path), leaf.shape, mesh))
    ),
    shapes,
  )


def _entry(axis):
  """Returns what a row of a table says of a dimension, lists made tuples."""
  if axis is None or isinstance(axis, str):
    return axis
  if isinstance(axis, (list, tuple)) and all(isinstance(x, str) for x in axis):
    return tuple(axis)
  raise TypeError(f'{axis!r} is neither an axis, nor several, nor None')


def _spec(axes):
  while axes and axes[-1] is None:
    axes = axes[:-1]
  return PartitionSpec(*axes)


def _replicate(name, shape, mesh):
  del name, shape, mesh
  return ()


def _fsdp(name, shape, mesh):
  del name
  return _split_largest((None,) * len(shape), shape, mesh.shape['data'])


def _tensor(name, shape, mesh):
  parts = mesh.shape['model']
  for pattern, dimension, counted in _TENSOR:
    if not re.search(f'(^|/){pattern}$', name):
      continue
    if shape[dimension] % parts:
      raise ValueError(
        f'config.mesh.model={parts} does not divide the {shape[dimension]} '
        f'{counted} of {name}, which config.sharding.params splits over it; '
        f'use a divisor of {shape[dimension]}, or '
        "config.sharding.params='fsdp'."
      )
    before = len(shape) + dimension
    return (*(None,) * before, 'model', *(None,) * (-dimension - 1))
  return (None,) * len(shape)


def _fsdp_tensor(name, shape, mesh):
  return _split_largest(_tensor(name, shape, mesh), shape, mesh.shape['data'])


def _split_largest(axes, shape, parts):
  """Returns axes with `data` at the largest free dimension that divides."""
  free = [
    i for i, size in enumerate(shape) if axes[i] is None and size % parts == 0
  ]
  if math.prod(shape) < _FSDP_MIN_SIZE or not free:
    return axes
  largest = max(free, key=lambda i: shape[i])
  return (*axes[:largest], 'data', *axes[largest + 1 :])


def _by_table(name, shape, mesh, table):
  for pattern, axes in table:
    if not pattern.search(name):
      continue
    problem = _problem(axes, shape, mesh)
    if problem:
      raise ValueError(
        f'config.sharding.params: {pattern.pattern!r} gives {name}, of shape '
        f'{shape}, the axes {axes}, but {problem}.'
      )
    return axes
  return ()


def _problem(axes, shape, mesh):
  """Returns what keeps axes from splitting an array, '' if nothing does."""
  if len(axes) > len(shape):
    return f'it has {len(shape)} dimensions; give at most so many'
  split = [(axis,) if isinstance(axis, str) else axis or () for axis in axes]
  used = [axis for each in split for axis in each]
  unknown = sorted(set(used) - set(mesh.shape))
  if unknown:
    return f'there is no {unknown[0]!r}; use {", ".join(mesh.shape)} or None'
  twice = sorted({axis for axis in used if used.count(axis) > 1})
  if twice:
    return f'{twice[0]!r} can split only one dimension; name it once'
  for size, each in zip(shape, split, strict=False):
    parts = math.prod(mesh.shape[axis] for axis in each)
    if size % parts:
      return (
        f'{size} does not divide by {parts}; use None there, or another '
        'config.mesh'
      )
  return ''


LAYOUTS = {
  'replicate': _replicate,
  'fsdp': _fsdp,
  'tensor': _tensor,
  'fsdp_tensor': _fsdp_tensor,
}


def bytes_per_device(shapes, shardings):
  """Returns how many bytes of a tree of arrays each device holds.

  Args:
    shapes: tree of arrays or `jax.ShapeDtypeStruct`.
    shardings: tree of their shardings.
  """
  sizes = jax.tree.map(_bytes, shapes, shardings)
  return sum(jax.tree.leaves(sizes))


def table(shapes, shardings):
  """Returns a text: every parameter's sharding, and totals, in bytes a device.

  Args:
    shapes: TrainState of arrays or `jax.ShapeDtypeStruct`.
    shardings: TrainState of their shardings, see `layout`.
  """
  rows, totals = [], {}
  placed = jax.tree_util.tree_leaves_with_path(shapes)
  for (path, leaf), sharding in zip(
    placed, jax.tree.leaves(shardings), strict=True
  ):
    part, _, name = names.join(path).partition('/')
    held, whole = _bytes(leaf, sharding), leaf.size * leaf.dtype.itemsize
    before = totals.get(part, (0, 0))
    totals[part] = before[0] + held, before[1] + whole
    if part == 'params':
      axes = ', '.join(map(_axes, leaf.shape, _padded(leaf, sharding)))
      rows.append((name, f'[{axes}]', str(leaf.dtype), f'{held:,}'))
  rows = [('parameter', 'shape / axis', 'dtype', 'bytes per device'), *rows]
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = [
    '  '.join(
      [
        *(cell.ljust(w) for cell, w in zip(row[:3], widths, strict=False)),
        row[3].rjust(widths[3]),
      ]
    )
    for row in rows
  ]
  held, whole = map(sum, zip(*totals.values(), strict=True))
  for part, (part_held, part_whole) in [
    *totals.items(),
    ('all', (held, whole)),
  ]:
    lines.append(
      f'{part}: {part_held:,} bytes per device of {part_whole:,} in all'
    )
  return '\n'.join(lines)


def _bytes(leaf, sharding):
  return math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def _padded(leaf, sharding):
  return (*sharding.spec, *(None,) * (leaf.ndim - len(sharding.spec)))


def _axes(size, axis):
  if not axis:
    return f'{size}'
  return f'{size} / {axis if isinstance(axis, str) else " ".join(axis)}'
