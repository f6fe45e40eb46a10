"""Moves arrays between this project's names and another layout's.

A layout is a list of rows, each of which pairs a module of ours (or a parameter
that stands alone) with theirs. What a row does not say follows from the style:
how leaves are called, and how kernels lie in memory.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from vit_jax.weights.report import Line


class Row(NamedTuple):
  """A pair of modules.

  Attributes:
    ours: our module, such as 'blocks/mlp_in', or parameter.
    theirs: theirs, without the names of its leaves.
    layer: index into the leading axis of ours, if layers are stacked there.
    part: index into the axis of ours that stacks query, key and value.
    as_conv: whether a dense kernel is stored as a 1x1 convolution.
  """

  ours: str
  theirs: str
  layer: int | None = None
  part: int | None = None
  as_conv: bool = False


class Style(NamedTuple):
  """How a library stores a module.

  Attributes:
    separator: between the parts of a name.
    leaves: function (our leaf, whether of a norm) -> their leaf.
    to_theirs: function (leaf, array of ours, Row) -> array.
    to_ours: function (leaf, array of theirs, our shape, Row) -> array.
  """

  separator: str
  leaves: Callable
  to_theirs: Callable
  to_ours: Callable


def load(arrays, shapes, rows, style):
  """Returns our flat parameters, and the report.

  Args:
    arrays: dict from their name to array.
    shapes: dict from our name to shape.
    rows: list of Row; those of modules that the model lacks are ignored.
    style: Style.

  Returns:
    dict from our name to float32 array (garbage where the report has errors),
    and a list of report.Line.
  """
  params = {name: np.empty(shape, np.float32) for name, shape in shapes.items()}
  used, covered, lines = set(), set(), []
  for row, ours, theirs in _pairs(shapes, rows, style):
    used.add(theirs)
    covered.add(ours)
    target = params[ours][_index(row, ours)]
    leaf = ours.rpartition('/')[2]
    expected = style.to_theirs(leaf, target, row).shape
    if theirs not in arrays:
      lines.append(Line('missing', theirs, ours, str(expected)))
      continue
    array = arrays[theirs]
    # Old files keep vectors as [1, 1, 1, C].
    if _squeezed(array.shape) != _squeezed(expected):
      note = f'{array.shape} in the file, {expected} expected'
      lines.append(Line('misfit', theirs, ours, note))
      continue
    array = array.reshape(expected).astype(np.float32)
    target[...] = style.to_ours(leaf, array, target.shape, row)
    status = 'loaded' if ours == theirs else 'renamed'
    lines.append(Line(status, theirs, ours, str(array.shape)))
  for name in sorted(set(shapes) - covered):
    lines.append(Line('missing', '', name, str(shapes[name])))
  for name in sorted(set(arrays) - used):
    lines.append(Line('extra', name, '', str(arrays[name].shape)))
  return params, lines


def save(params, rows, style, kind):
  """Returns their arrays, dict from name to float32 array.

  Args:
    params: dict from our name to array.
    rows: list of Row.
    style: Style.
    kind: what their files are called, for the error.

  Raises:
    ValueError: if the layout has no place for some of the parameters.
  """
  arrays, covered = {}, set()
  shapes = {name: array.shape for name, array in params.items()}
  for row, ours, theirs in _pairs(shapes, rows, style):
    covered.add(ours)
    source = np.asarray(params[ours], np.float32)[_index(row, ours)]
    leaf = ours.rpartition('/')[2]
    arrays[theirs] = np.ascontiguousarray(style.to_theirs(leaf, source, row))
  missing = sorted(set(params) - covered)
  if missing:
    raise ValueError(
      f'{kind} files have no place for {", ".join(missing)}; save this model '
      'as Orbax: a path without suffix.'
    )
  return arrays


def _pairs(shapes, rows, style):
  """Yields (row, our name, their name) of all parameters that rows cover."""
  leaves = {}
  for name in shapes:
    module, _, leaf = name.rpartition('/')
    leaves.setdefault(module, []).append(leaf)
  for row in rows:
    if row.ours in shapes:
      yield row, row.ours, row.theirs
      continue
    is_norm = 'scale' in leaves.get(row.ours, ())
    for leaf in leaves.get(row.ours, ()):
      theirs = style.leaves(leaf, is_norm)
      name = f'{row.theirs}{style.separator}{theirs}'
      yield row, f'{row.ours}/{leaf}', name


def _index(row, ours):
  """Returns the index of a row's part into our parameter."""
  index = () if row.layer is None else (row.layer,)
  if row.part is None:
    return (*index, ...)
  # [D, 3, H, d] of a kernel, [3, H, d] of a bias.
  before = (slice(None),) if ours.endswith('/kernel') else ()
  return (*index, *before, row.part)


def _squeezed(shape):
  return tuple(size for size in shape if size != 1)


def _jax_to_theirs(leaf, array, row):
  del leaf
  return array[None, None] if row.as_conv and array.ndim == 2 else array


def _jax_to_ours(leaf, array, shape, row):
  del leaf, row
  return array.reshape(shape)


def _torch_to_theirs(leaf, array, row):
  """Dense kernels lie [out, in] there, convolutions [out, in, row, column]."""
  if leaf != 'kernel':
    is_vector = leaf in ('bias', 'scale')
    return array.reshape(-1) if is_vector else array
  if is_convolution(row):
    return array.transpose(3, 2, 0, 1)
  # The output projection of attention has inputs [H, d], all others [D].
  num_inputs = 2 if row.ours.endswith('/out') else 1
  inputs = int(np.prod(array.shape[:num_inputs]))
  array = array.reshape(inputs, -1).T
  return array[:, :, None, None] if row.as_conv else array


def _torch_to_ours(leaf, array, shape, row):
  if leaf == 'kernel' and is_convolution(row):
    return array.transpose(2, 3, 1, 0)
  if leaf == 'kernel':
    return array.reshape(len(array), -1).T.reshape(shape)
  return array.reshape(shape)


def is_convolution(row):
  """Returns whether the kernel of a row is a convolution's."""
  module = row.ours.rpartition('/')[2]
  return module.startswith('conv') or module == 'embedding'


JAX = Style('/', lambda leaf, _: leaf, _jax_to_theirs, _jax_to_ours)
TENSORFLOW = JAX._replace(
  leaves=lambda leaf, is_norm: (
    {'scale': 'gamma', 'bias': 'beta'}[leaf] if is_norm else leaf
  )
)
TORCH = Style(
  '.',
  lambda leaf, _: {'kernel': 'weight', 'scale': 'weight'}.get(leaf, leaf),
  _torch_to_theirs,
  _torch_to_ours,
)
