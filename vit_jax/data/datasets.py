"""Data sets. Add one: its row in DATASETS."""

import functools
import itertools
import os
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from vit_jax import names, storage
from vit_jax.data import (
  files,
  objectnet,
  selection,
  shards,
  sources,
  splits,
  vtab,
)


class Dataset(NamedTuple):
  """A row of DATASETS.

  Attributes:
    num_classes: C.
    source: function from a split's name to its source, see `sources`.
    tfds_name: the name by which TFDS prepares it, if TFDS does.
    splits: dict from further names of splits to what they are of.
    num_train: number of images in 'train', for those who ask what a run takes
      and do not have the data; None if there is no such split. JFT's is the
      paper's (Section 4.1).
  """

  num_classes: int
  source: Callable
  tfds_name: str | None = None
  splits: Mapping[str, str] = MappingProxyType({})
  num_train: int | None = None


class Data(NamedTuple):
  """An opened split.

  Attributes:
    source: see `sources`.
    num_classes: C.
    class_names: tuple of str, of a data set of one's own; else None.
    names_are_sorted: whether the classes have their numbers only from the order
      of their names, so that those of another set are others.
  """

  source: Any
  num_classes: int
  class_names: tuple[str, ...] | None
  names_are_sorted: bool = False


def load(dataset, split, field, subset=None, drop='', class_names=None):
  """Returns the Data of a split.

  Args:
    dataset: a name in DATASETS; or the path of a folder of images, of a
      manifest (see `files`), or of a folder of shards (see `shards`).
    split: such as 'train' or 'train[:90%]'.
    field: config section that asks, for errors: 'config.train'.
    subset: how many examples to choose at random; None is all. A smaller subset
      is inside a larger one.
    drop: path of a list of examples to leave out, see `selection`; '' is none.
    class_names: the classes of the training set, for a set of one's own that a
      model is evaluated on; None is the set's own.

  Raises:
    ValueError: if there is no such data set or split, or it is not prepared
      (with the command that prepares it).
  """
  if not isinstance(split, str):
    raise ValueError(f"{field}.split={split!r} is no text such as 'train'.")
  if not dataset:
    raise ValueError(
      f'{field}.dataset is not given; set it to the path of a folder with one '
      'folder of images for each class, or to a name: '
      f'{", ".join(sorted(DATASETS))}.'
    )
  if dataset not in DATASETS and not _is_path(dataset):
    names.lookup(DATASETS, dataset, f'{field}.dataset')
  try:
    data = _open(dataset, split, class_names)
    source = data.source
    if drop:
      dropped = selection.read_drop_list(drop, split, len(source))
      source = selection.without(source, dropped)
    if subset is not None:
      source = selection.subset(source, subset)
  except ValueError as error:
    raise ValueError(f'{field}: {error}') from None
  return data._replace(source=source)


def _is_path(dataset):
  return '/' in dataset or os.path.exists(dataset)


def _open(dataset, split, class_names):
  if dataset in DATASETS:
    row = DATASETS[dataset]
    try:
      source = row.source(row.splits.get(split, split))
    except ValueError as error:
      raise ValueError(f'{error}{_hint(row, split)}') from None
    return Data(source, row.num_classes, None)
  storage.check(dataset, 'dataset')
  path = storage.path(dataset)
  if not path.exists():
    raise ValueError(
      f'dataset={dataset!r} does not exist; give the path of a folder of '
      'images, of a manifest or of prepared shards, or a name: '
      f'{", ".join(sorted(DATASETS))}.'
    )
  if shards.is_prepared(path):
    data = Data(*shards.load(path, split), names_are_sorted=True)
    if class_names and data.class_names != class_names:
      raise ValueError(
        f'{dataset} was packed with other classes than those of the training '
        f'set ({_first_difference(data.class_names, class_names)}); pack it '
        'with a classes.txt of the same.'
      )
    return data
  found = files.load(str(path), class_names)
  source = files.FilesSource(found, split)
  given = (path / 'classes.txt', storage.path(f'{path}.classes.txt'))
  names_are_sorted = class_names is None and not any(p.exists() for p in given)
  return Data(source, found.num_classes, found.class_names, names_are_sorted)


def _hint(row, split):
  """Returns what further names in a split stand for, as ranges need that."""
  return ''.join(
    f' Here {name!r} stands for {row.splits[name]!r}.'
    for name in re.findall(r'\w+', split)
    if name in row.splits and split not in row.splits
  )


def _first_difference(packed, wanted):
  for number, (a, b) in enumerate(
    itertools.zip_longest(packed or (), wanted, fillvalue='none')
  ):
    if a != b:
      return f'class {number} is {a!r} there, {b!r} in training'


def digits(split):
  """The 1,797 handwritten digits, 8x8 pixels, that scikit-learn carries.

  'test' is every fifth image (indices 4, 9, ..., 1794: 359 images), 'train' the
  other 1,438.
  """
  from sklearn import datasets as sklearn_datasets

  images, digit = sklearn_datasets.load_digits(return_X_y=True)
  images = images.reshape(-1, 8, 8, 1) * (255 / 16)  # 17 levels of grey
  images = np.repeat(images.round().astype(np.uint8), 3, axis=-1)
  is_test = np.arange(len(digit)) % 5 == 4
  rows = dict(train=np.flatnonzero(~is_test), test=np.flatnonzero(is_test))
  sizes = {name: len(rows[name]) for name in rows}
  chosen = np.concatenate(
    [rows[name][a:b] for name, a, b in splits.resolve(split, sizes)]
  )
  return sources.ArraySource(
    {'image': images[chosen], 'label': digit[chosen].astype(np.int32)}
  )


def _tfds(num_classes, name, num_train=None, further=None, **features):
  """Returns the row of a TFDS data set.

  Args:
    num_classes: C.
    name: TFDS name.
    num_train: see `Dataset`.
    further: `Dataset.splits`.
    **features: arguments of `TfdsSource`.
  """
  source = functools.partial(
    sources.TfdsSource, name, num_classes=num_classes, **features
  )
  return Dataset(num_classes, source, name, further or {}, num_train)


def _held_out(percent):
  """Returns the paper's development split and the rest (Section B.1.1)."""
  rest = 100 - percent
  return {'dev': f'train[{rest}%:]', 'train_without_dev': f'train[:{rest}%]'}


def _prepared(num_classes, name, num_train, how):
  """Returns the row of a set of shards that `prepare` has made.

  Args:
    num_classes: C.
    name: the folder's, under TFDS_DATA_DIR.
    num_train: see `Dataset`.
    how: what to do if there is no such folder, for the error.
  """

  def source(split):
    path = storage.path(sources.data_dir()) / name
    if not shards.is_prepared(path):
      raise ValueError(f'{path} has no prepared shards; {how}.')
    source, found, _ = shards.load(path, split)
    if found != num_classes:
      raise ValueError(
        f'{path} has {found:,} classes, but {name!r} has {num_classes:,}; name '
        f'the folder instead: dataset={str(path)!r}.'
      )
    return source

  return Dataset(num_classes, source, num_train=num_train)


def _vtab(task):
  """Returns the row of a VTAB task; it has no splits but those of the task."""
  further = task.splits

  def source(split):
    # TFDS's own splits of these names are others: no slices of them.
    if split not in further.values():
      raise ValueError(
        f'split={split!r} is none of a VTAB task; choose one of '
        f'{", ".join(further)}.'
      )
    try:
      return sources.TfdsSource(
        task.tfds_name,
        split,
        task.num_classes,
        label=task.label,
        to_class=task.to_class,
        pixels=task.pixels,
      )
    except ValueError as error:
      raise ValueError(f'{error} {task.needs}'.strip()) from None

  return Dataset(task.num_classes, source, task.tfds_name, further, 1000)


# The paper gives 21k and 18k classes (Section 4.1); its released checkpoints
# have 21,843 and BiT's paper (1912.11370) 18,291. TFDS does not carry
# ImageNet-21k, and JFT-300M is not public. Flowers has 1,020 images in each of
# 'train' and 'validation'; the authors' later code (big_vision) trains on the
# first alone and holds a tenth of it out, 'trainval' is what others train on.
DATASETS = {
  'cifar10': _tfds(10, 'cifar10:3.*.*', 50_000, _held_out(2)),
  'cifar100': _tfds(100, 'cifar100:3.*.*', 50_000, _held_out(2)),
  'digits': Dataset(10, digits, None, _held_out(10), 1_438),
  'imagenet2012': _tfds(1000, 'imagenet2012:5.*.*', 1_281_167, _held_out(1)),
  'imagenet2012_real': _tfds(
    1000, 'imagenet2012_real:1.*.*', label='real_label'
  ),
  'imagenet21k': _prepared(
    21_843,
    'imagenet21k',
    14_197_122,
    'run `python -m vit_jax.data.prepare imagenet21k --from=PATH` with PATH '
    'a tar file of https://image-net.org, or the unpacked images',
  ),
  'imagenet_v2': _tfds(1000, 'imagenet_v2/matched-frequency:3.*.*'),
  'jft300m': _prepared(
    18_291,
    'jft300m',
    303_000_000,
    'JFT-300M is not public; list images of your own in a manifest and run '
    '`python -m vit_jax.data.prepare jft300m --from=MANIFEST`, or set '
    'config.train.dataset to the path of any folder or manifest',
  ),
  'objectnet': Dataset(1000, objectnet.source),
  'oxford_flowers102': _tfds(
    102,
    'oxford_flowers102:2.*.*',
    1_020,
    _held_out(10) | {'trainval': 'train+validation'},
  ),
  'oxford_iiit_pet': _tfds(37, 'oxford_iiit_pet:4.*.*', 3_680, _held_out(10)),
  **{f'vtab_{name}': _vtab(task) for name, task in vtab.TASKS.items()},
}
