"""Weights of any origin: found, read, named, fitted, written.

  import vit_jax
  model, params = vit_jax.load('ViT-B_16.npz')
  logits, features = model.apply({'params': params}, images)

`load` reads runs of this project, `.npz` of every generation, `.safetensors`
of timm and Hugging Face, and public weights by name. The architecture follows
from the file. Loading is strict: what does not fit is an error that shows it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import models, names
from vit_jax.weights import adapt, describe, report
from vit_jax.weights import source as sources
from vit_jax.weights.writing import save

__all__ = ['Checkpoint', 'load', 'load_checkpoint', 'load_into', 'save']


class Checkpoint(NamedTuple):
  """A model, its weights, and how to use them.

  Attributes:
    model: a linen module, see `vit_jax.models`.
    params: tree of float32 numpy arrays.
    image_size: (height, width) that the weights were made for, or were resized
      to.
    preprocess: recipe that makes images for it, see `data.preprocess`.
    labels: tuple of class names, or None if they are not known.
    report: list of report.Line: what became of each array of the file.
  """

  model: Any
  params: Any
  image_size: tuple[int, int]
  preprocess: str
  labels: tuple[str, ...] | None
  report: list


def load(path, **kwargs):
  """Returns (model, params); arguments and errors as of `load_checkpoint`."""
  checkpoint = load_checkpoint(path, **kwargs)
  return checkpoint.model, checkpoint.params


def load_checkpoint(
  path,
  image_size=None,
  num_classes=None,
  head=None,
  grid=None,
  resize='linear',
  reset=(),
  **overrides,
):
  """Returns the Checkpoint at a path or of a name.

  Args:
    path: a name in `public.WEIGHTS` (downloaded once); a `.npz` or
      `.safetensors` file, or a folder that holds `model.safetensors`; a run's
      folder, its `checkpoints/`, or one checkpoint. Local or gs://.
    image_size: side of the images, or (height, width), if it is not the file's:
      position embeddings are resized.
    num_classes: of a new head, which starts at 0; without the tanh layer before
      it, if there is one. 0 for no head at all.
    head: 'token', 'gap' or 'map', if it is not the file's; see `models.vit`.
    grid: (rows, columns) of the file's patches, if they are no square.
    resize: 'linear' or 'cubic', see `adapt`.
    reset: regular expressions of parameters not to take from the file.
    **overrides: arguments of the model's build function that the file does not
      show, such as num_heads=6, gelu='tanh' or dtype='bfloat16'; and mean, std
      of the pixels in [0, 1] that a PyTorch model takes, else [-1, 1].

  Raises:
    ValueError: if there is nothing there, it is damaged or of no known layout,
      or the arrays and the model do not fit: with what is missing and extra.
  """
  names.lookup(adapt.RESIZES, resize, 'resize')
  reset = (reset,) if isinstance(reset, str) else tuple(reset)
  source = sources.read(path, grid, **overrides)
  wanted = dict(source.arguments)
  if num_classes is not None:
    wanted['num_classes'] = num_classes
    wanted.pop('pre_logits', None)
    reset = (*reset, 'head/.*', 'pre_logits/.*')
  if head is not None:
    wanted['head'] = head
    if 'class_token' not in overrides:
      wanted.pop('class_token', None)
    reset = (*reset, 'attention_pool/.*')
  size = source.image_size
  if image_size is not None:
    size = _pair(image_size)
  model, params, lines = source.model, source.params, source.report
  if wanted != source.arguments or size != source.image_size or reset:
    try:
      model = models.build(**wanted)
      if head is not None and model.class_token != source.model.class_token:
        reset = (*reset, 'class_token')
      params, changes = _adapt(
        source, model, describe.init(model, size), size, reset, resize
      )
    except ValueError as error:
      raise ValueError(f'{path}: {error}') from None
    lines = _merge(lines, changes)
    report.check(lines, path)
  return Checkpoint(
    model=model,
    params=describe.unflatten(
      {name: np.asarray(array, np.float32) for name, array in params.items()}
    ),
    image_size=size,
    preprocess=_preprocess(source, size),
    labels=source.labels if num_classes is None else None,
    report=lines,
  )


def load_into(
  state,
  model,
  image_size,
  checkpoint='',
  reset=(),
  resize='linear',
  grid=None,
):
  """Returns a run's first state with weights of another run or origin.

  The arrays keep their placement on devices. Optimizer state and step are left
  as they are; a Polyak average starts at the weights.

  Args:
    state: a `train.TrainState` before the first update.
    model: its module.
    image_size: (height, width) of the run's images.
    checkpoint: see `load_checkpoint`; '' for none, which changes nothing.
    reset: regular expressions of parameters to leave as they are, such as a new
      head; what the model lacks of them is dropped.
    resize: 'linear' or 'cubic', see `adapt`.
    grid: (rows, columns) of the checkpoint's patches, if they are no square.

  Returns:
    The state, and the report's table, '' without checkpoint.

  Raises:
    ValueError: as `load_checkpoint`, and if the weights do not fit the model.
  """
  if not checkpoint:
    return state, ''
  try:
    names.lookup(adapt.RESIZES, resize, 'config.init.resize')
    reset = (reset,) if isinstance(reset, str) else tuple(reset)
    # Where nothing says how many heads there are, the config does.
    num_heads = getattr(model, 'num_heads', None)
    source = sources.read(checkpoint, grid, num_heads_else=num_heads)
    initial = describe.flatten(state.params)
    params, lines = _adapt(source, model, initial, image_size, reset, resize)
    lines = _merge(source.report, lines)
    report.check(lines, checkpoint)
  except ValueError as error:
    raise ValueError(f'config.init.checkpoint: {error}') from None
  params = jax.tree.map(_place, describe.unflatten(params), state.params)
  average = state.average
  if average is not None:
    average = jax.tree.map(_place, params, average)
  table = f'\n{checkpoint}: {report.counts(lines)}\n{report.table(lines)}'
  return state._replace(params=params, average=average), table


def _pair(image_size):
  """Returns (height, width) of a side or of both."""
  try:
    sizes = np.broadcast_to(image_size, 2).tolist()
  except ValueError:
    sizes = []
  if len(sizes) != 2 or not all(isinstance(s, int) and s > 0 for s in sizes):
    raise ValueError(
      f'image_size={image_size!r} is no size in pixels; pass 384 or (384, 256).'
    )
  return tuple(sizes)


def _place(array, like):
  """Returns a copy of an array, of any kind, placed as another is.

  The step gives away the memory of its state, so no other array may share it.
  """
  if not isinstance(array, jax.Array):
    array = jax.make_array_from_callback(
      like.shape, like.sharding, lambda index: array[index]
    )
  return jax.jit(jnp.copy, out_shardings=like.sharding)(array)


def _adapt(source, model, initial, size, reset, resize):
  resnet = describe.is_resnet(model)
  grid = None if resnet else describe.grid(model, size)
  old = source.model, source.grid
  return adapt.adapt(source.params, old, model, initial, grid, reset, resize)


def _merge(read, adapted):
  """Returns one line an array: how it was read, unless it was adapted."""
  by_name = {}
  for line in read:
    by_name.setdefault(line.ours, []).append(line)
  lines = []
  lines += by_name.get('', [])  # what was left out
  for line in adapted:
    origin = by_name.get(line.theirs, [])
    if line.status == 'loaded':
      lines += origin
    else:
      theirs = ', '.join(x.theirs for x in origin[:1]) or line.theirs
      lines.append(line._replace(theirs=theirs))
  return lines


def _preprocess(source, size):
  """Returns how images are made for the model."""
  if source.preprocess is not None and size == source.image_size:
    return source.preprocess
  height, width = size
  if height != width:
    return f'resize({height}, {width})'
  # As big_vision evaluates at 224 pixels, and fine-tuned models at more.
  around = round(height / 0.875) if height <= 256 else height
  return f'resize_small({around})|central_crop({height})'
