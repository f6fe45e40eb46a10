"""Training: the whole algorithm."""

import jax

from vit_jax import (
  checkpoint,
  evaluators,
  experiment,
  flops,
  goodput,
  layouts,
  memory,
  metrics,
  profiling,
  sharding,
  storage,
  watchdog,
  weights,
)
from vit_jax.data import described, pipeline
from vit_jax.processes import agreement


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
  clock = goodput.Clock()
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
  storage.check(workdir, '--workdir')
  workdir = storage.absolute(workdir)
  profiler = experiment.call(
    profiling.Profiler, config, 'profile', workdir=workdir
  )
  dog = experiment.call(watchdog.Watchdog, config, 'watchdog', workdir=workdir)
  peak_seconds = flops.step_seconds_at_peak(
    predict, shapes.params, (B, *data.image_shape), mesh
  )

  agreement.check_same({'examples to train on': data.num_examples})

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
  agreement.check_shared(workdir)
  if jax.process_index() == 0:  # before anything can run out of it
    print(_memory(config, parts, mesh), flush=True)
  rng = jax.random.key(config.seed)
  with (
    checkpoints,
    dog,
    profiler,
    memory.explain_exhaustion(config, data),
    sharding.activations(mesh),
  ):
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
      workdir, B, total_steps, first_step, peak_seconds
    ) as writer:
      if writer.goodput:
        clock.resume(writer.goodput, had_ended=first_step >= total_steps)
      writer.say(*checkpoints.news())
      headline = _headline(parts.model, state, mesh, data, total_steps)
      writer.say(headline + loaded)

      def save(step):
        writer.scalars(step, 'goodput', clock.scalars())
        with clock.spending('checkpoint'), dog.busy('saving'):
          writer.flush()
          checkpoints.save(step, state)

      def log(step):
        num_bad = sharding.sum_over_processes(data.num_bad)
        scalars = stats | {
          'learning_rate': parts.learning_rate(step - 1),
          'bad_examples': num_bad,
        }
        writer.say(*data.news(), *checkpoints.news())
        writer.scalars(step, 'train', scalars)
        data.check_bad(num_bad, (step - first_step) * B)

      def evaluate(step):
        """Returns whether it was asked to stop, before all was done."""
        for evaluation in evals:
          if not evaluation.due(step, total_steps):
            continue
          with (
            clock.spending('evaluation'),
            dog.busy(f'evaluation {evaluation.name}'),
            memory.explain_exhaustion(config, data, evaluation=evaluation.name),
          ):
            values = evaluation.evaluate(
              state.weights, checkpoints.stop_requested
            )
          if values is None:
            return True
          writer.scalars(step, 'goodput', clock.scalars())
          writer.scalars(step, evaluation.name, values)
        return False

      # The run may have been stopped before it did this.
      if (first_step or not total_steps) and evaluate(first_step):
        checkpoints.stop(first_step, writer.say)
      if first_step < total_steps:
        writer.say('Compiling the train step ...')
        with clock.spending('compile'), dog.busy('compiling'):
          train_step = parts.compile(mesh)
      batches = data.batches(first_step)
      completion, stats, done = goodput.Completion(), None, None
      clock.switch('step')
      for step in range(first_step + 1, total_steps + 1):
        dog.beat(step)
        writer.say(*profiler.before_step(stats))
        batch = _next_batch(batches, done, clock)
        state, stats = train_step(state, batch, rng)
        previous, done = done, completion.of(stats)
        if previous:
          # Two steps are under way at most: more would only hold batches.
          previous.result()
        dog.synced(step - 1)
        if step == first_step + 1:
          jax.block_until_ready(state)
          writer.start_clock(step)
        stop = checkpoints.stop_requested()
        save_now = stop or checkpoints.due(step, total_steps)
        # A state is only saved after its metrics were found finite.
        is_logged = save_now or step % config.log_every == 0
        if is_logged:
          log(step)
        if save_now:
          save(step)
        if not stop and evaluate(step):
          # What was evaluated is not lost: it is done again.
          stop = True
          if not is_logged:
            log(step)
          if not save_now:
            save(step)
        if stop:
          checkpoints.stop(step, writer.say)
      with clock.spending('checkpoint'), dog.busy('saving'):
        checkpoints.wait(writer.say)
      writer.say(
        *profiler.end(stats),
        f'Done after {total_steps:,} steps. {writer.results()}\n'
        f'{goodput.in_words(clock.scalars())}.\n'
        f'Everything is in {workdir}: checkpoints/, metrics.jsonl, '
        'config.json, tensorboard/',
      )
  return state


def dry_run(config):
  """Returns a text: where each array of a run's state lives, and what it takes.

  Args:
    config: as `train` takes it. Data whose size is known are not opened.

  Raises:
    ValueError: if the config cannot be run; it says which field to change.
  """
  config = experiment.checked(config)
  mesh = experiment.call(sharding.make_mesh, config, 'mesh')
  data = described.describe(mesh, config.seed, **config.train)
  parts = experiment.build(config, mesh, data)
  table = layouts.table(parts.shapes, parts.layout)
  return f'{table}\n{_memory(config, parts, mesh)}\n'


def _memory(config, parts, mesh):
  estimate = memory.estimate(parts, mesh, config.step.accum_steps)
  return memory.describe(estimate, mesh.devices.flat[0].device_kind)


def _next_batch(batches, done, clock):
  """Returns the next batch; counts how long the devices had nothing to do.

  Args:
    batches: iterator.
    done: future of when the step before was done; None before the first.
    clock: a `goodput.Clock`.
  """
  clock.switch('step')
  batch = next(batches)
  if done is None:
    clock.charge('input', since=0)
  elif done.done():
    clock.charge('input', since=done.result())
  return batch


def _headline(model, state, mesh, data, total_steps):
  count = sum(x.size for x in jax.tree.leaves(state.params))
  device = mesh.devices.flat[0].device_kind
  start = f'from step {int(state.step):,} ' if state.step else ''
  return (
    f'{type(model).__name__} of {count:,} parameters, {data.summary()}, {start}'
    f'to step {total_steps:,} on {mesh.size} x {device}.'
  )
