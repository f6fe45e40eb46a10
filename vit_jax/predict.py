"""Says what is in images.

  python -m vit_jax.predict --checkpoint=PATH_OR_NAME IMAGE_OR_FOLDER...
  python -m vit_jax.predict --checkpoint=... --json photos/ > predictions.jsonl

Folders are searched for BMP, GIF, JPEG, PNG and WebP files, subfolders too.
Probabilities are a softmax over all classes. With --json each image is one
line: {"image": path, "predictions": [{"class": 0, "label": "tench, Tinca
tinca", "probability": 0.9}, ...]} or {"image": path, "error": text}. Images
that cannot be read are reported on stderr and skipped.

Exit code: 0 if all images were predicted, 2 if there was no image at all, 1 if
some could not be read or something else was wrong.
"""

import functools
import itertools
import json
import os
import re
import sys

import jax
import numpy as np
from absl import app, flags

from vit_jax import command_line, models
from vit_jax.data import images, preprocess, tf

_CHECKPOINT = flags.DEFINE_string(
  'checkpoint', None, 'The model: path of a checkpoint, or a published name.'
)
_TOP_K = flags.DEFINE_integer(
  'top_k', 5, 'Number of classes named for each image.', lower_bound=1
)
_BATCH_SIZE = flags.DEFINE_integer(
  'batch_size', 32, 'Number of images computed at a time.', lower_bound=1
)
_IMAGE_SIZE = flags.DEFINE_integer(
  'image_size',
  None,
  'Side of the images as the model sees them, in pixels; by default the one '
  'that the checkpoint was made for.',
  lower_bound=1,
)
_JSON = flags.DEFINE_bool(
  'json', False, 'One JSON object a line, for programs.'
)

_BAR_WIDTH = 20


def main(argv):
  """Prints what is in images."""
  command_line.be_brief()
  command_line.print_any_name()
  paths = images.find(argv[1:])
  first = next(paths, None)
  if first is None:
    print(
      'Error: there is no image to predict; name image files, or folders with '
      f'files that end in {", ".join(images.EXTENSIONS)}.',
      file=sys.stderr,
    )
    sys.exit(2)
  from vit_jax import weights

  with command_line.one_line_errors():
    checkpoint = weights.load_checkpoint(_CHECKPOINT.value, _IMAGE_SIZE.value)
    results = predict(
      checkpoint,
      itertools.chain([first], paths),
      _TOP_K.value,
      _BATCH_SIZE.value,
    )
  try:
    _print(results)
  except BrokenPipeError:  # `... | head` has seen enough
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(1)


def _print(results):
  num_images = num_bad = 0
  for result in results:
    num_images += 1
    if 'error' in result:
      num_bad += 1
      print(f'{result["image"]}: {result["error"]}', file=sys.stderr)
    if _JSON.value:
      print(json.dumps(result), flush=True)
    elif 'error' not in result:
      print(_block(result), flush=True)
  if num_bad:
    sys.exit(f'Error: {num_bad:,} of {num_images:,} images could not be read.')


def _block(result):
  """Returns a result as people look at it: a bar for each class."""
  encoding = (sys.stdout.encoding or '').lower()
  full = '█' if encoding.startswith('utf') else '#'
  lines = [result['image']]
  for row in result['predictions']:
    bar = full * round(row['probability'] * _BAR_WIDTH)
    lines.append(
      f'  {row["probability"]:6.1%}  {bar:{_BAR_WIDTH}}  {row["label"]}'
    )
  return '\n'.join(lines) + '\n'


def predict(checkpoint, paths, top_k=5, batch_size=32):
  """Returns an iterator over one dict for each image, in order.

  Each has 'image', the path, and either 'error', a str, or 'predictions', a
  list of dicts 'class' (int), 'label' (str) and 'probability' (float; softmax),
  the most probable first.

  Args:
    checkpoint: a `weights.Checkpoint`.
    paths: iterable of paths of image files, consumed batch by batch.
    top_k: number of classes named, or all C if there are fewer.
    batch_size: number of images computed at a time.

  Raises:
    ValueError: if the model has no head, or other classes than there are names.
  """
  read = _reader(checkpoint)
  classify, C = _classifier(checkpoint, top_k)
  class_names = _class_names(checkpoint.labels, C)

  def results():
    remaining = iter(paths)
    batch = list(itertools.islice(remaining, batch_size))
    # One shape, compiled once; a first batch that is smaller is the only one.
    B = len(batch)
    while batch:
      pixels = np.zeros([B, *checkpoint.image_size, 3], np.uint8)
      errors = {}
      for row, path in enumerate(batch):
        try:
          pixels[row] = read(path)
        except Exception as error:  # decoders of damaged files raise anything
          errors[row] = images.in_words(error)
      probabilities, classes = jax.device_get(classify(pixels))
      for row, path in enumerate(batch):
        if row in errors:
          yield {'image': path, 'error': errors[row]}
          continue
        top = zip(
          classes[row].tolist(), probabilities[row].tolist(), strict=True
        )
        yield {
          'image': path,
          'predictions': [
            {'class': c, 'label': class_names[c], 'probability': p}
            for c, p in top
          ],
        }
      batch = list(itertools.islice(remaining, B))

  return results()


def _classifier(checkpoint, top_k):
  """Returns a function from uint8 [B, height, width, 3], and C.

  The function returns probabilities, float32 [B, k], the highest first, and
  their classes, int32 [B, k], where k is `top_k` or C.
  """

  def logits(params, pixels):
    x = models.scale_pixels(pixels)
    return checkpoint.model.apply({'params': params}, x)[0]

  spec = jax.ShapeDtypeStruct((1, *checkpoint.image_size, 3), np.uint8)
  output = jax.eval_shape(logits, checkpoint.params, spec)
  if output is None:
    raise ValueError(
      "The checkpoint's model has no head, so it names no classes; use a "
      'checkpoint with a head.'
    )
  C = output.shape[-1]

  @jax.jit
  def top_classes(params, pixels):
    probabilities = jax.nn.softmax(logits(params, pixels))
    return jax.lax.top_k(probabilities, min(top_k, C))

  return functools.partial(top_classes, checkpoint.params), C


def _class_names(class_names, C):
  """Returns C names: those of the checkpoint, or numbers."""
  if class_names is None:
    return tuple(f'class {c}' for c in range(C))
  if len(class_names) != C:
    raise ValueError(
      f'The checkpoint names {len(class_names)} classes, but its model has '
      f'{C}; save it with one name for each class.'
    )
  return class_names


def _reader(checkpoint):
  """Returns the function from a path to uint8 [height, width, 3]."""
  text = checkpoint.preprocess
  if not re.search(r'\(\s*\d', text):  # of images that have the right size
    height, width = checkpoint.image_size
    text = '|'.join(filter(None, [text, f'resize({height}, {width})']))
  recipe = preprocess.parse(text, 'checkpoint.preprocess')
  expected = (*checkpoint.image_size, 3)
  seed = np.zeros(2, np.int32)

  def read(path):
    image = recipe(tf.constant(images.read(path)), seed).numpy()
    if image.shape != expected:
      raise ValueError(
        f'{checkpoint.preprocess!r} makes it {image.shape}, but the model '
        f'takes {expected}'
      )
    return image

  return read


if __name__ == '__main__':
  flags.mark_flag_as_required('checkpoint')
  app.run(main, flags_parser=command_line.parse_flags)
