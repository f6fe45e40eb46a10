"""Objectives. Add one: a file with `build`, and its line in OBJECTIVES."""

from collections.abc import Callable
from typing import NamedTuple

from vit_jax import names
from vit_jax.objectives import classification

OBJECTIVES = {'classification': classification.build}


class Objective(NamedTuple):
  """What is learned, as three pure functions.

  A batch is a dict with 'image', [B, height, width, channels] uint8, and what
  else its data set has, such as 'label'.

  Attributes:
    init: (rng, images) -> params, for images of the batch's shape.
    loss: (params, batch, rng) -> (scalar loss, dict of scalar statistics), both
      means over the batch. The rng drives dropout and the like.
    predict: (params, images) -> (logits, features), deterministic.
  """

  init: Callable
  loss: Callable
  predict: Callable


def build(model, name, **kwargs):
  """Returns the named Objective for a model.

  Raises:
    ValueError: on a name or argument that does not exist.
  """
  objective = names.lookup(OBJECTIVES, name, 'config.objective.name')
  return Objective(
    *names.call(objective, kwargs, 'config.objective', model=model)
  )
