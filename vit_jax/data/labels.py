"""Names of classes.

Where two classes of ImageNet have the same name, as the two cranes have, the
names end in their WordNet ids: every name of a data set is unique. The files
under `labels/` say where they come from.
"""

import collections
import functools
from importlib import resources

from vit_jax import names

_IMAGENET = ('imagenet2012', 'imagenet21k')
_NAMES = {
  'cifar10': (
    'airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse',
    'ship', 'truck',
  ),
  'digits': tuple('0123456789'),
}  # fmt: skip
DATASETS = (*_NAMES, *_IMAGENET)


def names_of(dataset):
  """Returns the names of the classes, a tuple of str: class i is at i.

  Args:
    dataset: 'cifar10', 'digits', 'imagenet2012', or 'imagenet21k' in the order
      of Google's published checkpoints.

  Raises:
    ValueError: on another, with the choices.
  """
  if dataset not in _IMAGENET:
    choices = _NAMES | dict.fromkeys(_IMAGENET)
    return names.lookup(choices, dataset, 'dataset')
  counts = collections.Counter(name for _, name in _read(dataset))
  return tuple(
    name if counts[name] == 1 else f'{name} ({synset})'
    for synset, name in _read(dataset)
  )


def synsets(dataset):
  """Returns the WordNet ids of the classes, a tuple of str like 'n01440764'.

  Args:
    dataset: 'imagenet2012' or 'imagenet21k'.

  Raises:
    ValueError: on another, with the choices.
  """
  names.lookup(dict.fromkeys(_IMAGENET), dataset, 'dataset')
  return tuple(synset for synset, _ in _read(dataset))


@functools.cache
def _read(dataset):
  """Returns a tuple of (WordNet id, lemmas), one for each class."""
  file = resources.files('vit_jax.data') / 'labels' / f'{dataset}.txt'
  lines = file.read_text(encoding='utf-8').splitlines()
  return tuple(tuple(line.split('\t')) for line in lines)
