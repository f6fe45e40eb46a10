"""Fits weights to another model: new head, other grid, class token or none.

Every change is asked for and reported; what is left over is an error.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.weights.report import Line

# What changes a model's function, but no parameter's shape.
_MUST_AGREE = (
  'position_embedding', 'position_embedding_at', 'norm_after_pool', 'gelu',
  'norm_epsilon', 'axial', 'version', 'num_heads',
)  # fmt: skip
# What may be reset though a model has it not.
OPTIONAL = ('head/.*', 'pre_logits/.*', 'attention_pool/.*', 'class_token')
_TABLES = r'(blocks/)?position_embedding'
_AXES = r'(blocks/)?position_embedding_(row|column)'
_PREFIX = r'(blocks/)?position_embedding_prefix'


def adapt(params, old, model, initial, grid, reset=(), resize='linear'):
  """Returns flat parameters for `model`, and the report.

  Args:
    params: dict from name to array, of the old model.
    old: (module, (rows, columns)) that they belong to.
    model: the module that they are to fit.
    initial: dict from name to array or `jax.ShapeDtypeStruct`, its parameters
      before training.
    grid: (rows, columns) of its patches.
    reset: regular expressions of names to leave as they start in `model`, and
      not to take over; what `model` lacks of them is dropped.
    resize: 'linear' (corner-aligned, as the published fine-tunings did) or
      'cubic' (antialiased).

  Returns:
    dict from name to array, and a list of report.Line. Where lines are errors,
    see `report.check`.

  Raises:
    ValueError: if the models differ in more than parameters, or the embeddings
      cannot be resized.
  """
  old_model, old_grid = old
  _check_agree(old_model, model)
  _check_reset(reset, {*params, *initial})
  lines, result = [], {}

  def is_reset(name):
    return any(re.fullmatch(pattern, name) for pattern in reset)

  for name, start in initial.items():
    shape = tuple(start.shape)
    if is_reset(name):
      result[name] = start
      theirs = name if name in params else ''
      lines.append(Line('reset', theirs, name, str(shape)))
      continue
    if name not in params:
      lines.append(Line('missing', '', name, f'{shape}{_advice(name)}'))
      continue
    array = params[name]
    # Two grids may have as many patches: shapes do not tell.
    if re.fullmatch(f'{_TABLES}|{_AXES}|{_PREFIX}', name):
      array = _fit_positions(
        name, array, old_model, model, old_grid, grid, resize
      )
    if array.shape != shape:
      note = f'{params[name].shape} there, {shape} here{_advice(name)}'
      lines.append(Line('misfit', name, name, note))
      continue
    status = 'loaded' if array is params[name] else 'resized'
    note = str(shape)
    if status == 'resized':
      note = f'{params[name].shape} -> {shape}, {resize}'
    result[name] = array
    lines.append(Line(status, name, name, note))
  for name in sorted(set(params) - set(initial)):
    status = 'reset' if is_reset(name) else 'extra'
    advice = '' if status == 'reset' else _advice(name)
    lines.append(Line(status, name, '', f'{params[name].shape}{advice}'))
  return result, lines


def _check_reset(reset, parameters):
  """Raises ValueError on a pattern that is none, or that names nothing."""
  for pattern in reset:
    try:
      matches = [name for name in parameters if re.fullmatch(pattern, name)]
    except (re.error, TypeError) as error:
      raise ValueError(
        f'reset={pattern!r} is no regular expression ({error}); write such as '
        "'head/.*'."
      ) from None
    if not matches and pattern not in OPTIONAL:
      raise ValueError(
        f'reset={pattern!r} matches no parameter; there are '
        f'{", ".join(sorted(parameters)[:5])}, ...'
      )


def _check_agree(old, new):
  if type(old) is not type(new):
    raise ValueError(
      f'The weights are of a {type(old).__name__}, but config.model.name makes '
      f'a {type(new).__name__}.'
    )
  for name in _MUST_AGREE:
    values = getattr(old, name, None), getattr(new, name, None)
    if values[0] != values[1]:
      raise ValueError(
        f'config.model.{name}={values[1]!r}, but the weights are of a model '
        f'with {values[0]!r}; set config.model.{name}={values[0]}.'
      )


def _advice(name):
  module = name.partition('/')[0]
  if module in ('head', 'pre_logits', 'attention_pool'):
    return f"; to start or drop it, reset '{module}/.*'"
  if name == 'class_token':
    return "; to start or drop it, reset 'class_token'"
  if 'relative_embedding' in name:
    return '; relative embeddings cannot be resized: use the old image size'
  return ''


def _fit_positions(name, array, old_model, model, old_grid, grid, resize):
  """Returns the array for another grid, with or without a class token."""
  grid, same_prefix = tuple(grid), old_model.class_token == model.class_token
  if grid == old_grid and same_prefix:
    return array
  if re.fullmatch(_AXES, name):
    axis = 0 if name.endswith('row') else 1
    if grid[axis] == old_grid[axis]:
      return array
    return RESIZES[resize](
      array[..., None, :], (grid[axis], 1)
    )[..., 0, :]  # fmt: skip
  count = old_model.num_prefix
  prefix, table = array[..., :count, :], array[..., count:, :]
  if model.class_token and not old_model.class_token:
    prefix = np.concatenate([np.zeros_like(array[..., :1, :]), prefix], axis=-2)
  if old_model.class_token and not model.class_token:
    prefix = prefix[..., 1:, :]
  if re.fullmatch(_PREFIX, name):
    return array if same_prefix else prefix
  lead, D = table.shape[:-2], table.shape[-1]
  if old_grid != grid:
    table = RESIZES[resize](table.reshape(*lead, *old_grid, D), grid)
    table = table.reshape(*lead, -1, D)
  return np.concatenate([prefix, table], axis=-2)


def resize_linear(x, grid):
  """Returns [..., rows, columns, D] interpolated to a grid, corners aligned.

  Source: the published fine-tunings, which used scipy.ndimage.zoom(order=1).

  Args:
    x: [..., old rows, old columns, D] float.
    grid: (rows, columns).
  """
  rows, columns = (
    _linear_weights(old, new)
    for old, new in zip(x.shape[-3:-1], grid, strict=True)
  )
  result = np.einsum('ij,...jkd,lk->...ild', rows, x, columns, optimize=True)
  return result.astype(x.dtype)


def _linear_weights(old, new):
  """Returns [new, old]: what each new position takes from the old ones."""
  positions = np.linspace(0, old - 1, new) if new > 1 else np.zeros(1)
  return np.maximum(0, 1 - abs(positions[:, None] - np.arange(old)))


def resize_cubic(x, grid):
  """Returns [..., rows, columns, D] interpolated as images are (Keys, -0.5).

  Pixels are squares, so corners are not aligned; antialiased where it shrinks.
  """
  shape = (*x.shape[:-3], *grid, x.shape[-1])
  return np.asarray(
    jax.image.resize(jnp.asarray(x), shape, 'cubic', antialias=True)
  )


RESIZES = {'linear': resize_linear, 'cubic': resize_cubic}
