"""What the models share: repeated blocks, the MLP, stochastic depth."""

import flax.linen as nn
import jax
import jax.numpy as jnp

DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}


def _is_convolution(primitive, *args, **params):
  del args, params
  return primitive is jax.lax.conv_general_dilated_p


# What the backward pass finds stored and does not compute again; from what
# takes the most memory to what computes the most.
REMAT_POLICIES = {
  'none': None,  # everything
  # The outputs of dense layers and convolutions, but not attention's.
  'dots': jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_with_no_batch_dims_saveable, _is_convolution
  ),
  'full': jax.checkpoint_policies.nothing_saveable,  # only a block's input
}
# The published JAX models have the tanh form, PyTorch's the exact one.
GELUS = {
  'tanh': lambda x: nn.gelu(x, approximate=True),
  'exact': lambda x: nn.gelu(x, approximate=False),
}


def check_sizes(least=1, **sizes):
  """Raises ValueError on a size of config.model that is less than `least`."""
  for name, size in sizes.items():
    if not isinstance(size, int):
      raise ValueError(f'config.model.{name}={size!r} is no whole number.')
    if size < least:
      raise ValueError(f'config.model.{name}={size} is not at least {least}.')


def check_rates(**rates):
  """Raises ValueError on a rate of config.model that is not in [0, 1)."""
  for name, rate in rates.items():
    if not 0 <= rate < 1:
      raise ValueError(f'config.model.{name}={rate} is not in [0, 1).')


def repeat(block, length, name, unroll=1, remat='none'):
  """Returns a function that applies `length` blocks under one scan.

  One block is compiled, whatever their number. Parameters (and what is sown)
  lead with the layer axis.

  Args:
    block: function (name) -> module, called as block(x, each, shared, train).
    length: number of blocks.
    name: of the module that holds the parameters.
    unroll: how many blocks one turn of the loop holds.
    remat: a name in REMAT_POLICIES.

  Returns:
    (x, each, shared, train) -> x, with `each` a tree of arrays that lead with
    the layer axis, one slice for each block, and `shared` the same for all.
  """

  def apply(x, each, shared, train):
    # The loop itself keeps XLA from merging the recomputation away; where it is
    # unrolled, remat has to.
    call = _rematerialized(remat, prevent_cse=unroll > 1)
    scan = nn.scan(
      lambda block, x, each, shared: (
        call(block, x, each, shared, train),
        None,
      ),
      variable_axes={'params': 0, 'intermediates': 0},
      split_rngs={'params': True, 'dropout': True},
      in_axes=(0, nn.broadcast),
      length=length,
      unroll=min(unroll, length),
    )
    return scan(block(name=name), x, each, shared)[0]

  return apply


def once(block, x, remat='none'):
  """Returns block(x), of a block that no scan repeats, see `repeat`."""
  call = _rematerialized(remat, prevent_cse=True)
  return call(block, x, None, None, False)


def _rematerialized(remat, prevent_cse):
  if remat == 'none':
    return _call
  return nn.remat(
    _call,
    policy=REMAT_POLICIES[remat],
    static_argnums=(4,),
    prevent_cse=prevent_cse,
  )


def _call(block, x, each, shared, train):
  return block(x, each, shared, train)


def mlp(x, mlp_dim, gelu, dropout, dtype):
  """Returns Dense(GELU(Dense(x))), as `mlp_in` and `mlp_out` of the caller.

  Args:
    x: [..., D].
    mlp_dim: size of the hidden layer.
    gelu: a name in GELUS.
    dropout: function of an array, applied after both layers.
    dtype: of the matrix products.
  """
  y = _dense(mlp_dim, dtype, 'mlp_in')(x)  # [..., mlp_dim]
  y = dropout(GELUS[gelu](y))
  return dropout(_dense(x.shape[-1], dtype, 'mlp_out')(y))


def _dense(size, dtype, name):
  return nn.Dense(
    size,
    kernel_init=nn.initializers.xavier_uniform(),
    bias_init=nn.initializers.normal(stddev=1e-6),
    dtype=dtype,
    name=name,
  )


def head(y, num_classes, head_bias, dtype):
  """Returns logits [B, C] float32 of [B, D]: the caller's `head`.

  Kernels start at 0, biases at `head_bias`. Without classes there is no such
  layer and no logits: None.
  """
  if not num_classes:
    return None
  logits = nn.Dense(
    num_classes,
    kernel_init=nn.initializers.zeros,
    bias_init=nn.initializers.constant(head_bias),
    dtype=dtype,
    name='head',
  )(y)
  return shard_batch(logits).astype(jnp.float32)


def stochastic_depth(x, rate, rng):
  """Returns x [B, ...] with a share of its examples set to 0 (1603.09382).

  The others are scaled by 1 / (1 - rate), which keeps the expectation.

  Args:
    x: the output of a residual branch.
    rate: that share, float32 scalar in [0, 1).
    rng: a key.
  """
  kept = jax.random.bernoulli(rng, 1 - rate, (len(x),) + (1,) * (x.ndim - 1))
  return jnp.where(kept, x / (1 - rate).astype(x.dtype), 0)


def shard_batch(x):
  """Keeps activations [B, ...] split over the batch only.

  Left alone, XLA may split them along the parameters' axes, which needs more
  memory than there is. A no-op outside `sharding.activations`.
  """
  return nn.with_logical_constraint(x, ('batch', *(None,) * (x.ndim - 1)))


def check_floating(images):
  """Raises ValueError if images are not floats."""
  if not jnp.issubdtype(images.dtype, jnp.floating):
    raise ValueError(
      f'images are {images.dtype}; the model takes floats in [-1, 1]: '
      '(x - 127.5) / 127.5.'
    )
