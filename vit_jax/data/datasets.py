"""Data sets. Add one: its row in DATASETS."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from vit_jax import names
from vit_jax.data import sources


class Dataset(NamedTuple):
  """A data set.

  Attributes:
    num_classes: C.
    source: function from a split's name to its source, see `sources`.
    tfds_name: the name by which TFDS prepares it, if TFDS does.
  """

  num_classes: int
  source: Callable
  tfds_name: str | None = None


def load(dataset, split, field):
  """Returns the source of a split of a data set.

  Args:
    dataset: a name in DATASETS.
    split: such as 'train' or, of TFDS data sets, 'train[:90%]'.
    field: config section that asks, for errors: 'config.train'.

  Raises:
    ValueError: if there is no such data set or split, or it is not prepared
      (with the command that prepares it).
  """
  row = names.lookup(DATASETS, dataset, f'{field}.dataset')
  try:
    return row.source(split)
  except ValueError as error:
    raise ValueError(f'{field}: {error}') from None


def digits(split):
  """The 1,797 handwritten digits, 8x8 pixels, that scikit-learn carries.

  'test' is every fifth image (indices 4, 9, ..., 1794: 359 images), 'train' the
  other 1,438.
  """
  from sklearn import datasets as sklearn_datasets

  images, labels = sklearn_datasets.load_digits(return_X_y=True)
  is_test = np.arange(len(labels)) % 5 == 4
  splits = {'train': ~is_test, 'test': is_test}
  rows = names.lookup(splits, split, 'split')
  images = images.reshape(-1, 8, 8, 1) * (255 / 16)  # 17 levels of grey
  images = np.repeat(images.round().astype(np.uint8), 3, axis=-1)
  return sources.ArraySource(
    {'image': images[rows], 'label': labels[rows].astype(np.int32)}
  )


def _tfds(num_classes, name, **features):
  """Returns the row of a TFDS data set; `features` as of `TfdsSource`."""
  source = functools.partial(
    sources.TfdsSource, name, num_classes=num_classes, **features
  )
  return Dataset(num_classes, source, name)


# The paper gives 21k and 18k classes (Section 4.1); its released checkpoints
# have 21,843 and BiT's paper (1912.11370) 18,291. JFT-300M is not public, and
# TFDS does not carry ImageNet-21k: both rows read a TFDS data set of that name
# that the user has built, with several labels an image in JFT.
DATASETS = {
  'cifar10': _tfds(10, 'cifar10:3.*.*'),
  'cifar100': _tfds(100, 'cifar100:3.*.*'),
  'digits': Dataset(10, digits),
  'imagenet2012': _tfds(1000, 'imagenet2012:5.*.*'),
  'imagenet21k': _tfds(21843, 'imagenet21k'),
  'jft300m': _tfds(18291, 'jft300m', label='labels'),
}
