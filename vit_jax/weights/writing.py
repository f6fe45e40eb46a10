"""Writes weights in the layouts that others read."""

import json

from vit_jax import models, storage
from vit_jax.weights import describe, files, huggingface, infer, layout
from vit_jax.weights.source import LAYOUTS, METADATA

SUFFIXES = {'.npz': 'npz', '.safetensors': 'timm', '': 'orbax'}
_POOLS = {'token': 'token', 'gap': 'avg', 'map': 'map'}  # timm's words
# What a file's arrays show, or do not.
_FUNCTION = (
  'position_embedding', 'position_embedding_at', 'norm_after_pool', 'gelu',
  'norm_epsilon', 'axial', 'version', 'num_heads', 'head', 'class_token',
)  # fmt: skip


def save(
  path,
  model,
  params,
  image_size=None,
  to=None,
  overwrite=False,
  labels=None,
  preprocess=None,
):
  """Writes weights, in a layout that others read as well.

  Args:
    path: where to. Its suffix says the layout: `.npz` (as published by Google),
      `.safetensors` (timm), none (this project's, Orbax).
    model: the module.
    params: its parameters.
    image_size: (height, width), if the grid of patches is no square.
    to: 'npz', 'timm', 'huggingface' (a folder for `from_pretrained`) or
      'orbax', if the suffix does not say it.
    overwrite: whether existing files may be replaced.
    labels: names of the classes, which all layouts but npz keep.
    preprocess: recipe that makes images for the model; likewise.

  Raises:
    ValueError: if the layout has no place for the model, or the path cannot be
      written.
  """
  path = storage.path(path)
  kinds = (*LAYOUTS, 'orbax')
  if to is None:
    to = SUFFIXES.get(path.suffix)
  if to not in kinds:
    raise ValueError(
      f'{path}: no layout follows from the suffix {path.suffix!r}; use .npz, '
      f'.safetensors or none, or say to={" | ".join(kinds)}.'
    )
  flat = describe.flatten(params)
  grid = _grid(model, flat, image_size)
  size = image_size or _image_size(model, grid)
  _check_shapes(model, flat, size)
  kept = {'labels': labels and list(labels), 'preprocess': preprocess}
  kept = {name: value for name, value in kept.items() if value is not None}
  if to == 'orbax':
    _save_orbax(
      path, model, params, kept | {'image_shape': [*size, 3]}, overwrite
    )
    return
  kind, beside = LAYOUTS[to], {}
  if to == 'huggingface':
    beside = huggingface.config_json(model, size, labels)
  arrays = layout.save(flat, kind.rows(model), kind.style(model), to)
  _check_function(to, model, arrays, grid)
  if to == 'npz':
    files.write(path, arrays, overwrite=overwrite)
    return
  own = describe.arguments(model) | kept | dict(grid=grid)
  metadata = {'format': 'pt', METADATA: json.dumps(own)}
  if to == 'timm':
    files.write(path, arrays, metadata, overwrite)
    return
  arrays = huggingface.with_prefix(arrays)
  files.write(path / 'model.safetensors', arrays, metadata, overwrite)
  for name, content in beside.items():
    (path / name).write_text(json.dumps(content, indent=2) + '\n')


def advice(to, model):
  """Returns what a reader of that layout has to know, or ''."""
  if to != 'timm' or describe.is_resnet(model):
    return ''
  said = ["act_layer='gelu_tanh'"] if model.gelu == 'tanh' else []
  if model.norm_epsilon != 1e-6:
    said.append(f'a norm_layer with eps={model.norm_epsilon}')
  return f'In timm, create the model with {" and ".join(said)}.' if said else ''


def _check_shapes(model, flat, size):
  """Raises ValueError if these are not the parameters of the model."""
  shapes = {k: v.shape for k, v in describe.shapes(model, size).items()}
  given = {k: v.shape for k, v in flat.items()}
  wrong = [k for k in shapes | given if shapes.get(k) != given.get(k)]
  if wrong:
    name = sorted(wrong)[0]
    raise ValueError(
      f'The parameters are not those of the model for images of {size[0]} x '
      f'{size[1]}: {name} is {given.get(name, "missing")}, not '
      f'{shapes.get(name, "there")}; pass the model that they belong to, and '
      'image_size=(height, width).'
    )


def _grid(model, flat, image_size):
  """Returns [rows, columns] of a ViT's patches; None if nothing shows it."""
  if describe.is_resnet(model):
    return None
  if image_size is not None:
    return list(describe.grid(model, image_size))
  for name in ('position_embedding', 'blocks/position_embedding'):
    if f'{name}_row' in flat:
      return [flat[f'{name}_{axis}'].shape[-2] for axis in ('row', 'column')]
    if name in flat:
      count = flat[name].shape[-2] - model.num_prefix
      try:
        return list(infer.grid(count))
      except ValueError:
        raise ValueError(
          f'The position embeddings are of {count} patches, which is no '
          'square; pass image_size=(height, width).'
        ) from None
  return None


def _image_size(model, grid):
  return describe.image_size(model, *grid) if grid else (224, 224)


def _save_orbax(path, model, params, inputs, overwrite):
  from vit_jax.weights import orbax

  if path.exists() and not overwrite:
    raise ValueError(
      f'{path} exists, and is not to be overwritten; choose another name.'
    )
  # Orbax would remove all that is there, photos too.
  if path.exists() and orbax.find(path) != path:
    raise ValueError(
      f'{path} is not one checkpoint, so it is not overwritten; choose another '
      'name.'
    )
  orbax.save(path, params, describe.arguments(model), inputs, overwrite)


def _check_function(to, model, arrays, grid):
  """Raises ValueError if the arrays, read by others, are of another model."""
  if to == 'npz' and grid and grid[0] != grid[1]:
    raise ValueError(
      f'npz files do not say that their grid is {grid[0]} x {grid[1]}; save it '
      'as .safetensors, or as Orbax (no suffix).'
    )
  # What a config.json, or the caller, says.
  said = {
    name: getattr(model, name, None)
    for name in ('num_heads', 'gelu', 'norm_epsilon')
    if to != 'npz'
  }
  if to == 'timm':
    said |= dict(norm_epsilon=1e-6, pool=_POOLS.get(getattr(model, 'head', '')))
  again = models.build(**LAYOUTS[to].architecture(arrays, said))
  for name in _FUNCTION:
    ours, theirs = getattr(model, name, None), getattr(again, name, None)
    if ours != theirs and not (to == 'timm' and name == 'norm_epsilon'):
      raise ValueError(
        f'{to} files are of models with {name}={theirs!r}, but this one has '
        f'{ours!r}; save it as .safetensors, or as Orbax (no suffix).'
      )
