"""Position embeddings, added to the tokens (paper, Section 3.1 and D.4)."""

import flax.linen as nn


def none(_, tokens):
  """Returns the tokens as they are: a bag of patches."""
  return tokens


def learned_1d(module, tokens):
  """Adds one learned vector per position, in raster order, class token first.

  Args:
    module: the linen module that owns the parameter `position_embedding`,
      [1, N, D] float32.
    tokens: [B, N, D].

  Returns:
    [B, N, D] in the tokens' dtype.

  Raises:
    ValueError: if the parameter was made for another number of tokens.
  """
  _, N, D = tokens.shape
  if module.has_variable('params', 'position_embedding'):
    made_for = module.get_variable('params', 'position_embedding').shape[1]
    if made_for != N:
      raise ValueError(
        f'These parameters hold position embeddings for {made_for} tokens, but '
        f'the images make {N}; use images of the size that the parameters were '
        'trained with, or resize the embeddings.'
      )
  table = module.param(
    'position_embedding', nn.initializers.normal(stddev=0.02), (1, N, D)
  )
  return tokens + table.astype(tokens.dtype)


POSITION_EMBEDDINGS = {'none': none, '1d': learned_1d}
