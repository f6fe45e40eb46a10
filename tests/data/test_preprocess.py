import numpy as np
import pytest

from vit_jax.data import preprocess, tf

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (20, 30, 3)).astype(np.uint8)
SEEDS = [np.array([0, s], np.int32) for s in range(20)]


def apply(recipe, image=IMAGE, seed=SEEDS[0]):
  op = preprocess.parse(recipe, 'config.train.preprocess')
  return np.asarray(op(image, seed))


def jpeg(image):
  return tf.io.encode_jpeg(image, quality=95)


def test_empty_recipe_decodes():
  np.testing.assert_array_equal(apply(''), IMAGE)
  png = tf.io.encode_png(IMAGE)
  np.testing.assert_array_equal(apply('decode', png), IMAGE)
  grey = tf.io.encode_png(IMAGE[..., :1])
  np.testing.assert_array_equal(apply('', grey), IMAGE[..., :1].repeat(3, -1))


def test_central_crop_is_the_middle():
  np.testing.assert_array_equal(apply('central_crop(10)'), IMAGE[5:15, 10:20])


def test_random_crop_is_a_window_at_every_place():
  windows = {
    IMAGE[i : i + 18, j : j + 18].tobytes(): (i, j)
    for i in range(3)
    for j in range(13)
  }
  places = [windows[apply('random_crop(18)', seed=s).tobytes()] for s in SEEDS]
  assert {i for i, _ in places} == {0, 1, 2}
  assert len({j for _, j in places}) > 5


def test_random_crop_pads():
  cropped = apply('random_crop(22, padding=1)', IMAGE[:, :20])
  np.testing.assert_array_equal(cropped[1:21, 1:21], IMAGE[:, :20])
  assert not cropped[0].any()


def test_flip_lr_half_of_the_time():
  flips = [apply('flip_lr', seed=s) for s in SEEDS]
  mirrored = [np.array_equal(x, IMAGE[:, ::-1]) for x in flips]
  assert all(
    m or np.array_equal(x, IMAGE) for m, x in zip(mirrored, flips, strict=True)
  )
  assert 3 < sum(mirrored) < 17


def test_resize_is_bilinear():
  ramp = np.tile(np.arange(4, dtype=np.uint8)[:, None, None] * 60, (1, 4, 3))
  doubled = apply('resize(8)', ramp)
  assert doubled.dtype == np.uint8
  # Pixel centres: row r of 8 is at r / 2 - 1/4 of 4.
  np.testing.assert_array_equal(
    doubled[:, 0, 0], [0, 15, 45, 75, 105, 135, 165, 180]
  )


def test_resize_small_keeps_the_aspect_ratio():
  assert apply('resize_small(10)').shape == (10, 15, 3)
  assert apply('resize_small(10)', IMAGE.swapaxes(0, 1)).shape == (15, 10, 3)


def test_inception_crop_of_everything_is_resize():
  crop = 'inception_crop(16, area_min=1.0)'
  square = IMAGE[:, :20]
  np.testing.assert_array_equal(
    apply(crop, square), apply('resize(16)', square)
  )


def test_inception_crop_areas_are_in_range():
  # On a picture of its own coordinates the crop shows where it came from.
  rows, columns = np.meshgrid(np.arange(200), np.arange(200), indexing='ij')
  image = np.stack([rows, columns, rows], -1).astype(np.uint8)
  for seed in SEEDS:
    crop = apply('inception_crop(50, area_min=0.25, area_max=0.5)', image, seed)
    height, width = np.ptp(crop.astype(int), axis=(0, 1))[:2] + 4
    assert 0.2 < height * width / 200**2 < 0.55
    assert 0.65 < width / height < 1.5


@pytest.mark.parametrize(
  'recipe', ['inception_crop(12)', 'random_crop(12)', 'central_crop(12)']
)
def test_cropping_while_decoding_is_cropping_after(recipe):
  encoded = jpeg(IMAGE)
  for seed in SEEDS[:4]:
    fused = apply(recipe, encoded, seed).astype(int)
    whole = apply(recipe, apply('', encoded), seed).astype(int)
    # The decoder smooths colour over the crop's border differently.
    assert np.abs(fused - whole)[1:-1, 1:-1].mean() < 4


def test_the_seed_decides():
  recipe = 'inception_crop(16)|flip_lr'
  np.testing.assert_array_equal(apply(recipe), apply(recipe))
  assert (apply(recipe) != apply(recipe, seed=SEEDS[1])).any()


@pytest.mark.parametrize(
  ('recipe', 'message'),
  [
    ('flip', r"config.train.preprocess='flip' .*mean 'flip_lr'"),
    ('resize(8', "'resize\\(8' is not an op; write ops like"),
    ('resize(8)||flip_lr', "'' is not an op"),
    ('resize(open("x"))', 'is not an op'),
    ('resize()', "'resize\\(\\)': resize\\(\\) missing 1 required"),
    ('resize(8, zoom=2)', "unexpected keyword argument 'zoom'"),
    ('inception_crop(8, area_min=2)', 'areas 2 to 1.0 are not an interval'),
    ('resize(0)', 'size=0 is not a positive number of pixels'),
    ('resize("a")', "size='a' is not a positive number of pixels"),
  ],
)
def test_mistakes_are_explained(recipe, message):
  with pytest.raises(ValueError, match=message):
    preprocess.parse(recipe, 'config.train.preprocess')


def test_a_crop_larger_than_the_image_is_explained():
  with pytest.raises(ValueError, match=r'smaller than .* put resize_small\(21'):
    apply('central_crop(21)')
  with pytest.raises(tf.errors.InvalidArgumentError, match='resize_small'):
    apply('central_crop(21)', jpeg(IMAGE))
