"""Numbers of the classes of one's own images."""

import unicodedata

import numpy as np

from vit_jax import storage

_MAX_LABEL = 1_000_000


class Classes:
  """Gives labels their numbers, one after the other.

  Names that are not known before are numbered as they come, so that a set is
  read once and no row's name is kept; `finish` sorts them.

  Args:
    class_names: tuple of the classes, or None if they are not known.
  """

  def __init__(self, class_names):
    self._known, self._first = class_names, None
    self._numbers = {name: i for i, name in enumerate(class_names or ())}
    self._limit = len(class_names) if class_names else _MAX_LABEL + 1

  def number(self, label, where):
    """Returns the number of a label.

    Args:
      label: its name, or its number.
      where: it stands, for errors.

    Raises:
      ValueError: if it is not one of the classes, or cannot be a class.
    """
    if self._first is None:
      self._first = label
    if type(label) is not type(self._first):
      raise ValueError(
        f'{where}: label {label!r} after {self._first!r}: there are names and '
        'numbers as labels; use one kind. Numbers have no zeros in front; '
        '"quoted" in a .jsonl they are names.'
      )
    if isinstance(label, str):
      number = self._numbers.get(label)
      return self._new(label, where) if number is None else number
    if not 0 <= label < self._limit:
      raise ValueError(
        f'{where}: label {label} is not in [0, {self._limit:,}); number the '
        'classes from 0, or give their names.'
      )
    return label

  def finish(self, labels, where):
    """Returns (class names or None, number of classes) of all labels.

    Args:
      labels: int32 [n], what `number` returned; they become those of the sorted
        names.
      where: path of the set, for errors.

    Raises:
      ValueError: if the numbers of most classes are missing.
    """
    if self._known:
      return self._known, len(self._known)
    if self._numbers:
      names = tuple(sorted(self._numbers))
      rank = np.empty(len(names), np.int32)
      rank[[self._numbers[name] for name in names]] = np.arange(len(names))
      labels[:] = rank[labels]
      return names, len(names)
    used = np.bincount(labels) > 0
    if 2 * used.sum() < len(used):
      raise ValueError(
        f'{where}: its labels are {used.sum():,} numbers up to '
        f'{len(used) - 1:,}, and would be a model of {len(used):,} classes; '
        'number the classes from 0 without gaps, give names instead (in a '
        '.jsonl also "2019"), or list all classes, one a line, in '
        f'{where}.classes.txt.'
      )
    return None, len(used)

  def _new(self, name, where):
    if self._known:
      raise ValueError(
        f'{where}: {name!r} is not one of the {len(self._known)} classes '
        f'({", ".join(self._known[:5])}, ...); the classes are those of the '
        'training set, or of classes.txt.'
      )
    # Names are lines of text files, and strings of JSON.
    if any(unicodedata.category(c) in ('Cc', 'Cs', 'Zl', 'Zp') for c in name):
      raise ValueError(
        f'{where!a}: {name!r} cannot be the name of a class, because it is not '
        'UTF-8 or has control characters or several lines; rename it.'
      )
    return self._numbers.setdefault(name, len(self._numbers))


def read(path):
  """Returns the tuple of names in a `classes.txt`, None if there is none.

  Raises:
    ValueError: if it names a class twice, or is no text.
  """
  path = storage.path(path)
  try:
    with storage.errors(path):
      if not path.exists():
        return None
      text = path.read_bytes().decode('utf-8-sig')
  except UnicodeDecodeError:
    raise ValueError(
      f'{path} is not text in UTF-8; save it in that encoding.'
    ) from None
  # splitlines would also split at characters within names.
  names = tuple(line.strip() for line in text.split('\n') if line.strip())
  if len(set(names)) != len(names):
    raise ValueError(f'{path} names a class twice; each line is one class.')
  return names
