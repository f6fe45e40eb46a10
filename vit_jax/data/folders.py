"""Folders of images: which of their folders are classes, which are splits."""

import collections
import os

from vit_jax.data import classes, images

_SPLITS = {
  'train': 'train', 'training': 'train',
  'val': 'val', 'valid': 'val', 'validation': 'val',
  'test': 'test', 'testing': 'test',
}  # fmt: skip


def rows(path, known):
  """Yields (split or None, path of an image from there, class) of a folder.

  Args:
    path: of the folder.
    known: collection of the names of classes that are known, or None. A folder
      'train' that is among them is a class, not a split.

  Raises:
    ValueError: on folders and files of which it is not clear what they are.
  """
  splits = _splits(path, known or ())
  for split, top in splits:
    _check_nothing_is_loose(top)
    for name in _subfolders(top):
      folder = os.path.join(top, name)
      empty = True
      for image in images.walk(folder, on_error=_refuse):
        empty = False
        yield split, os.path.relpath(image, path), name
      if empty:
        _check_is_empty(folder)


def _splits(path, known):
  """Returns a list of (split or None, the folder of its class folders)."""
  folders = _subfolders(path)
  filled = [f for f in folders if _has_images(os.path.join(path, f))]
  named = [f for f in filled if f.lower() in _SPLITS and f not in known]
  if not named:
    return [(None, path)]
  others = [f for f in filled if f.lower() not in _SPLITS or f in known]
  if others:
    raise ValueError(
      f'{os.path.join(path, named[0])} is named like a split, but beside it is '
      f'{os.path.join(path, others[0])} with images; move classes into the '
      f'splits ({os.path.join(path, "train", others[0])}) and anything else '
      f'away, or, if {named[0]!r} is a class, rename it or list all classes in '
      f'{os.path.join(path, "classes.txt")}.'
    )
  return [
    (_SPLITS[f.lower()], os.path.join(path, f))
    for f in folders
    if f.lower() in _SPLITS and f not in known
  ]


def _subfolders(path):
  try:
    with os.scandir(path) as entries:
      return sorted(
        entry.name
        for entry in entries
        if not entry.name.startswith('.') and images.is_folder(entry)
      )
  except OSError as error:
    _refuse(path, error)


def _refuse(folder, error):
  raise ValueError(
    f'{folder}: {error.strerror}; make it readable, or move it away.'
  ) from None


def _has_images(folder):
  return next(images.walk(folder, on_error=_refuse), None) is not None


def _check_nothing_is_loose(top):
  loose = [n for n in os.listdir(top) if n.lower().endswith(images.EXTENSIONS)]
  loose = [n for n in loose if not n.startswith('.')]
  loose = [n for n in loose if not os.path.isdir(os.path.join(top, n))]
  if loose:
    raise ValueError(
      f'{os.path.join(top, min(loose))} is in no class folder; move it to '
      f'{os.path.join(top, "CLASS", "")}, or list images and labels in a '
      'manifest (.csv).'
    )


def _check_is_empty(folder):
  """Raises if there are files in a folder without images."""
  kinds = collections.Counter()
  for _, subfolders, names in os.walk(folder):
    subfolders[:] = [n for n in subfolders if not n.startswith('.')]
    kinds.update(
      os.path.splitext(name)[1].lower() or 'without extension'
      for name in names
      if not name.startswith('.')
    )
  if kinds:
    (kind, _), *_ = kinds.most_common(1)
    raise ValueError(
      f'{folder} has {kinds.total()} files, none of '
      f'{", ".join(images.EXTENSIONS)}; convert them (most are {kind}) to '
      'JPEG or PNG, or move the folder away.'
    )


def open_folder(path, class_names, table):
  """Returns (a table of a folder's images, class names).

  Args:
    path: of the folder.
    class_names: tuple of the classes, or None.
    table: function from rows of `files.Files` to their table.

  Raises:
    ValueError: as of `files.load`.
  """
  class_names = class_names or classes.read(os.path.join(path, 'classes.txt'))
  known = classes.Classes(class_names)
  found = table(
    (
      split,
      image,
      [known.number(name, os.path.join(path, os.path.dirname(image)))],
    )
    for split, image, name in rows(path, class_names)
  )
  names, _ = known.finish(found.labels, path)
  return found, names
