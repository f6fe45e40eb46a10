"""What a model module says of itself: arguments, grid, parameters."""

import dataclasses

import jax
import jax.numpy as jnp

from vit_jax import names
from vit_jax.models import layers, variants


def arguments(model):
  """Returns the arguments of models.build that make this module, JSON-ready."""
  fields = {
    field.name: getattr(model, field.name)
    for field in dataclasses.fields(model)
    if field.name not in ('parent', 'name')
  }
  dtypes = {jnp.dtype(dtype): name for name, dtype in layers.DTYPES.items()}
  fields['dtype'] = dtypes[jnp.dtype(fields['dtype'])]
  axial = fields.pop('axial')
  if is_resnet(model):
    variant = 'AxialResNet50' if axial else f'R50x{model.width:g}'
    fields['depths'] = list(model.depths)
    return dict(name='resnet', variant=variant, **fields)
  sizes = tuple(fields[name] for name in variants.SIZES)
  size = {v: k for k, v in variants.VARIANTS.items()}.get(sizes, 'Ti')
  variant = f'{"Axial-ViT-" * axial}{size}/{fields.pop("patch_size")}'
  if model.stem_depths is not None:
    fields['stem_depths'] = list(model.stem_depths)
  return dict(name='vit', variant=variant, **fields)


def is_resnet(model):
  """Returns whether a module is a ResNet, not a ViT."""
  return hasattr(model, 'version')


def grid(model, image_size):
  """Returns (rows, columns) of a ViT's patches in images of that size."""
  height, width = image_size
  if model.stem_depths is not None:
    # The root halves twice, each stage after the first once.
    for _ in range(2 + len(model.stem_depths[1:])):
      height, width = -(-height // 2), -(-width // 2)
  return height // model.patch_size, width // model.patch_size


def image_size(model, rows, columns):
  """Returns (height, width) of the images that make such a grid."""
  stride = model.patch_size
  if model.stem_depths is not None:
    stride *= 4 * 2 ** len(model.stem_depths[1:])
  return rows * stride, columns * stride


def init(model, size):
  """Returns dict from name to array: parameters before training, seed 0."""

  @jax.jit
  def initial():
    return model.init(jax.random.key(0), jnp.zeros((1, *size, 3)))['params']

  return flatten(jax.device_get(initial()))


def shapes(model, size):
  """Returns dict from name to `jax.ShapeDtypeStruct` of the parameters."""
  images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
  # A real key would start the accelerator.
  rng = jax.eval_shape(jax.random.key, 0)
  return flatten(jax.eval_shape(model.init, rng, images)['params'])


def flatten(tree):
  """Returns dict from '/'-joined name to leaf."""
  leaf_names = jax.tree.leaves(names.leaf_names(tree))
  return dict(zip(leaf_names, jax.tree.leaves(tree), strict=True))


def unflatten(flat):
  """Returns the tree of dicts of '/'-joined names."""
  tree = {}
  for name, leaf in flat.items():
    *path, last = name.split('/')
    node = tree
    for part in path:
      node = node.setdefault(part, {})
    node[last] = leaf
  return tree
