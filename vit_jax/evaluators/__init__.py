"""Evaluators. Add one: a file with `build`, and its line in EVALUATORS.

An evaluator's `build(predict, params, mesh, field, class_names, ...)` opens its
data at once, so that mistakes show before training, and returns
`evaluate(params, is_stopped)`, which returns a dict of floats, or None if
`is_stopped()`, which it asks before each batch, said so.
"""

from collections.abc import Callable
from typing import NamedTuple

from vit_jax import names
from vit_jax.evaluators import classification

EVALUATORS = {'classification': classification.build}


class Evaluation(NamedTuple):
  """An evaluator of a run.

  Attributes:
    name: what the user calls it; its metrics are 'name/...'.
    every: number of steps between two evaluations; 0 for only at the end.
    evaluate: (params, is_stopped) -> dict of floats, or None.
  """

  name: str
  every: int
  evaluate: Callable

  def due(self, step, total_steps):
    """Returns whether it runs after update `step`; always after the last."""
    return step == total_steps or (self.every and step % self.every == 0)


def build(predict, params, mesh, rows, class_names=None):
  """Returns the list of a run's Evaluations.

  Args:
    predict: see `objectives.Objective`.
    params: tree of arrays or `jax.ShapeDtypeStruct`, as `predict` takes them.
    mesh: the device mesh.
    rows: dict from name to that evaluator's dict: 'kind', 'every', and the
      arguments of its build function.
    class_names: of the training set's classes, if they are known: sets of
      images of one's own are read with them.

  Raises:
    ValueError: on a kind or argument that does not exist, or data that is not
      there or does not fit the model.
  """
  return [
    _build(predict, params, mesh, class_names, name, **row)
    for name, row in rows.items()
  ]


def _build(
  predict,
  params,
  mesh,
  class_names,
  name,
  /,
  kind='classification',
  every=0,
  **kwargs,
):
  field = f'config.evals.{name}'
  if not isinstance(every, int) or every < 0:
    raise ValueError(
      f'{field}.every={every!r} is not a number of steps; use 0 for only at '
      'the end.'
    )
  if name == 'train':
    raise ValueError(f'{field}: metrics of training have that name already.')
  evaluator = names.lookup(EVALUATORS, kind, f'{field}.kind')
  evaluate = names.call(
    evaluator,
    kwargs,
    field,
    predict=predict,
    params=params,
    mesh=mesh,
    field=field,
    class_names=class_names,
  )
  return Evaluation(name, every, evaluate)
