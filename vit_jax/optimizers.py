"""Learning rate schedules and update rules (paper, Section 4.1, Table 3)."""

import optax

from vit_jax import names


def build(
  total_steps,
  name='adam',
  lr=1e-3,
  decay='cosine',
  warmup_steps=0,
  weight_decay=0.0,
  clip_norm=None,
):
  """Returns (tx, learning_rate).

  The gradient is clipped, transformed by the rule, and applied as
    params <- params - learning_rate(t) (rule(gradient) + weight_decay params)
  where t counts from 0 and only kernels (the weights of dense and convolution
  layers) decay: not biases, norms, class token or position embeddings.

  Args:
    total_steps: number of updates T.
    name: 'adam' or 'sgd'.
    lr: the highest learning rate.
    decay: 'cosine', 'linear' or 'constant', see `DECAYS`.
    warmup_steps: the learning rate first rises linearly from 0 to lr over so
      many updates.
    weight_decay: decoupled (1711.05101), and scaled by the learning rate.
    clip_norm: gradients are scaled down to this global norm, if given.

  Returns:
    tx: an `optax.GradientTransformation`, state in float32.
    learning_rate: function from t to the learning rate of that update.

  Raises:
    ValueError: on an unknown name or a number out of range.
  """
  rule = names.lookup(OPTIMIZERS, name, 'config.optimizer.name')
  shape = names.lookup(DECAYS, decay, 'config.optimizer.decay')
  if total_steps and not 0 <= warmup_steps < total_steps:
    raise ValueError(
      f'config.optimizer.warmup_steps={warmup_steps} leaves nothing of '
      f'total_steps={total_steps}; use less.'
    )
  for field, value in dict(lr=lr, weight_decay=weight_decay).items():
    if value is None or value < 0:
      raise ValueError(
        f'config.optimizer.{field}={value} is not a number of 0 or more.'
      )
  if clip_norm is not None and clip_norm <= 0:
    raise ValueError(
      f'config.optimizer.clip_norm={clip_norm} is not positive; '
      'use inf for no clipping.'
    )
  learning_rate = optax.join_schedules(
    [
      optax.linear_schedule(0.0, lr, max(warmup_steps, 1)),
      shape(lr, max(total_steps - warmup_steps, 1)),
    ],
    [warmup_steps],
  )
  tx = optax.chain(
    optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(),
    rule(),
    optax.add_decayed_weights(
      weight_decay, mask=lambda params: names.mask(params, '(.*/)?kernel')
    )
    if weight_decay
    else optax.identity(),
    optax.scale_by_learning_rate(learning_rate),
  )
  return tx, learning_rate


def resolve_steps(total_steps, total_epochs, num_examples, batch_size):
  """Returns the number of updates of a run.

  Args:
    total_steps: the number itself, or None.
    total_epochs: passes over the training set, or None; exactly one is given.
    num_examples: the length of an epoch.
    batch_size: B.

  Raises:
    ValueError: if both or neither are given, or either is negative, or the
      epochs are less than one step.
  """
  given = [x for x in (total_steps, total_epochs) if x is not None]
  if len(given) != 1 or not (
    isinstance(total_steps, int | None)
    and isinstance(total_epochs, int | float | None)
    and given[0] >= 0
  ):
    raise ValueError(
      f'config.total_steps={total_steps!r} and config.total_epochs='
      f'{total_epochs!r}: set exactly one of them, to a number of 0 or more, '
      'and the other to None.'
    )
  if total_steps is not None:
    return total_steps
  # The smallest share keeps 0.57 * 100 from being 56.
  steps = int(total_epochs * num_examples / batch_size + 1e-6)
  if total_epochs and not steps:
    raise ValueError(
      f'config.total_epochs={total_epochs} of {num_examples} examples is less '
      f'than one step of config.train.batch_size={batch_size}; use at least '
      f'{batch_size / num_examples:.3g}, or 0 to only evaluate.'
    )
  return steps


def _adam():
  """Adam(0.9, 0.999), epsilon 1e-8, with bias correction (1412.6980)."""
  return optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8)


def _sgd():
  """Momentum: m <- 0.9 m + gradient, and the update is m."""
  return optax.trace(decay=0.9)


OPTIMIZERS = {'adam': _adam, 'sgd': _sgd}

# s of S updates after the warmup -> share of lr: (1 + cos(pi s / S)) / 2,
# 1 - s / S, and 1.
DECAYS = {
  'cosine': optax.cosine_decay_schedule,
  'linear': lambda lr, steps: optax.linear_schedule(lr, 0.0, steps),
  'constant': lambda lr, _: optax.constant_schedule(lr),
}
