import io

import numpy as np
import pytest
from PIL import Image

from vit_jax.data.deduplicate import evaluation, fingerprints


@pytest.fixture(scope='module')
def photo():
  return evaluation.tiles()[12].resize((320, 240))


def of(image):
  return fingerprints.fingerprint(np.asarray(image.convert('RGB')))


def test_equal_bytes_and_equal_pixels_have_one_digest(photo):
  file = io.BytesIO()
  photo.save(file, 'PNG')
  first = fingerprints.fingerprint(file.getvalue())
  assert first.digest == fingerprints.fingerprint(file.getvalue()).digest
  assert first.side == 240
  pixels = np.asarray(photo)
  assert of(photo).digest != first.digest  # files and pixels are two kinds
  turned = pixels.reshape(320, 240, 3)
  assert fingerprints.fingerprint(turned).digest != of(photo).digest
  np.testing.assert_array_equal(first.thumbnail, of(photo).thumbnail)


def test_sixteen_bit_pictures_are_not_clipped(photo):
  levels = np.asarray(photo.convert('L')).astype(np.uint16) * 257
  file = io.BytesIO()
  Image.fromarray(levels).save(file, 'PNG')
  deep = fingerprints.fingerprint(file.getvalue()).thumbnail.astype(int)
  assert abs(deep - of(photo.convert('L')).thumbnail).max() <= 1


def test_decompression_bombs_are_refused():
  file = io.BytesIO()
  Image.new('1', (15_000, 12_000)).save(file, 'PNG')
  with pytest.raises(Exception, match='pixels'):
    fingerprints.fingerprint(file.getvalue())


def test_features_of_a_mirror_image_need_no_second_look(photo):
  mirrored = photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
  whole = fingerprints.BOXES[:1]
  one, other = (
    fingerprints.features(of(image).thumbnail[None], whole)
    for image in (photo, mirrored)
  )
  np.testing.assert_allclose(
    fingerprints.mirrored_features(one), other, atol=0.01
  )
  np.testing.assert_allclose(np.linalg.norm(one, axis=-1), 1, atol=1e-5)


@pytest.mark.parametrize('seed', range(5))
def test_every_small_cut_is_near_one_of_the_boxes(photo, seed):
  box = np.random.default_rng(seed).uniform(0, 0.1, 4)
  cut = of(evaluation._cut(photo, box)).thumbnail[None]
  whole = of(photo).thumbnail[None]
  query = fingerprints.features(cut, fingerprints.BOXES[:1])[0, 0]
  boxes = fingerprints.features(whole, fingerprints.BOXES)[0]
  assert (boxes @ query).max() > 0.9


def test_alignment_finds_the_cut(photo):
  box = np.array([[0.02, 0.09, 0.04, 0.06]], np.float32)
  thumbnail = of(photo).thumbnail[None]
  cut = of(evaluation._cut(photo, box[0])).thumbnail[None]
  seen = fingerprints.sample(cut, np.zeros([1, 4], np.float32))
  start = np.array([[0.025, 0.075, 0.025, 0.075]], np.float32)
  aligned = fingerprints.align(seen, thumbnail, start)
  np.testing.assert_allclose(aligned, box, atol=0.01)
  distance = [
    fingerprints.distances(seen, fingerprints.sample(thumbnail, boxes))[0]
    for boxes in (start, aligned)
  ]
  assert distance[1] < 0.1 < distance[0]


def test_plain_images_are_told(photo):
  slope = np.tile(np.arange(48, dtype=np.uint8), (48, 1))
  thumbnails = np.stack([of(photo).thumbnail, slope, np.full_like(slope, 9)])
  assert fingerprints.is_plain(thumbnails).tolist() == [False, True, True]
