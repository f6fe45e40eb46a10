"""Image files: finding them, and reading those that TensorFlow cannot.

Training reads JPEG and PNG; this reads what people have.
"""

import contextlib
import io
import os
import re
import stat
import sys
import threading
import warnings

import numpy as np

from vit_jax import storage
from vit_jax.data import preprocess, tf

# Of files in folders; a file that is named itself may have any.
EXTENSIONS = (
  '.bmp', '.gif', '.jfif', '.jpe', '.jpeg', '.jpg', '.png', '.webp'
)  # fmt: skip
# Pillow opens many more, EPS by starting a program.
_FORMATS = ('BMP', 'GIF', 'JPEG', 'PNG', 'WEBP')
_MAX_ASPECT_RATIO = 200
_MAX_BYTES = 2**30
_ORIENTATION_TAG = 0x0112  # EXIF
# From an orientation to the Pillow Transpose that turns it upright.
_TURNS = {
  2: 'FLIP_LEFT_RIGHT', 3: 'ROTATE_180', 4: 'FLIP_TOP_BOTTOM', 5: 'TRANSPOSE',
  6: 'ROTATE_270', 7: 'TRANSVERSE', 8: 'ROTATE_90',
}  # fmt: skip
# Pillow takes about 8 bytes a pixel; of larger ones, it has one at a time.
_MANY_PIXELS = 20_000_000
_many_pixels = threading.Lock()


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
    images = walk(path)
    first = next(images, None)
    if first is None:
      print(f'{path}: there are no images in this folder', file=sys.stderr)
      continue
    yield first
    yield from images


def walk(folder, parents=(), on_error=None):
  """Yields the paths of one folder's images, in the order of `find`.

  Args:
    folder: its path.
    parents: real paths of the folders that it was reached through.
    on_error: function (folder, OSError) to call of a folder that cannot be
      listed, which is yielded otherwise.
  """
  parents = (*parents, os.path.realpath(folder))
  images, subfolders = [], []
  try:
    with os.scandir(folder) as entries:
      for entry in entries:
        if entry.name.startswith('.'):  # of the system, not the user
          continue
        if is_folder(entry):
          subfolders.append(entry.name)
        elif entry.name.lower().endswith(EXTENSIONS):
          images.append(entry.name)
  except OSError as error:
    if on_error is not None:
      on_error(folder, error)
    yield folder
    return
  images.sort()
  yield from (os.path.join(folder, name) for name in images)
  del images
  for name in sorted(subfolders):
    subfolder = os.path.join(folder, name)
    if os.path.realpath(subfolder) not in parents:  # a link may lead back
      yield from walk(subfolder, parents, on_error)


def is_folder(entry):
  """Returns whether an os.DirEntry is a folder, or a link to one."""
  # DirEntry.is_dir raises on a link to itself, isdir does not.
  return os.path.isdir(entry) if entry.is_symlink() else entry.is_dir()


def read(path):
  """Returns the bytes of an image file as `standard` gives them.

  Args:
    path: of a BMP, GIF, JPEG, PNG or WebP file, local or gs://.

  Raises:
    Exception: of any type, if the file or the image in it cannot be read.
  """
  path = os.fspath(path)
  if storage.is_remote(path):
    # A store that fails says nothing of the image.
    with storage.errors(path):
      path = storage.path(path)
      _check_num_bytes(path.stat().length)
      encoded = path.read_bytes()
    return standard(encoded)
  status = os.stat(path)
  # To open a pipe may wait for ever; to open a folder says that it is one.
  if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
    raise ValueError('it is a pipe, socket or device, not a file')
  _check_num_bytes(status.st_size)
  with open(path, 'rb') as file:
    return standard(file.read(status.st_size))


def _check_num_bytes(size):
  if size > _MAX_BYTES:
    raise ValueError(f'the file is larger than {_MAX_BYTES:,} bytes')


def standard(encoded):
  """Returns an image encoded so that recipes decode it to what it looks like.

  JPEG and PNG are returned as they are: the recipe decodes them, and gets the
  pixels of the training pipeline. What TensorFlow does not decode, or not as it
  looks, becomes a PNG of its pixels: other formats, CMYK, transparent parts
  (over white), PNGs that EXIF says to turn. Of animations it is the first
  picture. A JPEG to turn, as of most phones, becomes another JPEG (quality 95,
  full colour): a PNG of a photo takes several times the time and the bytes.

  Args:
    encoded: bytes of a BMP, GIF, JPEG, PNG or WebP file.

  Raises:
    Exception: of any type, if the image cannot be read. One of more than
      `preprocess.MAX_PIXELS` is not. Damage beyond the header of a JPEG or PNG
      may show only when the recipe decodes it.
  """
  if not encoded:
    raise ValueError('the file is empty')
  if _is_plain_jpeg(encoded):
    return encoded
  from PIL import Image, UnidentifiedImageError

  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # it is read, or there is an error
    try:
      image = Image.open(io.BytesIO(encoded), formats=_FORMATS)  # no pixels yet
    except UnidentifiedImageError:
      raise ValueError(
        f'not an image ({", ".join(_FORMATS)}), or its start is damaged'
      ) from None
    _check_size(image.width, image.height)
    turn = _TURNS.get(_orientation(image))
    ordinary = _is_ordinary(image)
    if ordinary and turn is None:
      return encoded
    large = image.width * image.height > _MANY_PIXELS
    with _many_pixels if large else contextlib.nullcontext():
      if ordinary and image.format == 'PNG':
        pixels = preprocess.decode()(tf.constant(encoded), None)
        image = Image.fromarray(np.asarray(pixels))
      elif not ordinary:
        image = _to_rgb(image)
      return _encoded(image, turn, 'PNG' if image.format is None else 'JPEG')


def _encoded(image, turn, kind):
  """Returns the bytes of a Pillow image, upright and without metadata."""
  from PIL import Image

  if turn is not None:
    image = image.transpose(Image.Transpose[turn])
  image.info = {}
  stream = io.BytesIO()
  if kind == 'JPEG':
    image.save(stream, kind, quality=95, subsampling=0)
  else:
    image.save(stream, kind, compress_level=1)
  return stream.getvalue()


def in_words(error):
  """Returns what an error says, without TensorFlow's names of its parts."""
  text = getattr(error, 'strerror', None) or str(error)
  # Of a graph: where it happened, then what, then in which node.
  text = text.partition('[[{{node')[0].strip().rpartition('\n')[2]
  text = re.sub(r'^{{.*?}} | \[Op:.*', '', text).strip()
  # A check that failed, in a graph or in eager execution.
  text = re.sub(r'^assertion failed: \[(.*?)\.?\]$', r'\1', text)
  text = re.sub(r"^Expected .* Summarized data: b'(.*?)\.?'$", r'\1', text)
  return text or type(error).__name__


def _check_size(width, height):
  if width * height > preprocess.MAX_PIXELS:
    raise ValueError(
      f'{width} x {height} pixels are more than {preprocess.MAX_PIXELS:,}, the '
      'most that is decoded'
    )
  if max(width, height) > _MAX_ASPECT_RATIO * min(width, height):
    # With a smaller side of 256 it would no longer fit in memory.
    raise ValueError(
      f'{width} x {height} pixels: one side is over {_MAX_ASPECT_RATIO} times '
      'the other'
    )


def _is_plain_jpeg(encoded):
  """Returns whether it is a JPEG in grey or colour without EXIF.

  Most images of data sets are, and to see that here takes a tenth of the time
  that Pillow takes to open them. Only the headers are read.
  """
  if encoded[:2] != b'\xff\xd8':
    return False
  position = 2
  while position + 10 <= len(encoded) and encoded[position] == 0xFF:
    marker = encoded[position + 1]
    if marker == 0xFF:  # a fill byte
      position += 1
      continue
    if marker == 0xE1:  # EXIF or XMP
      return False
    length = int.from_bytes(encoded[position + 2 : position + 4], 'big')
    if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
      height = int.from_bytes(encoded[position + 5 : position + 7], 'big')
      width = int.from_bytes(encoded[position + 7 : position + 9], 'big')
      if not height or not width:
        return False
      _check_size(width, height)
      return encoded[position + 9] in (1, 3)
    if marker == 0xDA or length < 2:  # pixels before a size
      return False
    position += 2 + length
  return False


def _is_ordinary(image):
  """Returns whether TensorFlow decodes it to what it looks like."""
  return (
    image.format in ('JPEG', 'MPO', 'PNG')  # MPO: a JPEG with others behind
    and image.mode in ('L', 'RGB', 'I', 'I;16')  # I: 16 bits, of which 8 count
    and not image.has_transparency_data
  )


def _to_rgb(image):
  """Returns a Pillow image in RGB, of what is transparent over white."""
  from PIL import Image

  if not image.has_transparency_data:
    return image.convert('RGB')
  rgb = Image.new('RGB', image.size, 'white')
  image = image if image.mode == 'RGBA' else image.convert('RGBA')
  rgb.paste(image, mask=image)
  return rgb


def _orientation(image):
  """Returns EXIF's orientation, 1 to 8; 1 is upright."""
  try:
    return image.getexif().get(_ORIENTATION_TAG, 1)
  except Exception:  # damaged EXIF says nothing about the pixels
    return 1
