"""Preprocessing ops and the recipes made of them.

A recipe is ops joined by '|', such as 'inception_crop(224)|flip_lr'. An op is
made by a plain function of its arguments and maps (image, seed) to an image:

  image: either a scalar string, an encoded JPEG, PNG, GIF or BMP that has not
    been decoded yet, or uint8 [height, width, 3]. Ops that crop decode only
    what they keep; whatever is still encoded at the end is decoded there.
  seed: int32 [2]. Ops are stateless: the same seed gives the same pixels, on
    any number of threads and machines.

Add an op: one function, and its name in OPS.
"""

import ast

from vit_jax import names
from vit_jax.data import tf


def parse(recipe, field):
  """Returns the function (image, seed) -> uint8 [height, width, 3].

  Args:
    recipe: such as 'inception_crop(224)|flip_lr'; '' only decodes.
    field: where the recipe stands, for errors: 'config.train.preprocess'.

  Raises:
    ValueError: on an op that does not exist, or does not take its arguments.
  """
  steps = recipe.split('|') if recipe.strip() else []
  ops = [_parse_op(step.strip(), field) for step in steps]

  def preprocess(image, seed):
    for position, op in enumerate(ops):
      # Each op has its own randomness.
      op_seed = tf.random.experimental.stateless_fold_in(seed, position)
      image = op(image, op_seed)
    return _decoded(image)

  return preprocess


def _parse_op(text, field):
  """Returns the op that `text` names: 'flip_lr' or 'random_crop(8, pad=1)'."""
  try:
    call = ast.parse(text, mode='eval').body
    if isinstance(call, ast.Name):
      call = ast.Call(func=call, args=[], keywords=[])
    name = call.func.id
    # literal_eval: a recipe holds numbers and strings and runs nothing.
    args = [ast.literal_eval(arg) for arg in call.args]
    kwargs = {k.arg: ast.literal_eval(k.value) for k in call.keywords}
  except (SyntaxError, ValueError, AttributeError, TypeError):
    raise ValueError(
      f"{field}: {text!r} is not an op; write ops like 'resize(224)', joined "
      "by '|'."
    ) from None
  op = names.lookup(OPS, name, field)
  try:
    return op(*args, **kwargs)
  except TypeError as error:
    raise ValueError(f'{field}: {text!r}: {error}.') from None


def decode():
  """Decodes to RGB; ops do this by themselves."""
  return lambda image, seed: _decoded(image)


def inception_crop(size, area_min=0.05, area_max=1.0):
  """Random crop of random area and aspect ratio, resized (1409.4842).

  Args:
    size: side of the square result, in pixels.
    area_min: least share of the image's area, for an aspect ratio in
      [3/4, 4/3].
    area_max: greatest share.
  """
  _check_size(size)
  if not 0 < area_min <= area_max <= 1:
    raise TypeError(
      f'areas {area_min} to {area_max} are not an interval within (0, 1]'
    )

  def op(image, seed):
    begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
      _shape(image),
      tf.zeros([0, 0, 4], tf.float32),
      seed,
      area_range=(area_min, area_max),
      min_object_covered=0,
      use_image_if_no_bounding_boxes=True,
    )
    return _resize(_crop(image, begin[0], begin[1], extent[0], extent[1]), size)

  return op


def resize(size, width=None):
  """Resizes to [size, size, 3], or [size, width, 3], whatever the aspect."""
  _check_size(size)
  if width is not None:
    _check_size(width)
  return lambda image, seed: _resize(_decoded(image), size, width)


def resize_small(size):
  """Resizes so that the smaller side is `size`, and keeps the aspect ratio."""
  _check_size(size)

  def op(image, seed):
    del seed
    image = _decoded(image)
    shape = tf.cast(tf.shape(image)[:2], tf.float32)
    scaled = tf.round(shape * size / tf.reduce_min(shape))
    return _to_uint8(tf.image.resize(image, tf.cast(scaled, tf.int32)))

  return op


def central_crop(size):
  """Cuts [size, size, 3] from the middle; the image has to be as large."""
  _check_size(size)

  def op(image, seed):
    del seed
    height, width = _sides(image)
    return _crop_square(image, (height - size) // 2, (width - size) // 2, size)

  return op


def random_crop(size, padding=0):
  """Cuts [size, size, 3] from a random place.

  Args:
    size: side of the result, in pixels.
    padding: black pixels added at every side before.
  """
  _check_size(size)

  def op(image, seed):
    if padding:
      image = tf.pad(_decoded(image), [[padding] * 2, [padding] * 2, [0, 0]])
    height, width = _sides(image)
    # 2**24 steps are more than any image has rows; modulo is fair enough.
    place = tf.random.stateless_uniform([2], seed, 0, 2**24, tf.int32)
    top = place[0] % tf.maximum(height - size + 1, 1)
    left = place[1] % tf.maximum(width - size + 1, 1)
    return _crop_square(image, top, left, size)

  return op


def flip_lr():
  """Mirrors left and right with probability 1/2."""

  def op(image, seed):
    return tf.image.stateless_random_flip_left_right(_decoded(image), seed)

  return op


OPS = {
  'central_crop': central_crop,
  'decode': decode,
  'flip_lr': flip_lr,
  'inception_crop': inception_crop,
  'random_crop': random_crop,
  'resize': resize,
  'resize_small': resize_small,
}


def _check_size(size):
  if not isinstance(size, int) or size < 1:
    raise TypeError(f'size={size!r} is not a positive number of pixels')


def _is_encoded(image):
  return image.dtype == tf.string


def _decoded(image):
  """Returns uint8 [height, width, 3], decoding the image if it is encoded."""
  if not _is_encoded(image):
    return image
  image = tf.io.decode_image(image, channels=3, expand_animations=False)
  return tf.ensure_shape(image, [None, None, 3])


def _shape(image):
  """Returns [height, width, 3] without decoding where that is possible."""
  if not _is_encoded(image):
    return tf.shape(image)
  return tf.cond(
    tf.io.is_jpeg(image),
    lambda: tf.io.extract_jpeg_shape(image),
    lambda: tf.shape(_decoded(image)),
  )


def _sides(image):
  shape = _shape(image)
  return shape[0], shape[1]


def _crop(image, top, left, height, width):
  """Returns the cut-out; of a JPEG, only that part is decoded."""
  if not _is_encoded(image):
    return image[top : top + height, left : left + width]
  return tf.cond(
    tf.io.is_jpeg(image),
    lambda: tf.io.decode_and_crop_jpeg(
      image, tf.stack([top, left, height, width]), channels=3
    ),
    lambda: _decoded(image)[top : top + height, left : left + width],
  )


def _crop_square(image, top, left, size):
  too_small = (
    f'An image is smaller than its crop of {size} pixels; put '
    f'resize_small({size}) before the crop.'
  )
  if not _is_encoded(image) and any(
    side is not None and side < size for side in image.shape[:2]
  ):
    raise ValueError(too_small)
  fits = tf.debugging.assert_greater_equal(
    tf.reduce_min(_shape(image)[:2]),
    size,
    too_small,
  )
  # Eager execution has raised already, and has nothing to depend on.
  with tf.control_dependencies([fits] if fits is not None else []):
    image = _crop(image, top, left, size, size)
  return tf.ensure_shape(image, [size, size, 3])


def _resize(image, size, width=None):
  return _to_uint8(tf.image.resize(image, [size, width or size]))  # bilinear


def _to_uint8(image):
  # Bilinear resizing does not leave [0, 255]; the cast truncates.
  return tf.cast(image + 0.5, tf.uint8)
