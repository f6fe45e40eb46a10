"""Splits: 'train', 'train[:90%]', 'train[800:]+validation', as TFDS has them.

TFDS data sets read them themselves; this does it for all others.
"""

import re

from vit_jax import names

_PART = re.compile(r'(\w+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?')


def resolve(split, sizes):
  """Returns the ranges that a split is made of: a list of (name, start, stop).

  Args:
    split: names, each with or without a range of examples or of percent of
      them, joined by '+'.
    sizes: dict from a name to its number of examples.

  Raises:
    ValueError: on a text that is no split, a name that there is not, and a
      range that is not inside of it.
  """
  return [_part(text.strip(), split, sizes) for text in split.split('+')]


def _part(text, split, sizes):
  match = _PART.fullmatch(text)
  if match is None:
    raise ValueError(
      f"split={split!r} is none; write 'train', 'train[:90%]', 'train[800:]', "
      "or several joined by '+'."
    )
  name, start, stop = match.groups()
  size = names.lookup(sizes, name, 'split')
  start = _place(start, size, 0)
  stop = _place(stop, size, size)
  if not 0 <= start <= stop <= size:
    raise ValueError(
      f'split={split!r}: {text!r} is examples {start:,} to {stop:,}, but '
      f'{name!r} has {size:,}.'
    )
  return name, start, stop


def _place(text, size, default):
  if text is None:
    return default
  if text.endswith('%'):
    place = round(int(text[:-1]) * size / 100)
  else:
    place = int(text)
  return place + size if text.startswith('-') else place
