"""Image files: finding them, and reading those that TensorFlow cannot.

Training reads JPEG and PNG; this reads what people have.
"""

import os
import sys
import warnings

import numpy as np

from vit_jax.data import preprocess, tf

# Of files in folders; a file that is named itself may have any.
EXTENSIONS = ('.bmp', '.gif', '.jpeg', '.jpg', '.png', '.webp')
# Pillow opens many more, EPS by starting a program.
_FORMATS = ('BMP', 'GIF', 'JPEG', 'PNG', 'WEBP')
_MAX_ASPECT_RATIO = 200
_ORIENTATION_TAG = 0x0112  # EXIF


def find(paths):
  """Yields paths of images: files as they are, and those in folders.

  A folder's own images come before those of its subfolders, each sorted by
  name. Besides the names of one folder's images, and of the subfolders on the
  way to it, nothing is held in memory. A folder without images is reported on
  stderr; one that cannot be listed is yielded, and reading it says why.

  Args:
    paths: paths of files and folders.
  """
  for path in paths:
    if not os.path.isdir(path):
      yield path
      continue
    images = _images_in(path, ())
    first = next(images, None)
    if first is None:
      print(f'{path}: there are no images in this folder', file=sys.stderr)
      continue
    yield first
    yield from images


def _images_in(folder, parents):
  parents = (*parents, os.path.realpath(folder))
  images, subfolders = [], []
  try:
    with os.scandir(folder) as entries:
      for entry in entries:
        # DirEntry.is_dir raises on a link to itself, isdir does not.
        is_folder = os.path.isdir if entry.is_symlink() else os.DirEntry.is_dir
        if is_folder(entry):
          subfolders.append(entry.name)
        elif entry.name.lower().endswith(EXTENSIONS):
          images.append(entry.name)
  except OSError:
    yield folder
    return
  images.sort()
  yield from (os.path.join(folder, name) for name in images)
  del images
  for name in sorted(subfolders):
    subfolder = os.path.join(folder, name)
    if os.path.realpath(subfolder) not in parents:  # a link may lead back
      yield from _images_in(subfolder, parents)


def read(path):
  """Returns an image as recipes take it, a tensor.

  JPEG and PNG stay encoded, a scalar string: the recipe decodes them, and gets
  the pixels of the training pipeline. What that does not decode, or not as it
  looks, is uint8 [height, width, 3]: other formats, CMYK, transparent parts
  (over white), images that EXIF says to turn. Of animations it is the first
  picture.

  Args:
    path: of a BMP, GIF, JPEG, PNG or WebP file.

  Raises:
    Exception: of any type, if the file or the image in it cannot be read. An
      image of more than 178,956,970 pixels is not.
  """
  from PIL import Image, UnidentifiedImageError

  with open(path, 'rb') as file, warnings.catch_warnings():
    warnings.simplefilter('ignore')  # it is read, or there is an error
    if not os.fstat(file.fileno()).st_size:
      raise ValueError('the file is empty')
    try:
      image = Image.open(file, formats=_FORMATS)  # no pixels yet
    except UnidentifiedImageError:
      raise ValueError(
        f'not an image ({", ".join(_FORMATS)}), or its start is damaged'
      ) from None
    if max(image.size) > _MAX_ASPECT_RATIO * min(image.size):
      # With a smaller side of 256 it would no longer fit in memory.
      raise ValueError(
        f'{image.width} x {image.height} pixels: one side is over '
        f'{_MAX_ASPECT_RATIO} times the other'
      )
    orientation = _orientation(image)
    if not _is_ordinary(image):
      return tf.constant(_turned(_to_rgb(image), orientation))
    file.seek(0)
    encoded = tf.constant(file.read())
  if orientation == 1:
    return encoded
  return tf.constant(_turned(preprocess.decode()(encoded, None), orientation))


def _is_ordinary(image):
  """Returns whether TensorFlow decodes it to what it looks like."""
  return (
    image.format in ('JPEG', 'MPO', 'PNG')  # MPO: a JPEG with others behind
    and image.mode in ('L', 'RGB', 'I', 'I;16')  # I: 16 bits, of which 8 count
    and not image.has_transparency_data
  )


def _to_rgb(image):
  """Returns uint8 [height, width, 3] of a Pillow image."""
  from PIL import Image

  if image.has_transparency_data:
    image = image.convert('RGBA')
    white = Image.new('RGBA', image.size, 'white')
    image = Image.alpha_composite(white, image)
  return np.asarray(image.convert('RGB'))


def _orientation(image):
  """Returns EXIF's orientation, 1 to 8; 1 is upright."""
  try:
    return image.getexif().get(_ORIENTATION_TAG, 1)
  except Exception:  # damaged EXIF says nothing about the pixels
    return 1


def _turned(pixels, orientation):
  """Returns pixels [height, width, 3] the way up that EXIF says."""
  pixels = np.asarray(pixels)
  if orientation in (5, 6, 7, 8):
    pixels = pixels.swapaxes(0, 1)
  if orientation in (3, 4, 7, 8):
    pixels = pixels[::-1]
  if orientation in (2, 3, 6, 7):
    pixels = pixels[:, ::-1]
  return pixels
