"""Finds and reads a checkpoint of any layout, and tells its model."""

import json
import math
from typing import Any, NamedTuple

from etils import epath

from vit_jax import models, names, storage
from vit_jax.data import labels
from vit_jax.weights import (
  beside,
  describe,
  files,
  huggingface,
  infer,
  layout,
  npz,
  public,
  report,
  timm,
)

LAYOUTS = {'huggingface': huggingface, 'npz': npz, 'timm': timm}
METADATA = 'vit_jax'  # what our .safetensors files say of their model


class Source(NamedTuple):
  """What was read.

  Attributes:
    path: where from, as the user named it.
    arguments: dict, of models.build.
    model: the module that they make.
    params: dict from name to float32 numpy array.
    image_size: (height, width) that the weights were made for.
    grid: (rows, columns) of a ViT's patches; None of a ResNet.
    preprocess: recipe, or None for the usual one.
    labels: tuple of class names, or None.
    report: list of report.Line.
  """

  path: str
  arguments: dict
  model: Any
  params: dict
  image_size: tuple[int, int]
  grid: tuple[int, int] | None
  preprocess: str | None
  labels: tuple[str, ...] | None
  report: list


def read(path, grid=None, num_heads_else=None, **overrides):
  """Returns the Source at a path or of a public name.

  Args:
    path: see `weights.load_checkpoint`.
    grid: (rows, columns) of the file's patches, if they are no square.
    num_heads_else: H of a file that does not show it, of a width whose H is not
      known either.
    **overrides: arguments of models.build that the file does not show.

  Raises:
    ValueError: as `weights.load_checkpoint`.
  """
  text = str(path)
  overrides = {k: v for k, v in overrides.items() if v is not None}
  if text in public.WEIGHTS:
    row = public.WEIGHTS[text]
    file = epath.Path(public.fetch(text))
    config = dict(
      image_size=(row.image_size, row.image_size),
      num_heads_else=num_heads_else,
    )
    if row.inputs == 'imagenet':
      config |= dict(mean=infer.IMAGENET_MEAN, std=infer.IMAGENET_STD)
    # Mirrors of what JAX trained keep its GELU.
    if any('vit_models' in url for url in row.sources):
      overrides = dict(gelu='tanh') | overrides
    source = _read_file(text, file, config, grid, overrides)
    known = row.labels and labels.names_of(row.labels)
    return source._replace(labels=known)
  file = storage.path(path)
  if file.suffix not in files.SUFFIXES:  # to read a file takes fewer rights
    storage.check(file)
  if file.is_dir():
    from vit_jax.weights import orbax

    found = orbax.find(file)
    if found is not None:
      return _read_run(text, orbax.load(found), overrides)
    if not (file / 'model.safetensors').exists():
      raise ValueError(
        f'{text} is a folder without checkpoint: it has neither checkpoints/ '
        'of a run, nor state/ and config/ of one checkpoint, nor '
        'model.safetensors.'
      )
    file /= 'model.safetensors'
  elif not file.exists() and not file.suffix:
    if '/' not in text:
      names.lookup(public.WEIGHTS, text, 'checkpoint')
    raise ValueError(
      f'{text} does not exist; give the path of a file or run, or a name that '
      '`python -m vit_jax.weights list` shows.'
    )
  config = beside.read(file) | dict(num_heads_else=num_heads_else)
  return _read_file(text, file, config, grid, overrides)


def _read_file(name, file, config, grid, overrides):
  arrays = files.read(file)
  kind = next((k for k in LAYOUTS.values() if k.matches(arrays)), None)
  if kind is None:
    raise ValueError(
      f'{name} is of no layout that is known ({", ".join(LAYOUTS)}); it has '
      f'{", ".join(list(arrays)[:4])}, ... `python -m vit_jax.weights inspect` '
      'shows them all; docs/weights.md says what loads.'
    )
  empty = [name for name, array in arrays.items() if not array.size]
  if empty:  # they cost nothing to claim, and no weight is empty
    raise ValueError(f'{name}: its array {empty[0]!r} is empty.')
  config = config | {
    k: overrides.pop(k) for k in ('mean', 'std') if k in overrides
  }
  config |= {
    k: overrides[k]
    for k in ('num_heads', 'position_embedding')
    if k in overrides
  }
  try:
    own = _own(file)
    own_grid = own.pop('grid', None)
    grid = grid or own_grid
    config |= {k: own.pop(k) for k in ('labels', 'preprocess') if k in own}
    arrays, changed = kind.canonical(arrays, config | dict(grid=grid))
    arguments = (own or kind.architecture(arrays, config)) | overrides
    model = models.build(**arguments)
    grid = _grid(model, arrays, kind, grid, config)
    size = _image_size(model, grid, config)
    shapes = {k: v.shape for k, v in describe.shapes(model, size).items()}
    _check_claims(shapes, arrays)
  except ValueError as error:
    raise ValueError(f'{name}: {error}') from None
  except Exception as error:  # hostile arrays and words fail in many ways
    raise ValueError(
      f'{name}: its arrays are of no model that is known '
      f'({type(error).__name__}: {error}).'
    ) from None
  params, lines = layout.load(
    arrays, shapes, kind.rows(model), kind.style(model)
  )
  lines = [
    line._replace(status='changed', note=f'{line.note}, {changed[line.theirs]}')
    if line.status in ('loaded', 'renamed') and line.theirs in changed
    else line
    for line in lines
  ]
  lines += [
    report.Line('left out', left_out, '', why)
    for left_out, why in changed.items()
    if left_out not in arrays
  ]
  report.check(lines, name)
  return Source(
    path=name, arguments=arguments, model=model, params=params, image_size=size,
    grid=grid, preprocess=config.get('preprocess'),
    labels=_labels(config, own, model), report=lines,
  )  # fmt: skip


def _own(file):
  """Returns what a file of ours says of its model, {} of other files."""
  own = json.loads(files.metadata(file).get(METADATA, '{}'))
  if not isinstance(own, dict):
    raise ValueError(f'its metadata {METADATA!r} is no object')
  return own


def _check_claims(shapes, arrays):
  """Raises ValueError if a model is far larger than its arrays."""
  size = sum(math.prod(shape) for shape in shapes.values())
  there = sum(array.size for array in arrays.values())
  if size > 2 * there + 2**20:
    raise ValueError(
      f'its names, shapes or metadata are of a model of {size:,} parameters, '
      f'but it holds {there:,} numbers'
    )


def _labels(config, own, model):
  """Returns class names: as said, or those of ImageNet in others' files."""
  if 'labels' in config:
    return tuple(map(str, config['labels']))
  datasets = {1000: 'imagenet2012', 21843: 'imagenet21k'}
  guess = None if own else datasets.get(model.num_classes)
  return guess and labels.names_of(guess)


def _grid(model, arrays, kind, given, config):
  """Returns (rows, columns) of a ViT's patches, None of a ResNet."""
  if describe.is_resnet(model):
    return None
  if kind.POSITIONS not in arrays:
    return tuple(given) if given else None
  count = infer.size(arrays, kind.POSITIONS, 1) - model.num_prefix
  size = config.get('image_size')
  if given is None and size is not None:
    rows, columns = describe.grid(model, size)
    # A config may be of other images than the arrays.
    given = (rows, columns) if rows * columns == count else None
  return infer.grid(count, given)


def _image_size(model, grid, config):
  if grid is not None:
    return describe.image_size(model, *grid)
  return config.get('image_size') or (224, 224)


def _read_run(name, loaded, overrides):
  """Returns the Source of a checkpoint of this project."""
  params, config, inputs = loaded
  try:
    arguments = {
      k: v for k, v in config['model'].items() if v is not None
    } | overrides
    model = models.build(**arguments)
    size = tuple(inputs['image_shape'][:2])
    shapes = describe.shapes(model, size)
  except (KeyError, TypeError, AttributeError, ValueError) as error:
    raise ValueError(
      f'{name}: its config cannot be used ({type(error).__name__}: {error})'
    ) from None
  lines = [
    report.Line('missing', '', k, str(v.shape))
    for k, v in shapes.items()
    if k not in params
  ]
  for k, v in params.items():
    status, note = 'loaded', str(v.shape)
    if k not in shapes:
      status = 'extra'
    elif shapes[k].shape != v.shape:
      status, note = 'misfit', f'{v.shape} there, {shapes[k].shape} expected'
    lines.append(report.Line(status, k, k, note))
  report.check(lines, name)
  grid = None if describe.is_resnet(model) else describe.grid(model, size)
  return Source(
    path=name, arguments=arguments, model=model, params=params, image_size=size,
    grid=grid, preprocess=_run_preprocess(config, inputs),
    labels=_run_labels(config, inputs), report=lines,
  )  # fmt: skip


def _run_labels(config, inputs):
  """Returns the names of a run's classes, or None if they are not known."""
  if inputs.get('labels'):
    return tuple(map(str, inputs['labels']))
  dataset = config.get('train', {}).get('dataset')
  return labels.names_of(dataset) if dataset in labels.DATASETS else None


def _run_preprocess(config, inputs):
  """Returns how a run evaluates images, or None if it does not say."""
  if 'preprocess' in inputs:
    return inputs['preprocess']
  rows = config.get('evals', {}).values()
  return next((r['preprocess'] for r in rows if 'preprocess' in r), None)
