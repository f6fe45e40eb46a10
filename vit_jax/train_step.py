"""The state of training, and the step that changes it: pure functions."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class TrainState(NamedTuple):
  """All that a step changes.

  Attributes:
    step: int32 scalar, the number of completed updates.
    params: the model's parameters, float32.
    opt_state: of optax.
    average: the Polyak average of params, or None if it is not kept.
  """

  step: jax.Array
  params: Any
  opt_state: Any
  average: Any

  @property
  def weights(self):
    """What to evaluate: the average if it is kept, else params."""
    return self.params if self.average is None else self.average


def init_state(objective, tx, image_shape, rng, ema_decay=0.0):
  """Returns the TrainState before the first update.

  Args:
    objective: an `objectives.Objective`.
    tx: an `optax.GradientTransformation`.
    image_shape: (height, width, channels).
    rng: a key.
    ema_decay: see `make_train_step`.
  """
  params = objective.init(rng, jnp.zeros((1, *image_shape), jnp.uint8))
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=tx.init(params),
    # A copy: the step donates both, and a buffer can be given away once.
    average=jax.tree.map(jnp.copy, params) if ema_decay else None,
  )


def make_train_step(objective, tx, accum_steps=1, ema_decay=0.0):
  """Returns train_step(state, batch, rng) -> (state, stats), a pure function.

  Args:
    objective: an `objectives.Objective`.
    tx: an `optax.GradientTransformation`.
    accum_steps: A, in how many parts the batch goes through the model. The
      result is that of the whole batch, in 1/A of the memory for activations.
    ema_decay: d of the Polyak average, a <- d a + (1 - d) params; 0 keeps none.

  Raises:
    ValueError: on a number out of range.
  """
  if accum_steps < 1:
    raise ValueError(f'config.step.accum_steps={accum_steps} is less than 1.')
  if not 0 <= ema_decay < 1:
    raise ValueError(f'config.step.ema_decay={ema_decay} is not in [0, 1).')
  gradient = jax.grad(objective.loss, has_aux=True)

  def accumulated_gradient(params, batch, rng):
    """Returns (gradients, stats), the means over all parts of the batch."""
    if accum_steps == 1:
      return gradient(params, batch, rng)

    # [B, ...] -> [A, B / A, ...]. Part a is every A-th example from a on, so
    # that each device keeps the examples it has.
    parts = jax.tree.map(
      lambda x: x.reshape(-1, accum_steps, *x.shape[1:]).swapaxes(0, 1), batch
    )

    def add(total, part_and_number):
      part, number = part_and_number
      result = gradient(params, part, jax.random.fold_in(rng, number))
      return jax.tree.map(jnp.add, total, result), None

    zeros = jax.tree.map(
      lambda x: jnp.zeros(x.shape, x.dtype),
      jax.eval_shape(
        gradient, params, jax.tree.map(lambda x: x[0], parts), rng
      ),
    )
    total, _ = jax.lax.scan(add, zeros, (parts, jnp.arange(accum_steps)))
    return jax.tree.map(lambda x: x / accum_steps, total)

  def train_step(state, batch, rng):
    # Randomness depends on the step alone, so a resumed run repeats it.
    rng = jax.random.fold_in(rng, state.step)
    grads, stats = accumulated_gradient(state.params, batch, rng)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    average = state.average
    if ema_decay:
      average = optax.incremental_update(params, average, 1 - ema_decay)
    # A finite update keeps finite parameters finite: see `metrics.Writer`.
    stats = stats | {
      'gradient_norm': optax.tree.norm(grads),
      'update_norm': optax.tree.norm(updates),
    }
    return TrainState(state.step + 1, params, opt_state, average), stats

  return train_step
