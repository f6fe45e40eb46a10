"""From a config to the parts of a run: model, objective, state, step.

With `train`, this is all that sees the config; each of its sections is the
keyword arguments of one function.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from vit_jax import models, names, objectives, optimizers, sharding
from vit_jax.train_step import TrainState, init_state, make_train_step

# The config's fields; each section is the keyword arguments of one function.
FIELDS = (
  'seed', 'log_every', 'total_steps', 'total_epochs', 'model', 'objective',
  'train', 'optimizer', 'step', 'init', 'mesh', 'sharding', 'checkpoint',
  'profile', 'watchdog', 'evals',
)  # fmt: skip


class Parts(NamedTuple):
  """All that a config describes, built and checked; no array exists yet.

  Attributes:
    model: a linen module.
    objective: an `objectives.Objective`.
    learning_rate: function from the number of completed updates.
    total_steps: number of updates of the run.
    init: rng -> TrainState before the first update.
    shapes: TrainState of `jax.ShapeDtypeStruct`.
    layout: TrainState of shardings.
    batch: dict of `jax.ShapeDtypeStruct` with shardings: what a step takes.
    train_step: (state, batch, rng) -> (state, stats), jitted.
  """

  model: Any
  objective: objectives.Objective
  learning_rate: Callable
  total_steps: int
  init: Callable
  shapes: TrainState
  layout: TrainState
  batch: dict
  train_step: Callable

  def lower(self, mesh):
    """Returns the lowered train step: compile it, or ask what it would take."""
    state = sharding.placed(self.shapes, self.layout)
    rng = jax.eval_shape(lambda: jax.random.key(0))
    with sharding.activations(mesh):
      return self.train_step.lower(state, self.batch, rng)

  def compile(self, mesh):
    """Returns the compiled train step."""
    return self.lower(mesh).compile()


def checked(config):
  """Returns a copy of a config, with the fields of `configs/common.py`.

  Raises:
    ValueError: if a section is missing or unknown.
  """
  config = config.copy_and_resolve_references()
  names.check_fields(config, 'config', FIELDS)
  if config.log_every < 1:
    raise ValueError(f'config.log_every={config.log_every} is not at least 1.')
  return config


def call(function, config, section, /, **context):
  """Calls the function that a section of the config is the arguments of."""
  return names.call(function, config[section], f'config.{section}', **context)


def build(config, mesh, data):
  """Returns the Parts of a run.

  Args:
    config: as `checked` returns it. What it leaves to the training set is
      filled in.
    mesh: the device mesh, of devices that are here or elsewhere.
    data: the training set, a `pipeline.TrainData` or `described.Description`.

  Raises:
    ValueError: if the config cannot be run; it says which field to change.
  """
  _complete(config, data)
  model = models.build(**config.model)
  objective = objectives.build(model, **config.objective)
  B, A = config.train.batch_size, config.step.accum_steps
  total_steps = optimizers.resolve_steps(
    config.total_steps, config.total_epochs, data.num_examples, B
  )
  tx, learning_rate = call(
    optimizers.build, config, 'optimizer', total_steps=total_steps
  )
  step = call(make_train_step, config, 'step', objective=objective, tx=tx)
  sharding.check_batch_size(B, mesh, 'config.train.batch_size', A)

  def init(rng):
    ema_decay = config.step.ema_decay
    return init_state(objective, tx, data.image_shape, rng, ema_decay)

  # Decide where every array lives before any array exists.
  shapes = jax.eval_shape(init, jax.random.key(config.seed))
  layout = call(sharding.layout, config, 'sharding', shapes=shapes, mesh=mesh)
  batch = dict(
    image=((B, *data.image_shape), 'uint8'),
    label=((B, data.num_classes), 'uint8')
    if data.many_labels
    else ((B,), 'int32'),
  )
  return Parts(
    model=model,
    objective=objective,
    learning_rate=learning_rate,
    total_steps=total_steps,
    init=init,
    shapes=shapes,
    layout=layout,
    batch={
      name: jax.ShapeDtypeStruct(*x, sharding=sharding.batch_sharding(mesh))
      for name, x in batch.items()
    },
    train_step=jax.jit(
      step,
      donate_argnums=0,
      out_shardings=(layout, None),
      compiler_options=sharding.compiler_options(mesh),
    ),
  )


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
