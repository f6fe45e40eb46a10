"""Position embeddings, added to the tokens (paper, Section 3.1 and D.4).

A kind is a function (module, grid, num_prefix, D) -> table [1, N, D] float32,
or None if nothing is added:

  module: the linen module that owns the parameters.
  grid: (rows, columns) of patches.
  num_prefix: number of tokens before the patches, such as the class token.
"""

import flax.linen as nn
import jax.numpy as jnp

_init = nn.initializers.normal(stddev=0.02)


def none(module, grid, num_prefix, D):
  """Adds nothing: a bag of patches, unless attention itself is relative."""
  del module, grid, num_prefix, D


def learned_1d(module, grid, num_prefix, D):
  """One learned vector per token, in raster order, prefix first.

  Raises:
    ValueError: if the parameter was made for another number of tokens.
  """
  N = num_prefix + grid[0] * grid[1]
  return learned(module, 'position_embedding', (1, N, D), axis=1)


def learned_2d(module, grid, num_prefix, D):
  """Two learned sets of size D / 2, of column and row, concatenated (D.4).

  The prefix has vectors of its own.

  Raises:
    ValueError: if D is odd, or the parameters were made for another grid.
  """
  if D % 2:
    raise ValueError(
      f'config.model.hidden_size={D} is odd; position_embedding=2d needs two '
      'halves.'
    )
  rows, columns = grid
  y = learned(module, 'position_embedding_row', (rows, D // 2), axis=0)
  x = learned(module, 'position_embedding_column', (columns, D // 2), axis=0)
  table = jnp.concatenate(
    [
      jnp.broadcast_to(x[None, :], (rows, columns, D // 2)),
      jnp.broadcast_to(y[:, None], (rows, columns, D // 2)),
    ],
    axis=-1,
  ).reshape(1, rows * columns, D)
  if not num_prefix:
    return table
  prefix = module.param('position_embedding_prefix', _init, (1, num_prefix, D))
  return jnp.concatenate([prefix, table], axis=1)


def sincos_2d(module, grid, num_prefix, D):
  """Fixed sines and cosines of column and row (MoCo v3, 2104.02057).

  Half of the channels belong to each axis, with D / 4 frequencies from 1 to
  1e-4; the prefix gets 0. Some published models have them.

  Raises:
    ValueError: if D does not divide by 4.
  """
  del module
  if D % 4 or D < 8:
    raise ValueError(
      f'config.model.hidden_size={D}: position_embedding=sincos2d needs a '
      'multiple of 4 from 8 on.'
    )
  rows, columns = grid
  frequencies = 1e4 ** -jnp.linspace(0.0, 1.0, D // 4)
  y, x = (
    jnp.outer(position.flatten(), frequencies)
    for position in jnp.mgrid[:rows, :columns]
  )
  table = jnp.concatenate([jnp.sin(x), jnp.cos(x), jnp.sin(y), jnp.cos(y)], -1)
  return jnp.pad(table, ((num_prefix, 0), (0, 0)))[None]


def learned(module, name, shape, axis):
  """Returns the parameter `name`, with an error if its length does not fit.

  Args:
    module: the linen module that owns it.
    name: of the parameter.
    shape: of the parameter.
    axis: the dimension that depends on the images' size.
  """
  if module.has_variable('params', name):
    made_for = module.get_variable('params', name).shape[axis]
    if made_for != shape[axis]:
      raise ValueError(
        f'These parameters hold {name} for {made_for} positions, but the '
        f'images make {shape[axis]}; use images of the size that the '
        'parameters were trained with, or resize the embeddings: '
        'weights.load(..., image_size=...).'
      )
  return module.param(name, _init, shape)


# 'relative' adds nothing to the tokens: see attention.MultiHeadSelfAttention.
POSITION_EMBEDDINGS = {
  'none': none,
  '1d': learned_1d,
  '2d': learned_2d,
  'relative': none,
  'sincos2d': sincos_2d,
}
POSITIONS_AT = {
  'stem': 'added once',
  'every_layer': 'each layer adds its own',
  'shared': 'every layer adds the same',
}
