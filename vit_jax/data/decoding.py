"""From encoded images to pixels, no more of them than are needed.

An image is either a scalar string, an encoded JPEG or PNG, or uint8 [height,
width, 3].
"""

from vit_jax.data import tf

# Of an image that is decoded, 360 MB; phones make up to 108 million.
MAX_PIXELS = 120_000_000
_LARGE = 20_000_000  # pixels, whose floats take a lot of memory


def is_encoded(image):
  return image.dtype == tf.string


def checked(condition, text):
  """Within it, ops run only if a condition holds, or the text is an error."""
  check = tf.debugging.Assert(condition, [text])
  # Eager execution has raised already, and has nothing to depend on.
  return tf.control_dependencies([] if check is None else [check])


def decoded(image):
  """Returns uint8 [height, width, 3], decoding the image if it is encoded."""
  if not is_encoded(image):
    return image

  def of_jpeg():
    with _checked_size(tf.io.extract_jpeg_shape(image)):
      return tf.io.decode_jpeg(image, channels=3)

  def of_png():
    # Of what is no PNG the decoder says so.
    header = tf.strings.substr(tf.strings.join([image, bytes(24)]), 16, 8)
    shape = tf.io.decode_raw(header, tf.int32, little_endian=False)
    with _checked_size(shape):
      return tf.io.decode_png(image, channels=3)

  image = tf.cond(tf.io.is_jpeg(image), of_jpeg, of_png)
  return tf.ensure_shape(image, [None, None, 3])


def _checked_size(shape):
  """Within it, an image is decoded only if it is no decompression bomb."""
  size = tf.reduce_prod(tf.cast(shape[:2], tf.int64))
  return checked(
    size <= MAX_PIXELS,
    f'The image has more than {MAX_PIXELS:,} pixels, the most that is decoded.',
  )


def crop(image, window):
  """Returns the cut-out; of a JPEG, only that part is decoded.

  Args:
    image: encoded or not.
    window: function from its shape, int32 [3], to [top, left, height, width].
  """

  def of_jpeg():
    shape = tf.io.extract_jpeg_shape(image)
    with _checked_size(shape):
      box = window(shape)
    return tf.io.decode_and_crop_jpeg(image, box, channels=3)

  def of_any():
    pixels = decoded(image)
    top, left, height, width = tf.unstack(window(tf.shape(pixels)))
    return pixels[top : top + height, left : left + width]

  if not is_encoded(image):
    return of_any()
  return tf.cond(tf.io.is_jpeg(image), of_jpeg, of_any)


def scaled(image, shape):
  """Returns an image in another size, by bilinear interpolation."""

  def as_floats():
    # The kernel for floats takes half the time of the one for bytes, and gives
    # the same.
    return tf.image.resize(tf.cast(image, tf.float32), shape)

  def as_bytes():
    return tf.image.resize(image, shape)

  is_large = tf.size(image) > 3 * _LARGE
  image = tf.cond(is_large, as_bytes, as_floats)
  # It does not leave [0, 255]; the cast truncates.
  return tf.cast(image + 0.5, tf.uint8)
