"""Each operation against Pillow where they agree, and against numpy."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from sklearn import datasets

from vit_jax.data import augment, preprocess, tf

PHOTO = datasets.load_sample_images().images[0][100:260, 200:380]
NOISE = np.random.default_rng(0).integers(0, 256, (20, 31, 3), np.uint8)
DARK = NOISE // 4 + 30
IMAGES = [PHOTO, NOISE, DARK, np.full_like(NOISE, 77)]
FILL = (128,) * 3


def run(op, image, *args):
  out = op(tf.constant(image), *args)
  assert out.dtype == tf.uint8
  assert out.shape == image.shape
  return out.numpy().astype(int)


def pillow(op, image, *args):
  return np.asarray(op(Image.fromarray(image), *args)).astype(int)


def operations(image, magnitude, sign=0, row=0, column=0):
  """Returns the results of all 16 operations."""
  ops = augment._operations(
    tf.constant(image), magnitude / 10, *map(tf.constant, (sign, row, column))
  )
  return [op().numpy().astype(int) for op in ops]


def seeds(number):
  return np.stack([np.arange(number), np.full(number, 7)], 1).astype(np.int32)


@pytest.mark.parametrize('image', IMAGES)
def test_tables_of_values_are_pillows(image):
  equal = np.testing.assert_array_equal
  equal(run(augment.equalize, image), pillow(ImageOps.equalize, image))
  contrasted = run(augment.auto_contrast, image)
  # In float32 some whole numbers are truncated that float64 hits, and others.
  difference = pillow(ImageOps.autocontrast, image) - contrasted
  assert np.abs(difference).max() <= 1
  for bits in (1, 4, 6, 8):
    equal(
      run(augment.posterize, image, 8 - bits),
      pillow(ImageOps.posterize, image, bits),
    )
  for threshold in (0, 100, 128):
    equal(
      run(augment.solarize, image, threshold),
      pillow(ImageOps.solarize, image, threshold),
    )
  for addition in (0, 110, 220, 330):
    added = np.where(
      image < 128, np.minimum(image + float(addition), 255), image
    )
    equal(run(augment.solarize_add, image, addition), added)


@pytest.mark.parametrize('factor', [0.1, 0.5, 1.0, 1.9, 2.8, 3.7])
@pytest.mark.parametrize('image', IMAGES)
def test_enhancements_are_pillows(image, factor):
  def enhance(kind):
    return lambda image: kind(image).enhance(factor)

  brightness = run(augment.brightness, image, factor)
  np.testing.assert_array_equal(
    brightness, pillow(enhance(ImageEnhance.Brightness), image)
  )
  # Greys and smooth images are rounded differently, by 1, which is scaled.
  tolerance = abs(1 - factor) + 1
  for op, kind in (
    (augment.color, ImageEnhance.Color),
    (augment.sharpness, ImageEnhance.Sharpness),
  ):
    difference = np.abs(run(op, image, factor) - pillow(enhance(kind), image))
    assert difference.max() <= tolerance


def test_contrast_blends_with_a_grey_of_the_images_size():
  # 20 * 31 pixels / 256 = 2.4; the published code's mistake, see there.
  expected = np.clip(2 + 1.9 * (NOISE.astype(float) - 2), 0, 255)
  difference = run(augment.contrast, NOISE, 1.9) - expected
  assert -1 <= difference.min() <= difference.max() <= 1e-3
  large = np.zeros((300, 300, 3), np.uint8)
  assert (run(augment.contrast, large, 0.5) == 127).all()


def nearest(image, matrix):
  """Returns the image whose pixel (x, y) is the nearest to matrix (x, y, 1)."""
  height, width = image.shape[:2]
  y, x = np.mgrid[:height, :width]
  points = np.stack([x, y, np.ones_like(x)], -1) @ np.reshape(matrix, (2, 3)).T
  column, row = np.floor(points + 0.5).astype(int).transpose(2, 0, 1)
  inside = (row == row.clip(0, height - 1)) & (
    column == column.clip(0, width - 1)
  )
  moved = image[row.clip(0, height - 1), column.clip(0, width - 1)]
  return np.where(inside[..., None], moved, 128)


def affine(matrix):
  """Returns Pillow's transform; its pixels are at x + 1/2."""
  a, b, c, d, e, f = matrix
  matrix = (a, b, c + (1 - a - b) / 2, d, e, f + (1 - d - e) / 2)
  return lambda image: image.transform(
    image.size, Image.Transform.AFFINE, matrix, fillcolor=FILL
  )


def rotation(image, degrees):
  cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
  y, x = (np.array(image.shape[:2]) - 1) / 2
  return (
    cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y
  )  # fmt: skip


@pytest.mark.parametrize('amount', [0.7, -0.7, 1.5, -1.5])
@pytest.mark.parametrize('image', IMAGES[:2])
def test_what_moves_pixels_takes_the_nearest_as_pillow_does(image, amount):
  for op, argument, matrix in (
    (augment.rotate, 30 * amount, rotation(image, 30 * amount)),
    (augment.shear_x, 0.31 * amount, (1, 0.31 * amount, 0, 0, 1, 0)),
    (augment.shear_y, 0.31 * amount, (1, 0, 0, 0.31 * amount, 1, 0)),
    (augment.translate_x, 10 * amount, (1, 0, 10 * amount, 0, 1, 0)),
    (augment.translate_y, 10 * amount, (1, 0, 0, 0, 1, 10 * amount)),
  ):
    moved = run(op, image, np.float32(argument))
    # What lies between two pixels may go to either.
    assert (moved == nearest(image, matrix)).mean() > 0.99
    assert (moved == pillow(affine(matrix), image)).mean() > 0.99


def test_cutout_is_a_square_within_the_image():
  for row, column in ((10, 15), (0, 30), (19, 0), (20 * 9 + 3, 31 * 5 + 2)):
    y, x = row % 20, column % 31
    expected = NOISE.copy()
    expected[max(y - 4, 0) : y + 4, max(x - 4, 0) : x + 4] = 128
    np.testing.assert_array_equal(
      run(augment.cutout, NOISE, 4, row, column), expected
    )


def test_magnitudes_are_the_published_ones():
  for magnitude, bits, threshold, factor in (
    (0, 1, 0, 0.1), (5, 2, 128, 1.0), (9, 3, 230, 1.72),
    (10, 4, 0, 1.9), (15, 6, 128, 2.8), (20, 8, 0, 3.7),
  ):  # fmt: skip
    level = magnitude / 10
    for sign in (0, 1):

      def signed(most, level=level, sign=sign):
        return np.float32(-most * level if sign else most * level)

      expected = [
        run(augment.auto_contrast, PHOTO),
        run(augment.equalize, PHOTO),
        255 - PHOTO.astype(int),
        run(augment.rotate, PHOTO, signed(30)),
        pillow(ImageOps.posterize, PHOTO, bits),
        pillow(ImageOps.solarize, PHOTO, threshold),
        run(augment.color, PHOTO, factor),
        run(augment.contrast, PHOTO, factor),
        run(augment.brightness, PHOTO, factor),
        run(augment.sharpness, PHOTO, factor),
        run(augment.shear_x, PHOTO, signed(0.3)),
        run(augment.shear_y, PHOTO, signed(0.3)),
        run(augment.translate_x, PHOTO, signed(100)),
        run(augment.translate_y, PHOTO, signed(100)),
        run(augment.cutout, PHOTO, 4 * magnitude, 30, 20),
        run(augment.solarize_add, PHOTO, 11 * magnitude),
      ]
      results = operations(PHOTO, magnitude, sign, 30, 20)
      np.testing.assert_array_equal(results, expected)


def augmented(recipe, image, number, num_threads=4):
  """Returns the image augmented with many seeds, in a pipeline."""
  op = preprocess.parse(recipe, '')
  data = tf.data.Dataset.from_tensor_slices(seeds(number))
  data = data.map(lambda seed: op(image, seed), num_parallel_calls=num_threads)
  assert data.element_spec.shape.rank == 3
  return np.stack(list(data.as_numpy_iterator()))


def test_operations_are_chosen_uniformly():
  number = 1600
  # Large enough for what moves it by 70 pixels.
  image = np.random.default_rng(1).integers(0, 256, (80, 90, 3), np.uint8)
  outputs = augmented('randaugment(1, 7)', image, number)
  known = {
    result.astype(np.uint8).tobytes(): name
    for sign in (0, 1)
    for name, result in enumerate(operations(image, 7, sign))
  }
  cutout = 14  # at many places
  counts = np.bincount(
    [known.get(x.tobytes(), cutout) for x in outputs], minlength=16
  )
  # Chi squared of 15 degrees of freedom is below 37.7 with probability 0.999.
  expected = number / 16
  assert ((counts - expected) ** 2 / expected).sum() < 37.7
  assert len({x.tobytes() for x in outputs}) > 16 + 5 + 50  # signs and places


def test_the_seed_decides_alone():
  recipe = 'randaugment(2, 15)'
  op = preprocess.parse(recipe, '')
  eager = np.stack([op(PHOTO, seed) for seed in seeds(40)])
  for num_threads in (1, 4):
    np.testing.assert_array_equal(
      augmented(recipe, PHOTO, 40, num_threads), eager
    )
  assert len({x.tobytes() for x in eager}) > 30


def test_layers_follow_each_other():
  one, two = (augmented(f'randaugment({n}, 5)', PHOTO, 60) for n in (1, 2))
  assert np.not_equal(one, two).any((1, 2, 3)).sum() > 40


def test_whole_recipes_keep_their_shape():
  for magnitude in (0, 15, 20, 30):
    recipe = f'inception_crop(16)|flip_lr|randaugment(2, {magnitude})'
    op = preprocess.parse(recipe, 'config.train.preprocess')
    image = tf.io.encode_jpeg(PHOTO)
    data = tf.data.Dataset.from_tensor_slices(seeds(20))
    data = data.map(lambda seed, op=op, image=image: op(image, seed))
    assert data.element_spec == tf.TensorSpec([16, 16, 3], tf.uint8)
    assert len(list(data)) == 20


def test_an_image_of_unknown_size():
  op = preprocess.parse('randaugment(2, 15)', '')
  data = tf.data.Dataset.from_tensor_slices(seeds(40))
  data = data.map(lambda seed: op(tf.io.encode_png(PHOTO), seed))
  assert data.element_spec.shape.as_list() == [None, None, 3]
  np.testing.assert_array_equal(
    np.stack(list(data.as_numpy_iterator())),
    augmented('randaugment(2, 15)', PHOTO, 40),
  )


@pytest.mark.parametrize(
  ('recipe', 'message'),
  [
    ('randaugment(0)', 'num_layers=0 is not a positive number of layers'),
    ('randaugment(1.5)', 'num_layers=1.5 is not a positive'),
    ('randaugment(2, -1)', 'magnitude=-1 is not a number of 0 or more'),
    ('randaugment(2, "a")', "magnitude='a' is not a number of 0"),
    ('randaugment(2, 1e999)', 'magnitude=inf is not a number of 0'),
    ('randaugment(2, 15, 3)', 'takes from 0 to 2 positional arguments'),
  ],
)
def test_mistakes_are_explained(recipe, message):
  with pytest.raises(ValueError, match=rf'config\.train.*{message}'):
    preprocess.parse(recipe, 'config.train.preprocess')
