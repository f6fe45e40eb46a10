"""Training: the whole algorithm."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vit_jax import (
  checkpoint,
  evaluators,
  flops,
  metrics,
  models,
  names,
  objectives,
  optimizers,
  sharding,
  weights,
)
from vit_jax.data import pipeline

# The config's fields; each section is the keyword arguments of one function.
FIELDS = (
  'seed', 'log_every', 'total_steps', 'total_epochs', 'model', 'objective',
  'train', 'optimizer', 'step', 'init', 'mesh', 'sharding', 'checkpoint',
  'evals',
)  # fmt: skip


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


def train(config, workdir):
  """Trains, and evaluates, what a config says; the config alone differs.

  The run continues by itself from the last checkpoint in `workdir`, and then
  ends as if it had never stopped, to the bit. With total_steps=0 it only
  evaluates the initial state; a finished run is evaluated again.

  Args:
    config: ConfigDict with the fields of `configs/common.py`.
    workdir: folder of the run, made if it is missing.

  Returns:
    The final TrainState.

  Raises:
    ValueError: if the config cannot be run; it says which field to change.
    checkpoint.Preempted: after SIGTERM or Ctrl-C, once the state is saved.
    FloatingPointError: if a metric becomes nan or infinite.
  """
  config = config.copy_and_resolve_references()
  names.check_fields(config, 'config', FIELDS)
  if config.log_every < 1:
    raise ValueError(f'config.log_every={config.log_every} is not at least 1.')

  def call(function, section, **context):
    """Calls the function that a section of the config is the arguments of."""
    return names.call(function, config[section], f'config.{section}', **context)

  rng = jax.random.key(config.seed)
  mesh = call(sharding.make_mesh, 'mesh')
  data = call(pipeline.TrainData, 'train', mesh=mesh, seed=config.seed)
  _complete(config, data)
  model = models.build(**config.model)
  objective = objectives.build(model, **config.objective)
  B, A = config.train.batch_size, config.step.accum_steps
  total_steps = optimizers.resolve_steps(
    config.total_steps, config.total_epochs, data.num_examples, B
  )
  tx, learning_rate = call(
    optimizers.build, 'optimizer', total_steps=total_steps
  )
  train_step = call(make_train_step, 'step', objective=objective, tx=tx)
  sharding.check_batch_size(B, mesh, 'config.train.batch_size', A)

  # Decide where every array lives before any array exists.
  def init(rng):
    ema_decay = config.step.ema_decay
    return init_state(objective, tx, data.image_shape, rng, ema_decay)

  shapes = jax.eval_shape(init, rng)
  # An average has the shapes of what it averages.
  evals = evaluators.build(
    objective.predict, shapes.params, mesh, config.evals, data.class_names
  )
  layout = call(sharding.layout, 'sharding', shapes=shapes, mesh=mesh)
  train_step = jax.jit(
    train_step, donate_argnums=0, out_shardings=(layout, None)
  )

  peak_seconds = flops.step_seconds_at_peak(
    objective.predict, shapes.params, (B, *data.image_shape), mesh
  )

  # Nothing is written before this line, and names, sizes and data of the config
  # are checked by then.
  checkpoints = call(
    checkpoint.Manager,
    'checkpoint',
    workdir=workdir,
    config=config.to_dict(),
    shapes=shapes,
    inputs=dict(
      image_shape=data.image_shape,
      labels=data.class_names,
      num_examples=data.num_examples,
    ),
  )
  with checkpoints, sharding.activations(mesh):
    # Start from, in this order: this run's own checkpoint; another run's
    # weights; scratch.
    state, loaded = checkpoints.restore_latest(layout), ''
    if state is None:
      state = jax.jit(init, out_shardings=layout)(rng)
      start = dict(state=state, model=model, image_size=data.image_shape[:2])
      state, loaded = call(weights.load_into, 'init', **start)
    first_step = int(state.step)
    with metrics.Writer(
      checkpoints.workdir, B, total_steps, first_step, peak_seconds
    ) as writer:
      writer.say(_headline(model, state, mesh, data, total_steps) + loaded)
      # The run may have been stopped before it did this.
      if first_step or not total_steps:
        _evaluate(evals, state, first_step, total_steps, writer)
      if first_step < total_steps:
        writer.say('Compiling the train step ...')
      batches = data.batches(first_step)
      for step in range(first_step + 1, total_steps + 1):
        state, stats = train_step(state, next(batches), rng)
        if step == first_step + 1:
          jax.block_until_ready(state)
          writer.start_clock(step)
        stop = checkpoints.preempted  # asked once: it may change at any time
        save = stop or checkpoints.due(step, total_steps)
        # A state is only saved after its metrics were found finite.
        if save or step % config.log_every == 0:
          num_bad = sharding.sum_over_processes(data.num_bad)
          stats = stats | {
            'learning_rate': learning_rate(step - 1),
            'bad_examples': num_bad,
          }
          for line in data.news():
            writer.say(line)
          writer.scalars(step, 'train', stats)
          data.check_bad(num_bad, (step - first_step) * B)
        if save:
          checkpoints.save(step, state)
        if stop:
          checkpoints.stop(step)
        _evaluate(evals, state, step, total_steps, writer)
      checkpoints.wait()
      writer.say(
        f'Done after {total_steps:,} steps. {writer.results()}\n'
        f'Everything is in {checkpoints.workdir}: checkpoints/, metrics.jsonl, '
        'config.json, tensorboard/'
      )
  return state


def _evaluate(evals, state, step, total_steps, writer):
  for evaluation in evals:
    if evaluation.due(step, total_steps):
      writer.scalars(step, evaluation.name, evaluation.evaluate(state.weights))


def _complete(config, data):
  """Fills in what a config leaves to its training set, and checks the rest."""
  if config.model.num_classes is None:
    config.model.num_classes = data.num_classes
  if config.model.num_classes != data.num_classes:
    raise ValueError(
      f'config.model.num_classes={config.model.num_classes}, but config.train.'
      f'dataset={config.train.dataset!r} has {data.num_classes} classes; '
      f'set config.model.num_classes={data.num_classes}, or leave it out.'
    )
  for row in config.evals.values():
    if row.get('dataset') == '':
      row.dataset = config.train.dataset
  if data.many_labels and config.objective.get('loss') == 'softmax':
    raise ValueError(
      f'config.train.dataset={config.train.dataset!r} has any number of labels '
      'an image, and config.objective.loss=softmax needs one; set it, and '
      'loss of the evaluations, to sigmoid.'
    )


def _headline(model, state, mesh, data, total_steps):
  count = sum(x.size for x in jax.tree.leaves(state.params))
  device = mesh.devices.flat[0].device_kind
  start = f'from step {int(state.step):,} ' if state.step else ''
  return (
    f'{type(model).__name__} of {count:,} parameters, {data.summary()}, {start}'
    f'to step {total_steps:,} on {mesh.size} x {device}.'
  )
