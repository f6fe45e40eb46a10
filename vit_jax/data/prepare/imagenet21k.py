"""ImageNet-21k from the tar files of image-net.org, without unpacking them.

fall11    fall11_whole.tar, which holds nXXXXXXXX.tar files of JPEGs; or a
          folder of those. 21,841 classes. Labels are the places of the
          synsets in `labels.synsets('imagenet21k')`, the 21,843 of the
          published checkpoints.
winter21  winter21_whole.tar.gz, which holds winter21_whole/nXXXXXXXX.tar; or
          a folder of those. 19,167 classes, in the order of their synsets.
"""

import hashlib
import os
import re

from vit_jax.data import labels
from vit_jax.data.prepare import packing, tar

RELEASES = ('fall11', 'winter21')
_TAR = re.compile(r'(?:.*/)?(n\d{8})\.tar')
_TARS = ('.tar', '.tar.gz', '.tgz')
_MAX_IMAGE_BYTES = 2**27  # in memory, a few at a time


def is_tars(path):
  """Returns whether an epath.Path is a tar file, or a folder of synsets'."""
  if path.name.endswith(_TARS):
    return True
  return path.is_dir() and any(_TAR.fullmatch(p.name) for p in path.iterdir())


def inputs(path, release=None):
  """Returns packing.Inputs of tar files.

  Args:
    path: epath.Path of the one whole tar file, or of a folder of nXXXXXXXX.tar.
    release: one of RELEASES; by default winter21 if the path says so.

  Raises:
    ValueError: if there are no such files, or a synset that is no class.
  """
  release = release or ('winter21' if 'winter21' in str(path) else 'fall11')
  tars = _Folder(path) if path.is_dir() else _Whole(path)
  synsets = tars.synsets()
  if not synsets:
    raise ValueError(
      f'--from={path} has no nXXXXXXXX.tar; give fall11_whole.tar, '
      'winter21_whole.tar.gz, or a folder of the tar files inside of them.'
    )
  known = labels.synsets('imagenet21k')
  classes = known if release == 'fall11' else tuple(sorted(set(synsets)))
  numbers = {synset: number for number, synset in enumerate(classes)}
  others = sorted(set(synsets) - set(numbers))
  if others:
    raise ValueError(
      f'--from={path}: {others[0]} and {len(others) - 1} others are none of '
      'the 21,843 classes of ImageNet-21k.'
    )
  print(f'{release}: {len(set(synsets)):,} synsets in {path}.')
  digest = hashlib.blake2b(digest_size=16)
  digest.update(f'{release} {tars.num_bytes} {" ".join(synsets)}'.encode())

  def images(position):
    return _images(tars, numbers, position)

  return packing.Inputs(
    source=f'imagenet21k {release} {digest.hexdigest()}',
    num_classes=len(classes),
    class_names=class_names(classes),
    many_labels=False,
    splits={'train': images},
    num_images={},
    num_bytes=tars.num_bytes,
  )


def class_names(synsets):
  """Returns a tuple of what synsets mean; one that is unknown is itself."""
  known = labels.synsets('imagenet21k')
  described = dict(zip(known, labels.names_of('imagenet21k'), strict=True))
  return tuple(described.get(synset, synset) for synset in synsets)


class _Folder:
  """A folder of nXXXXXXXX.tar files, in the order of their names."""

  def __init__(self, path):
    self._paths = sorted(p for p in path.iterdir() if _TAR.fullmatch(p.name))
    self.num_bytes = sum(p.stat().length for p in self._paths)

  def synsets(self):
    return [_TAR.fullmatch(path.name)[1] for path in self._paths]

  def archives(self, first):
    """Yields (number, synset, file, where, start, end) from number `first`."""
    for number, path in enumerate(self._paths):
      if number >= first:
        with tar.open_file(path) as file:
          synset = _TAR.fullmatch(path.name)[1]
          yield number, synset, file, str(path), 0, None


class _Whole:
  """One tar file of nXXXXXXXX.tar files, in the order in which it has them."""

  def __init__(self, path):
    self._path = path
    try:
      self.num_bytes = path.stat().length
    except OSError as error:
      raise ValueError(f'--from={path} cannot be read: {error}.') from None

  def synsets(self):
    """Returns all synsets. Of a compressed file this reads the whole of it."""
    with tar.open_file(self._path) as file:
      return [
        match[1]
        for member in tar.members(file, str(self._path))
        if (match := _TAR.fullmatch(member.name))
      ]

  def archives(self, first):
    """Yields (number, synset, file, where, start, end) from number `first`."""
    number = 0
    with tar.open_file(self._path) as file:
      for member in tar.members(file, str(self._path)):
        match = _TAR.fullmatch(member.name)
        if not match:
          continue
        if number >= first:
          where = f'{self._path}, {member.name}'
          end = member.start + member.size
          yield number, match[1], file, where, member.start, end
        number += 1


def _images(tars, numbers, position):
  """Yields packing.Images behind a position [archive, image in it]."""
  archive, image = position or (0, -1)
  for number, synset, file, where, start, end in tars.archives(archive):
    for place, member in enumerate(tar.members(file, where, start, end)):
      if number == archive and place <= image:
        continue
      yield packing.Image(
        [number, place],
        f'{synset}/{os.path.basename(member.name)}',
        [numbers[synset]],
        _reader(file, member, where),
      )


def _reader(file, member, where):
  """Returns the function to an image's bytes, which are read at once."""
  if member.size > _MAX_IMAGE_BYTES:
    return _too_large(member.size)
  encoded = tar.read(file, member.start, member.size, where)
  return packing.read_standard(encoded)


def _too_large(size):
  def read():
    raise ValueError(
      f'{size:,} bytes, more than the {_MAX_IMAGE_BYTES:,} of the largest '
      'image that is read'
    )

  return read
