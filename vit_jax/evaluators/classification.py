"""Accuracy and loss on a data set."""

import functools

import jax
import jax.numpy as jnp

from vit_jax import names, sharding
from vit_jax.data import pipeline
from vit_jax.objectives import classification


def build(
  predict,
  params,
  mesh,
  field,
  dataset,
  split,
  batch_size,
  preprocess,
  loss='softmax',
):
  """Returns the evaluator: (params) -> {'accuracy', 'loss'}, both floats.

  Args:
    predict: (params, images) -> (logits [B, C], features).
    params: tree of shapes or arrays, to check that the data fits the model.
    mesh: the device mesh.
    field: the config section, for errors.
    dataset: a name in `datasets.DATASETS`.
    split: the part of it to evaluate on.
    batch_size: B, over all devices. The last batch is padded and the padding
      masked, so that every example counts exactly once.
    preprocess: recipe, see `preprocess`.
    loss: 'softmax' or 'sigmoid', as of the objective.

  Raises:
    ValueError: on anything that does not exist or fit.
  """
  example_loss = names.lookup(classification.LOSSES, loss, f'{field}.loss')
  data = pipeline.EvalData(mesh, dataset, split, batch_size, preprocess, field)
  images = jax.ShapeDtypeStruct((1, *data.image_shape), jnp.uint8)
  try:
    logits, _ = jax.eval_shape(predict, params, images)
  except ValueError as error:
    raise ValueError(f'{field}: {error}') from error
  if logits.shape[-1] != data.num_classes:
    raise ValueError(
      f'{field}.dataset={dataset!r} has {data.num_classes} classes, but the '
      f'model {logits.shape[-1]}; evaluate on a set with the same classes.'
    )

  @functools.partial(jax.jit, out_shardings=sharding.replicated(mesh))
  def add(sums, params, batch):
    logits, _ = predict(params, batch['image'])
    targets = classification.one_hot(batch['label'], logits.shape[-1])
    values = {
      'accuracy': classification.top_1(logits, targets),
      'loss': example_loss(logits, targets),
    }
    return {
      name: sums[name] + jnp.vdot(value, batch['mask'])
      for name, value in values.items()
    }

  def evaluate(params):
    sums = {'accuracy': jnp.zeros(()), 'loss': jnp.zeros(())}
    for batch in data.batches():
      sums = add(sums, params, batch)
    return {
      name: float(value) / data.num_examples for name, value in sums.items()
    }

  return evaluate
