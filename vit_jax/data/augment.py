"""RandAugment (1909.13719), as the models of AugReg (2106.10270) saw it.

Random operations, each applied to a whole image. Their order, ranges and
oddities are those of the implementation that EfficientNet on TPU, big_vision
and AugReg share (`autoaugment.py`): what a magnitude means is what the
published settings, such as (2, 15), were found with. An op at magnitude m gets
an argument of m / 10, which may be above 1.

Images are uint8 [height, width, 3] tensors, and keep their shape.
"""

import math

from vit_jax.data import tf

_FILL = 128  # what is uncovered or cut out becomes grey


def randaugment(num_layers=2, magnitude=10):
  """Returns the op (image, seed) -> image, uint8 [height, width, 3].

  Each layer applies one of 16 operations, chosen uniformly, always.

  Args:
    num_layers: how many operations follow each other.
    magnitude: how strong they are, mostly 0 to 20. 0 is not nothing:
      AutoContrast, Equalize and Invert have no strength, the enhancements are
      far from the image at both ends, and Posterize leaves one bit.

  Raises:
    TypeError: on a number out of range.
  """
  if not isinstance(num_layers, int) or num_layers < 1:
    raise TypeError(
      f'num_layers={num_layers!r} is not a positive number of layers'
    )
  if not isinstance(magnitude, int | float) or not 0 <= magnitude < math.inf:
    raise TypeError(f'magnitude={magnitude!r} is not a number of 0 or more')

  def op(image, seed):
    image = tf.convert_to_tensor(image)
    shape = image.shape
    # 2**24 divides by 2 and 16, so these choices are exactly uniform; of pixels
    # it is as good as that.
    draws = tf.random.stateless_uniform(
      [num_layers, 4], seed, 0, 2**24, tf.int32
    )
    for layer in range(num_layers):
      choice, sign, row, column = tf.unstack(draws[layer])
      image = tf.switch_case(
        choice % 16, _operations(image, magnitude / 10, sign, row, column)
      )
      image = tf.ensure_shape(image, shape)
    return image

  return op


def _operations(image, level, sign, row, column):
  """Returns the 16 operations as functions of nothing, of which one runs.

  Args:
    image: what they apply to.
    level: magnitude / 10.
    sign: random int32 scalar, for the operations that go either way.
    row: random int32 scalar, for the place of a cutout.
    column: the same.
  """
  sign = 1 - 2 * _float(sign % 2)
  enhanced = 0.1 + 1.8 * level
  # The published code writes these two into a uint8, where they wrap around:
  # Solarize inverts the whole image at 10 and 20 and half of it at 15, and
  # Posterize keeps all bits at 20. AugReg's settings were found so.
  threshold = int(level * 256) % 256
  dropped_bits = (8 - int(level * 4)) % 256
  return [
    lambda: auto_contrast(image),
    lambda: equalize(image),
    lambda: 255 - image,
    lambda: rotate(image, sign * (30 * level)),
    lambda: posterize(image, dropped_bits),
    lambda: solarize(image, threshold),
    lambda: color(image, enhanced),
    lambda: contrast(image, enhanced),
    lambda: brightness(image, enhanced),
    lambda: sharpness(image, enhanced),
    lambda: shear_x(image, sign * (0.3 * level)),
    lambda: shear_y(image, sign * (0.3 * level)),
    # In pixels, whatever the size of the image: made for sides of 224.
    lambda: translate_x(image, sign * (100 * level)),
    lambda: translate_y(image, sign * (100 * level)),
    lambda: cutout(image, int(level * 40), row, column),
    lambda: solarize_add(image, int(level * 110)),
  ]


def auto_contrast(image):
  """Stretches each channel to [0, 255]; a constant channel stays."""
  low = _float(tf.reduce_min(image, [0, 1]))
  high = _float(tf.reduce_max(image, [0, 1]))
  scale = tf.where(high > low, 255 / tf.maximum(high - low, 1), 1)
  shift = tf.where(high > low, low * scale, 0)
  return _clip(_float(image) * scale - shift)


def equalize(image):
  """Maps each channel so that its values are about equally frequent."""
  # One table for all: each channel has 256 numbers of its own.
  values = tf.cast(image, tf.int32) + tf.constant([0, 256, 512])
  counts = tf.reshape(tf.math.bincount(values, minlength=768), [3, 256])
  highest = tf.cast(tf.reduce_max(image, [0, 1]), tf.int32)
  # As Pillow has it: the highest value does not count for the step.
  step = tf.reduce_sum(counts, 1) - tf.gather(counts, highest, batch_dims=1)
  step = (step // 255)[:, None]
  below = tf.cumsum(counts, axis=1, exclusive=True)
  table = tf.minimum((below + step // 2) // tf.maximum(step, 1), 255)
  table = tf.where(step > 0, table, tf.range(256))
  return tf.gather(tf.reshape(tf.cast(table, tf.uint8), [-1]), values)


def rotate(image, degrees):
  """Rotates about the middle; `degrees` is a float32 scalar."""
  radians = degrees * (math.pi / 180)
  cos, sin = tf.cos(radians), tf.sin(radians)
  last_y, last_x, _ = tf.unstack(_float(tf.shape(image)) - 1)
  x = (last_x - (cos * last_x - sin * last_y)) / 2
  y = (last_y - (sin * last_x + cos * last_y)) / 2
  return _transform(image, [cos, -sin, x, sin, cos, y])


def shear_x(image, slope):
  """Moves row y to the left by y `slope` pixels."""
  return _transform(image, [1, slope, 0, 0, 1, 0])


def shear_y(image, slope):
  """Moves column x up by x `slope` pixels."""
  return _transform(image, [1, 0, 0, slope, 1, 0])


def translate_x(image, pixels):
  """Moves the image to the left."""
  return _transform(image, [1, 0, pixels, 0, 1, 0])


def translate_y(image, pixels):
  """Moves the image up."""
  return _transform(image, [1, 0, 0, 0, 1, pixels])


def posterize(image, dropped_bits):
  """Sets the lowest bits to 0, but for the highest bit of all."""
  dropped_bits = min(dropped_bits, 7)  # as far as TensorFlow shifts a uint8
  return image & (256 - 2**dropped_bits)


def solarize(image, threshold):
  """Inverts the values from `threshold` on."""
  # tf.where over pixels takes three times as long. 255 - x is x ^ 255.
  return image ^ (255 * tf.cast(image >= threshold, tf.uint8))


def solarize_add(image, addition):
  """Adds to the values below 128."""
  added = tf.minimum(255 - image, min(addition, 255))
  return image + added * tf.cast(image < 128, tf.uint8)


def color(image, factor):
  """Blends with the grey image: 0 is grey, 1 the image, 2 more colourful."""
  return _blend(tf.image.rgb_to_grayscale(image), image, factor)


def contrast(image, factor):
  """Blends with a grey that depends on the image's size.

  It is not the mean brightness that Pillow blends with: the published code
  averages the histogram's counts, not the values, so its grey is the number of
  pixels / 256, at most 255: 196 for an image of 224 x 224.
  """
  grey = _float(tf.size(image) // 3) / 256
  return _blend(tf.floor(tf.minimum(grey, 255)), image, factor)


def brightness(image, factor):
  """Blends with black: 0 is black, 1 the image, 2 twice as bright."""
  return _blend(0, image, factor)


def sharpness(image, factor):
  """Blends with a smooth image, but for the border, which stays."""
  kernel = tf.constant([[1, 1, 1], [1, 5, 1], [1, 1, 1]], tf.float32) / 13
  smooth = tf.nn.depthwise_conv2d(
    _float(image)[None],
    tf.tile(kernel[:, :, None, None], [1, 1, 3, 1]),
    strides=[1, 1, 1, 1],
    padding='VALID',
  )[0]
  blended = _blend(_clip(smooth), image[1:-1, 1:-1], factor)
  middle = tf.concat([image[1:-1, :1], blended, image[1:-1, -1:]], 1)
  return tf.concat([image[:1], middle, image[-1:]], 0)


def cutout(image, half, row, column):
  """Greys a square of side 2 `half`, or what of it is within the image.

  Args:
    image: uint8 [height, width, 3].
    half: in pixels.
    row: int32 scalar of 0 or more; modulo the height, the square's middle.
    column: the same of the width.
  """
  height, width = tf.unstack(tf.shape(image)[:2])
  row, column = row % height, column % width
  top, bottom = tf.maximum(row - half, 0), tf.minimum(row + half, height)
  left, right = tf.maximum(column - half, 0), tf.minimum(column + half, width)
  square = tf.fill([bottom - top, right - left, 3], tf.cast(_FILL, tf.uint8))
  band = image[top:bottom]
  band = tf.concat([band[:, :left], square, band[:, right:]], 1)
  return tf.concat([image[:top], band, image[bottom:]], 0)


def _transform(image, matrix):
  """Returns the image whose pixel (x, y) is the nearest to `matrix` (x, y, 1).

  Args:
    image: uint8 [height, width, 3].
    matrix: six float scalars, two rows of three.
  """
  return tf.raw_ops.ImageProjectiveTransformV3(
    images=image[None],
    transforms=tf.stack([*map(_float, matrix), 0.0, 0.0])[None],
    output_shape=tf.shape(image)[:2],
    fill_value=float(_FILL),
    interpolation='NEAREST',
    fill_mode='CONSTANT',
  )[0]


def _float(x):
  return tf.cast(x, tf.float32)


def _blend(start, image, factor):
  """Returns start + factor (image - start), within [0, 255]."""
  if factor == 1:
    return image
  start = _float(start)
  return _clip(start + factor * (_float(image) - start))


def _clip(x):
  return tf.cast(tf.clip_by_value(x, 0, 255), tf.uint8)  # truncates
