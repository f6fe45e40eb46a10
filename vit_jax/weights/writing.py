"""Writes weights in the layouts that others read."""

import json

from etils import epath

from vit_jax import models
from vit_jax.weights import describe, files, huggingface, infer, layout
from vit_jax.weights.source import LAYOUTS, METADATA

_SUFFIXES = {'.npz': 'npz', '.safetensors': 'timm', '': 'orbax'}
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
    labels: names of the classes, for layouts that keep them: 'orbax' and
      'huggingface'.
    preprocess: recipe that makes images for the model, for 'orbax'.

  Raises:
    ValueError: if the layout has no place for the model, or the path cannot be
      written.
  """
  path = epath.Path(path).expanduser()
  kinds = (*LAYOUTS, 'orbax')
  if to is None:
    to = _SUFFIXES.get(path.suffix)
  if to not in kinds:
    raise ValueError(
      f'{path}: no layout follows from the suffix {path.suffix!r}; use .npz, '
      f'.safetensors or none, or say to={" | ".join(kinds)}.'
    )
  flat = describe.flatten(params)
  grid = _grid(model, flat, image_size)
  if to == 'orbax':
    size = image_size or _image_size(model, grid)
    inputs = {'image_shape': [*size, 3]}
    if labels is not None:
      inputs['labels'] = list(labels)
    if preprocess is not None:
      inputs['preprocess'] = preprocess
    _save_orbax(path, model, params, inputs, overwrite)
    return
  kind = LAYOUTS[to]
  arrays = layout.save(flat, kind.rows(model), kind.style(model), to)
  if to == 'npz':
    _check_function(model, arrays, kind)
    files.write(path, arrays, overwrite=overwrite)
    return
  own = describe.arguments(model) | dict(grid=grid)
  metadata = {'format': 'pt', METADATA: json.dumps(own)}
  if to == 'huggingface':
    size = _image_size(model, grid)
    config = huggingface.config_json(model, size, labels)
    arrays = huggingface.with_prefix(arrays)
    folder, path = path, path / 'model.safetensors'
    files.write(path, arrays, metadata, overwrite)
    for name, content in config.items():
      (folder / name).write_text(json.dumps(content, indent=2) + '\n')
    return
  files.write(path, arrays, metadata, overwrite)


def _grid(model, flat, image_size):
  """Returns [rows, columns] of a ViT's patches; None if nothing shows it."""
  if describe.is_resnet(model):
    return None
  if image_size is not None:
    return list(describe.grid(model, image_size))
  rows = flat.get('position_embedding_row')
  if rows is not None:
    return [len(rows), len(flat['position_embedding_column'])]
  for name in ('position_embedding', 'blocks/position_embedding'):
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


def _check_function(model, arrays, kind):
  """Raises ValueError if the arrays, read again, are of another model."""
  again = models.build(**kind.architecture(arrays, {}))
  for name in _FUNCTION:
    ours, theirs = getattr(model, name, None), getattr(again, name, None)
    if ours != theirs:
      raise ValueError(
        f'npz files are of models with {name}={theirs!r}, but this one has '
        f'{ours!r}; save it as .safetensors, or as Orbax (no suffix).'
      )
