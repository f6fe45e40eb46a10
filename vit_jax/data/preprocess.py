"""Preprocessing ops and the recipes made of them.

A recipe is ops joined by '|', such as 'inception_crop(224)|flip_lr'. An op is
made by a plain function of its arguments and maps (image, seed) to an image:

  image: either a scalar string, an encoded JPEG or PNG that has not been
    decoded yet (`images.standard` makes them of other formats), or uint8
    [height, width, 3]. Ops that crop decode only what they keep; whatever is
    still encoded at the end is decoded there.
  seed: int32 [2]. Ops are stateless: the same seed gives the same pixels, on
    any number of threads and machines.

Add an op: one function, and its name in OPS.
"""

import ast

from vit_jax import names
from vit_jax.data import augment, decoding, tf

MAX_PIXELS = decoding.MAX_PIXELS


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
      image = op(image, _seed_of_op(seed, position))
    return decoding.decoded(image)

  return preprocess


def _seed_of_op(seed, position):
  """Returns an own seed for each op of a recipe: another key, another stream.

  The generators scramble their key, so that flipping bits of it is enough; to
  fold the position in takes 3% of the time of an image.
  """
  if not position:
    return seed
  bits = position * 0x9E3779B9 % 2**31
  return tf.bitwise.bitwise_xor(seed, [bits, bits])


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
  return lambda image, seed: decoding.decoded(image)


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

  def crop(shape, seed):
    begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
      shape,
      tf.zeros([0, 0, 4], tf.float32),
      seed,
      area_range=(area_min, area_max),
      min_object_covered=0,
      use_image_if_no_bounding_boxes=True,
    )
    return tf.concat([begin[:2], extent[:2]], 0)

  def op(image, seed):
    return _resize(decoding.crop(image, lambda shape: crop(shape, seed)), size)

  return op


def resize(size, width=None):
  """Resizes to [size, size, 3], or [size, width, 3], whatever the aspect."""
  _check_size(size)
  if width is not None:
    _check_size(width)
  return lambda image, seed: _resize(decoding.decoded(image), size, width)


def resize_small(size):
  """Resizes so that the smaller side is `size`, and keeps the aspect ratio."""
  _check_size(size)

  def op(image, seed):
    del seed
    image = decoding.decoded(image)
    shape = tf.cast(tf.shape(image)[:2], tf.float32)
    scaled = tf.round(shape * size / tf.reduce_min(shape))
    return decoding.scaled(image, tf.cast(scaled, tf.int32))

  return op


def central_crop(size):
  """Cuts [size, size, 3] from the middle; the image has to be as large."""
  _check_size(size)

  def op(image, seed):
    del seed
    return _crop_square(image, size, lambda spare: spare // 2)

  return op


def random_crop(size, padding=0):
  """Cuts [size, size, 3] from a random place.

  Args:
    size: side of the result, in pixels.
    padding: black pixels added at every side before.
  """
  _check_size(size)
  if not isinstance(padding, int) or padding < 0:
    raise TypeError(f'padding={padding!r} is not a number of pixels')

  def op(image, seed):
    if padding:
      image = tf.pad(
        decoding.decoded(image), [[padding] * 2, [padding] * 2, [0, 0]]
      )
    # 2**24 steps are more than any image has rows; modulo is fair enough.
    place = tf.random.stateless_uniform([2], seed, 0, 2**24, tf.int32)
    return _crop_square(image, size, lambda spare: place % (spare + 1))

  return op


def flip_lr():
  """Mirrors left and right with probability 1/2."""

  def op(image, seed):
    return tf.image.stateless_random_flip_left_right(
      decoding.decoded(image), seed
    )

  return op


def randaugment(num_layers=2, magnitude=10):
  """Random distortions, see `augment.randaugment`."""
  op = augment.randaugment(num_layers, magnitude)
  return lambda image, seed: op(decoding.decoded(image), seed)


OPS = {
  'central_crop': central_crop,
  'decode': decode,
  'flip_lr': flip_lr,
  'inception_crop': inception_crop,
  'randaugment': randaugment,
  'random_crop': random_crop,
  'resize': resize,
  'resize_small': resize_small,
}


def _check_size(size):
  if not isinstance(size, int) or size < 1:
    raise TypeError(f'size={size!r} is not a positive number of pixels')


def _crop_square(image, size, corner):
  """Returns a cut-out [size, size, 3].

  Args:
    image: encoded or not.
    size: its side.
    corner: function from the pixels to spare, int32 [2], to [top, left].
  """
  too_small = (
    f'An image is smaller than its crop of {size} pixels; put '
    f'resize_small({size}) before the crop.'
  )
  if not decoding.is_encoded(image) and any(
    side is not None and side < size for side in image.shape[:2]
  ):
    raise ValueError(too_small)

  def window(shape):
    spare = shape[:2] - size
    with decoding.checked(tf.reduce_min(spare) >= 0, too_small):
      return tf.concat([corner(spare), [size, size]], 0)

  return tf.ensure_shape(decoding.crop(image, window), [size, size, 3])


def _resize(image, size, width=None):
  return decoding.scaled(image, [size, width or size])
