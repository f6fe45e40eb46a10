"""What a run must know of its training set, from the table of data sets.

Compiling for machines elsewhere, and asking what a run takes, need no data.
"""

from typing import NamedTuple

from vit_jax.data import datasets, pipeline, tf
from vit_jax.data import preprocess as recipes


class Description(NamedTuple):
  """What `pipeline.TrainData` also says of a training set.

  Attributes:
    num_examples: the length of an epoch.
    num_classes: C.
    class_names: tuple of str, or None if they are not known.
    image_shape: (height, width, 3) of every image.
    many_labels: whether an image may have any number of labels.
  """

  num_examples: int
  num_classes: int
  class_names: tuple[str, ...] | None
  image_shape: tuple[int, int, int]
  many_labels: bool


def describe(mesh, seed, dataset, split, preprocess, subset=None, **rest):
  """Returns the Description of the config section `train`.

  A data set that is not in the table, or whose row does not say how many images
  it trains on, is opened: the result is then its `pipeline.TrainData`.

  Args:
    mesh: the device mesh.
    seed: of the order.
    dataset: see `pipeline.TrainData`, as all that follow.
    split: the part of it.
    preprocess: recipe.
    subset: how many examples.
    **rest: its other arguments.

  Raises:
    ValueError: if there is no such data set, or it has to be opened and cannot
      be; or if the recipe does not fix the size of the images.
  """
  row = datasets.DATASETS.get(dataset)
  if not row or not row.num_train or split != 'train' or rest.get('drop'):
    return pipeline.TrainData(
      mesh, seed, dataset, split, preprocess=preprocess, subset=subset, **rest
    )
  num_examples = min(row.num_train, subset or row.num_train)
  shape = _image_shape(preprocess)
  return Description(num_examples, row.num_classes, None, shape, False)


def _image_shape(recipe):
  """Returns the shape of what a recipe makes of an encoded image."""
  field = 'config.train.preprocess'
  traced = tf.function(
    recipes.parse(recipe, field),
    input_signature=[
      tf.TensorSpec([], tf.string),
      tf.TensorSpec([2], tf.int32),
    ],
    autograph=False,
  ).get_concrete_function()
  shape = traced.structured_outputs.shape
  if not shape.is_fully_defined():
    raise ValueError(
      f'{field}={recipe!r} leaves images of different sizes, {shape}; end it '
      'with an op that fixes the size, such as resize(224).'
    )
  return tuple(shape)
