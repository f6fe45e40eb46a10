"""Accuracy and loss on a data set."""

import jax
import jax.numpy as jnp

from vit_jax import names, sharding
from vit_jax.data import pipeline
from vit_jax.objectives import classification
from vit_jax.processes import agreement


def build(
  predict,
  params,
  mesh,
  field,
  class_names,
  dataset,
  split,
  batch_size,
  preprocess,
  loss='softmax',
  skip_bad=False,
):
  """Returns the evaluator: (params) -> {'accuracy', 'loss'}, both floats.

  With `skip_bad` also 'bad_examples', how many did not count.

  Args:
    predict: (params, images) -> (logits [B, C], features).
    params: tree of shapes or arrays, to check that the data fits the model.
    mesh: the device mesh.
    field: the config section, for errors.
    class_names: of the training set's classes, or None.
    dataset: a name in `datasets.DATASETS`, or a path of one's own images.
    split: the part of it to evaluate on.
    batch_size: B, over all devices. The last batch is padded and the padding
      masked, so that every example counts exactly once.
    preprocess: recipe, see `preprocess`.
    loss: 'softmax' or 'sigmoid', as of the objective.
    skip_bad: whether examples that cannot be read are left out; otherwise they
      are errors.

  Raises:
    ValueError: on anything that does not exist or fit.
  """
  example_loss = names.lookup(classification.LOSSES, loss, f'{field}.loss')
  data = pipeline.EvalData(
    mesh, dataset, split, batch_size, preprocess, field, class_names, skip_bad
  )
  if class_names is None and data.names_are_sorted:
    raise ValueError(
      f'{field}.dataset={dataset!r} names its classes, but the training set '
      'does not, so that nothing says which is which; add a classes.txt with '
      "the training set's order, or use a manifest with numbers."
    )
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

  zeros, add = make_sums(predict, example_loss, mesh)
  # Another number of batches on one process would leave the others waiting.
  agreement.check_same({f'{field}: number of examples': data.num_examples})

  def evaluate(params, is_stopped=lambda: False):
    sums = zeros
    for batch in data.batches():
      if is_stopped():
        return None
      sums = add(sums, params, batch)
    count = float(sums['count'])
    if not count:
      raise ValueError(f'{field}: none of the examples counts; use others.')
    means = {name: float(sums[name]) / count for name in ('accuracy', 'loss')}
    if skip_bad:
      means['bad_examples'] = sharding.sum_over_processes(data.num_bad)
    return means

  return evaluate


def make_sums(predict, example_loss, mesh):
  """Returns what an evaluation does on the devices, a batch at a time.

  Args:
    predict: (params, images) -> (logits [B, C], features).
    example_loss: (logits [B, C], targets [B, C]) -> [B].
    mesh: the device mesh.

  Returns:
    (sums, add): a dict of zeros, and the jitted (sums, params, batch) -> sums,
    of a batch of 'image', 'label' and 'mask' [B], 0 for what does not count.
  """

  def add(sums, params, batch):
    logits, _ = predict(params, batch['image'])
    targets = classification.one_hot(batch['label'], logits.shape[-1])
    values = {
      'accuracy': classification.top_1(logits, targets),
      'loss': example_loss(logits, targets),
      'count': jnp.ones(len(logits)),
    }
    return {
      name: sums[name] + jnp.vdot(value, batch['mask'])
      for name, value in values.items()
    }

  zeros = dict.fromkeys(('accuracy', 'loss', 'count'), jnp.zeros(()))
  return zeros, jax.jit(
    add,
    out_shardings=sharding.replicated(mesh),
    compiler_options=sharding.compiler_options(mesh),
  )
