"""Training: the whole algorithm."""

import jax

from vit_jax import (
  checkpoint,
  evaluators,
  experiment,
  flops,
  metrics,
  sharding,
  weights,
)
from vit_jax.data import pipeline


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
  config = experiment.checked(config)
  mesh = experiment.call(sharding.make_mesh, config, 'mesh')
  data = experiment.call(
    pipeline.TrainData, config, 'train', mesh=mesh, seed=config.seed
  )
  parts = experiment.build(config, mesh, data)
  shapes, layout, total_steps = parts.shapes, parts.layout, parts.total_steps
  predict, B = parts.objective.predict, config.train.batch_size
  # An average has the shapes of what it averages.
  evals = evaluators.build(
    predict, shapes.params, mesh, config.evals, data.class_names
  )
  peak_seconds = flops.step_seconds_at_peak(
    predict, shapes.params, (B, *data.image_shape), mesh
  )

  # Nothing is written before this line, and names, sizes and data of the config
  # are checked by then.
  checkpoints = experiment.call(
    checkpoint.Manager,
    config,
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
  rng = jax.random.key(config.seed)
  with checkpoints, sharding.activations(mesh):
    # Start from, in this order: this run's own checkpoint; another run's
    # weights; scratch.
    state, loaded = checkpoints.restore_latest(layout), ''
    if state is None:
      state = jax.jit(parts.init, out_shardings=layout)(rng)
      start = dict(
        state=state, model=parts.model, image_size=data.image_shape[:2]
      )
      state, loaded = experiment.call(
        weights.load_into, config, 'init', **start
      )
    first_step = int(state.step)
    with metrics.Writer(
      checkpoints.workdir, B, total_steps, first_step, peak_seconds
    ) as writer:
      headline = _headline(parts.model, state, mesh, data, total_steps)
      writer.say(headline + loaded)
      # The run may have been stopped before it did this.
      if first_step or not total_steps:
        _evaluate(evals, state, first_step, total_steps, writer)
      if first_step < total_steps:
        writer.say('Compiling the train step ...')
        train_step = parts.lower(mesh).compile()
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
            'learning_rate': parts.learning_rate(step - 1),
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


def _headline(model, state, mesh, data, total_steps):
  count = sum(x.size for x in jax.tree.leaves(state.params))
  device = mesh.devices.flat[0].device_kind
  start = f'from step {int(state.step):,} ' if state.step else ''
  return (
    f'{type(model).__name__} of {count:,} parameters, {data.summary()}, {start}'
    f'to step {total_steps:,} on {mesh.size} x {device}.'
  )
