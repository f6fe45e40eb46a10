"""What images are compared by: small grey pictures, and what is seen in them.

A box is how much is cut off an image: (left, top, right, bottom), as shares of
its width and height.
"""

import hashlib
import io
import itertools
import warnings
from typing import NamedTuple

import numpy as np

from vit_jax.data import images

SIZE = 48  # of thumbnails: 32 lose what tells photos apart
_GRID = 32  # points along each side that two images are compared at
_LOWS = 8  # frequencies of a feature along each axis
FEATURE_SIZE = _LOWS**2

# The cuts of a test image that are looked for. Each side is off by at most
# 0.025 from any cut of up to 0.1, which the feature hardly sees.
BOXES = np.array(
  [(0, 0, 0, 0), *itertools.product((0.025, 0.075), repeat=4)], np.float32
)
# And those of a training image, of which the test image may be a cut.
INNER_BOXES = np.array([(0, 0, 0, 0), (0.1,) * 4], np.float32)
_LARGEST_CUT = 0.15

_STEPS = 6  # of the alignment; it converges in three or four
_LARGEST_STEP = 0.03
_DETAIL = 1.5  # standard deviation of the blur that leaves no detail, in points
_NOISE = 0.2  # grey levels that rounding and JPEG change details by
_PLAIN = 1.2  # grey levels; of less detail, JPEG leaves too little
_POINTS = ((np.arange(_GRID) + 0.5) / _GRID).astype(np.float32)


class Fingerprint(NamedTuple):
  """What is kept of an image.

  Attributes:
    thumbnail: uint8 [SIZE, SIZE], grey.
    side: the smaller side of the image, in pixels.
    digest: bytes, equal for equal files or pixels.
  """

  thumbnail: np.ndarray
  side: int
  digest: bytes


def fingerprint(image):
  """Returns the Fingerprint of an image.

  Args:
    image: bytes of a file, or uint8 [height, width, 3].

  Raises:
    Exception: of any type, if it cannot be decoded or is too large.
  """
  shown, side = _open(image, 'L', 2 * SIZE)
  if isinstance(image, bytes):
    digest = hashlib.blake2b(image, digest_size=16)
  else:
    digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(image))
  return Fingerprint(np.asarray(_resized(shown)), side, digest.digest())


def picture(image, size):
  """Returns a Pillow image in colour of at most `size` pixels a side."""
  from PIL import Image

  shown, _ = _open(image, 'RGB', size)
  shown.thumbnail((size, size), Image.Resampling.BILINEAR)
  return shown


def _open(image, mode, size):
  """Returns a Pillow image, perhaps reduced, and its original smaller side."""
  from PIL import Image

  if not isinstance(image, bytes):
    opened = Image.fromarray(image)
    return opened.convert(mode), min(opened.size)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # it is read, or there is an error
    opened = Image.open(io.BytesIO(images.standard(image)))
    side = min(opened.size)
    opened.draft(mode, (size, size))  # a JPEG is decoded at 1/2, 1/4 or 1/8
    if opened.mode.startswith('I'):  # 16 bits: `convert` would clip them
      levels = (np.asarray(opened) >> 8).astype(np.uint8)
      return Image.fromarray(levels).convert(mode), side
    return opened.convert(mode), side


def _resized(image):
  from PIL import Image

  return image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, reducing_gap=2.0)


def is_plain(thumbnails):
  """Returns which thumbnails show too little to be compared, bool [n].

  Args:
    thumbnails: uint8 [n, SIZE, SIZE].
  """
  whole = np.zeros([len(thumbnails), 4], np.float32)
  return _details(sample(thumbnails, whole)).std((1, 2)) < _PLAIN


def features(thumbnails, boxes):
  """Returns what is looked for in the index, float32 [n, boxes, FEATURE_SIZE].

  The low frequencies of each cut, as in the perceptual hash pHash but not
  rounded to bits: those of smooth images change with every encoding. Higher
  ones count more, as they are weaker in photos.

  Args:
    thumbnails: uint8 [n, SIZE, SIZE].
    boxes: float32 [boxes, 4].
  """
  from scipy import fft

  cosines = fft.dct(np.eye(_GRID, dtype=np.float32), axis=0, norm='ortho')
  lows = cosines[:_LOWS]
  rows = lows @ _resampling(boxes[:, 1], boxes[:, 3])  # [boxes, LOWS, SIZE]
  columns = lows @ _resampling(boxes[:, 0], boxes[:, 2])
  thumbnails = thumbnails[:, None].astype(np.float32)
  values = rows @ thumbnails @ columns.swapaxes(1, 2)
  values = values * np.hypot(*np.mgrid[:_LOWS, :_LOWS]).astype(np.float32)
  values = values.reshape(len(thumbnails), len(boxes), FEATURE_SIZE)
  norm = np.linalg.norm(values, axis=-1, keepdims=True)
  return values / np.maximum(norm, 1e-6)


def mirrored_features(values):
  """Returns the features of the mirror images of [..., FEATURE_SIZE]."""
  return values * np.tile((1, -1), FEATURE_SIZE // 2).astype(np.float32)


def _resampling(before, after):
  """Returns matrices [n, GRID, SIZE] from pixels to the points of cuts.

  Triangles as wide as the points are apart, or as the pixels: no aliasing.

  Args:
    before: float32 [n], share that is cut off at the start of the axis.
    after: float32 [n], likewise at its end.
  """
  extent = (1 - before - after)[:, None, None]
  points = (before[:, None, None] + extent * _POINTS[:, None]) * SIZE
  pixels = np.arange(SIZE, dtype=np.float32) + 0.5
  width = np.maximum(extent * (SIZE / _GRID), 1)
  weights = np.maximum(1 - np.abs(points - pixels) / width, 0)
  return weights / weights.sum(-1, keepdims=True)


def sample(thumbnails, boxes):
  """Returns what the boxes leave, float32 [n, GRID, GRID].

  Args:
    thumbnails: [n, SIZE, SIZE].
    boxes: float32 [n, 4].
  """
  rows = _resampling(boxes[:, 1], boxes[:, 3])
  columns = _resampling(boxes[:, 0], boxes[:, 2])
  return rows @ thumbnails.astype(np.float32) @ columns.swapaxes(1, 2)


def align(fixed, thumbnails, boxes):
  """Returns the boxes, moved to where thumbnails look most like `fixed`.

  Gauss-Newton on the four sides; of all steps, the best one counts.

  Args:
    fixed: float32 [n, GRID, GRID].
    thumbnails: [n, SIZE, SIZE].
    boxes: float32 [n, 4], at most some 0.03 off.
  """
  fixed = _standardized(fixed)
  boxes = best_boxes = boxes.copy()
  best = np.full(len(boxes), -np.inf, np.float32)
  towards_start, towards_end = 1 - _POINTS, _POINTS
  for _ in range(_STEPS):
    moved = _standardized(sample(thumbnails, boxes))
    likeness = (fixed * moved).mean((1, 2))
    better = likeness > best
    best = np.maximum(likeness, best)
    best_boxes = np.where(better[:, None], boxes, best_boxes)
    down, right = np.gradient(moved, axis=(1, 2))
    slopes = _GRID * np.stack(
      [
        right * towards_start[None, None],
        down * towards_start[None, :, None],
        -right * towards_end[None, None],
        -down * towards_end[None, :, None],
      ],
      axis=1,
    ).reshape(len(boxes), 4, -1)
    normal = slopes @ slopes.swapaxes(1, 2)
    damping = 1e-3 * np.trace(normal, axis1=1, axis2=2) + 1e-6
    normal += damping[:, None, None] * np.eye(4, dtype=np.float32)
    target = slopes @ (fixed - moved).reshape(len(boxes), -1, 1)
    step = np.linalg.solve(normal, target)[..., 0]
    step = np.clip(step, -_LARGEST_STEP, _LARGEST_STEP)
    boxes = np.clip(boxes + step, 0, _LARGEST_CUT)
  return best_boxes


def distances(first, second):
  """Returns how little the details of images agree, float32 [n] in [0, 2].

  One minus the correlation of what a blur takes away. Of the images as they
  are, it would be high for any two skies. Details no stronger than noise do
  not agree.

  Args:
    first: float32 [n, GRID, GRID], grey levels.
    second: likewise.
  """
  first, second = _details(first), _details(second)
  noise = np.float32(_NOISE**2)
  power = ((first**2).mean((1, 2)) + noise) * ((second**2).mean((1, 2)) + noise)
  return 1 - (first * second).mean((1, 2)) / np.sqrt(power)


def _details(grey):
  from scipy import ndimage

  return grey - ndimage.gaussian_filter(
    grey, (0, _DETAIL, _DETAIL), mode='nearest'
  )


def _standardized(grey):
  grey = grey - grey.mean((1, 2), keepdims=True)
  return grey / np.maximum(grey.std((1, 2), keepdims=True), 1e-3)
