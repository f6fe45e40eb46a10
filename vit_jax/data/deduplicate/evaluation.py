"""Precision and recall on copies that are made here."""

import io
from typing import NamedTuple

import numpy as np

from vit_jax import storage
from vit_jax.data import images
from vit_jax.data.deduplicate import fingerprints
from vit_jax.data.deduplicate.index import Index

_TILE = (500, 375)  # pixels, width and height, as ImageNet's photos
_MAX_WIDTH = 2500
_BATCH = 64


class Score(NamedTuple):
  """Of one kind of alteration.

  Attributes:
    recall: share of the copies that were found.
    recall_detailed: likewise, of those that are not plain.
    precision: share of the images found that are copies, of what they were
      found as.
    wrong: (image, test image, distance) of the others.
  """

  recall: float
  recall_detailed: float
  precision: float
  wrong: list


def _jpeg(quality):
  def alter(image, rng):
    del rng
    return image, dict(format='JPEG', quality=quality)

  return alter


def _png(change):
  return lambda image, rng: (change(image, rng), dict(format='PNG'))


def _resize(x, y):
  def change(image, rng):
    del rng
    return image.resize((round(image.width * x), round(image.height * y)))

  return change


def _cut(image, box):
  left, top, right, bottom = box
  return image.crop(
    (
      round(left * image.width),
      round(top * image.height),
      image.width - round(right * image.width),
      image.height - round(bottom * image.height),
    )
  )


def _mirror(image, rng):
  del rng
  from PIL import ImageOps

  return ImageOps.mirror(image)


def _levels(gain, offset=0):
  def change(image, rng):
    del rng
    from PIL import Image

    levels = np.asarray(image) * np.array(gain) + offset
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))

  return change


def _all(image, rng):
  image = _mirror(_cut(image, rng.uniform(0, 0.1, 4)), rng)
  image = _levels(0.9, 12)(_resize(0.5, 0.5)(image, rng), rng)
  return image, dict(format='JPEG', quality=50)


# Name -> function (Pillow image, rng) -> altered image, how to save it.
ALTERATIONS = {
  'none': _png(lambda image, rng: image),
  'JPEG, quality 95': _jpeg(95),
  'JPEG, quality 75': _jpeg(75),
  'JPEG, quality 50': _jpeg(50),
  'JPEG, quality 30': _jpeg(30),
  'a quarter of the size': _png(_resize(0.25, 0.25)),
  'half of the size': _png(_resize(0.5, 0.5)),
  'twice the size': _png(_resize(2, 2)),
  '15% wider': _png(_resize(1.15, 1)),
  '5% cut off each side': _png(lambda i, rng: _cut(i, (0.05,) * 4)),
  '10% cut off each side': _png(lambda i, rng: _cut(i, (0.1,) * 4)),
  '10% cut off one side': _png(lambda i, rng: _cut(i, (0.1, 0, 0, 0))),
  'up to 10% cut off': _png(lambda i, rng: _cut(i, rng.uniform(0, 0.1, 4))),
  'mirrored': _png(_mirror),
  '20% brighter': _png(_levels(1.2)),
  '20% darker': _png(_levels(0.8)),
  'warmer colours': _png(_levels((1.1, 1, 0.85))),
  'grey': _png(lambda image, rng: image.convert('L')),
  'all at once': _all,
}
# Here the test image is the part, and the training image the whole.
_PARTS = {'test image lacks 5% of each side': 0.05,
          'test image lacks 10% of each side': 0.1}  # fmt: skip


def evaluate(photos=None, max_distance=0.1):
  """Yields (alteration, Score), and at last ('tiles', their number).

  Photos are cut into tiles. Every other tile is a test image; copies of all are
  looked for, so that half of them, from the same photos, must not be found.

  Args:
    photos: folder of photos; None is the two that scikit-learn carries.
    max_distance: as of `Index.find`.
  """
  cuts = tiles(photos)
  plain = fingerprints.is_plain(np.stack([f.thumbnail for f in map(_of, cuts)]))
  tests = Index([_of(t) for t in cuts[::2]], _places(len(cuts[::2])))
  for name, alter in ALTERATIONS.items():
    rng = np.random.default_rng(0)
    copies = (alter(tile, rng) for tile in cuts)
    yield name, _score(tests, copies, plain, max_distance)
  for name, cut in _PARTS.items():
    parts = [_of(_cut(t, (cut,) * 4)) for t in cuts[::2]]
    copies = ((tile, dict(format='JPEG', quality=75)) for tile in cuts)
    tests = Index(parts, _places(len(parts)))
    yield name, _score(tests, copies, plain, max_distance)
  yield 'tiles', len(cuts)


def _score(tests, copies, plain, max_distance):
  right, wrong, found = np.zeros(len(plain), bool), [], 0
  batch = [fingerprints.fingerprint(_saved(*copy)) for copy in copies]
  for start in range(0, len(batch), _BATCH):
    matches = tests.find(batch[start : start + _BATCH], max_distance)
    for number, of_image in enumerate(matches, start):
      found += bool(of_image)
      rows = [row for row, _, _ in of_image]
      right[number] = number % 2 == 0 and number // 2 in rows
      if of_image and not right[number]:
        wrong.append((number, 2 * rows[0], of_image[0][1]))
  return Score(
    right[::2].mean(),
    right[::2][~plain[::2]].mean(),
    right.sum() / max(found, 1),
    wrong,
  )


def _places(count):
  return [(0, index) for index in range(count)]


def _of(image):
  return fingerprints.fingerprint(_saved(image, dict(format='PNG')))


def _saved(image, options):
  file = io.BytesIO()
  image.save(file, **options)
  return file.getvalue()


def tiles(photos=None):
  """Returns Pillow images, cut from photos so that they do not overlap.

  Args:
    photos: folder of photos; None is the two that scikit-learn carries.

  Raises:
    ValueError: if there are none.
  """
  from PIL import Image

  if photos is None:
    from sklearn import datasets as sklearn_datasets

    samples = sklearn_datasets.load_sample_images().images
    found = [Image.fromarray(sample) for sample in samples]
    width, height = 106, 80
  else:
    folder = storage.path(photos)
    paths = list(images.walk(str(folder))) if folder.is_dir() else []
    if not paths:
      raise ValueError(f'--photos={photos} has no images; name another folder.')
    found = (Image.open(io.BytesIO(images.read(p))) for p in paths)
    width, height = _TILE
  return [
    photo.crop((x, y, x + width, y + height))
    for photo in map(_at_most, found)
    for y in range(0, photo.height - height + 1, height)
    for x in range(0, photo.width - width + 1, width)
  ]


def _at_most(photo):
  photo = photo.convert('RGB')
  scale = min(_MAX_WIDTH / photo.width, 1)
  return photo.resize((round(photo.width * scale), round(photo.height * scale)))
