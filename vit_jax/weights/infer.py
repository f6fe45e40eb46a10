"""What a file's arrays say of the model that they belong to."""

import math
import re

import numpy as np

from vit_jax.models import resnet as resnet_module
from vit_jax.models import variants


def renamed(arrays, rename):
  """Returns the arrays under new names.

  Raises:
    ValueError: if two of them get the same name.
  """
  result = {}
  for name, array in arrays.items():
    if rename(name) in result:
      raise ValueError(f'two of its arrays are {rename(name)!r}: {name!r} too')
    result[rename(name)] = array
  return result


def get(arrays, name):
  """Returns `arrays[name]`, or raises ValueError if it is missing."""
  if name not in arrays:
    some = ', '.join(list(arrays)[:3])
    raise ValueError(
      f'it lacks {name!r}, without which no model can be told; it has {some}, '
      '...'
    )
  return arrays[name]


def size(arrays, name, axis):
  """Returns the length of an array's axis, 0 if there is no such array."""
  return arrays[name].shape[axis] if name in arrays else 0


def depth(arrays, pattern):
  """Returns the number of layers; the pattern's group is the index from 0."""
  found = {int(m[1]) for m in (re.match(pattern, n) for n in arrays) if m}
  _check_all_there(found, pattern)
  return len(found)


def depths(arrays, pattern, first=1):
  """Returns the units of each stage; the pattern's groups are stage, unit."""
  found = {}
  for match in (re.match(pattern, name) for name in arrays):
    if match:
      found.setdefault(int(match[1]) - first, set()).add(int(match[2]) - first)
  _check_all_there(set(found), pattern)
  for units_found in found.values():
    _check_all_there(units_found, pattern)
  return tuple(len(found[stage]) for stage in sorted(found))


# Of further widths in timm, each of which has one number of heads there.
_NUM_HEADS = {256: 4, 320: 5, 512: 8, 640: 10, 832: 13, 896: 14, 1152: 16}
# Of PyTorch's pixels, red, green and blue, in [0, 1].
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def fold_normalisation(arrays, embedding, config):
  """Returns the arrays of a model that takes pixels in [-1, 1].

  (x + 1) / 2 normalised by mean and deviation is linear in x, so the patch
  embedding takes it over exactly: it has no padding.

  Args:
    arrays: dict from name to array.
    embedding: name of the embedding; '.weight' is [D, 3, P, P], '.bias' [D].
    config: dict with 'mean' and 'std' of pixels in [0, 1], or None for [-1, 1].

  Returns:
    dict from name to array, and dict from the names of those that were changed
    to what was done.

  Raises:
    ValueError: if it does not have three channels.
  """
  mean, std = (
    np.asarray(config.get(name) or [0.5] * 3, np.float64)
    for name in ('mean', 'std')
  )
  if np.all(mean == 0.5) and np.all(std == 0.5):
    return arrays, {}
  weight, bias = (get(arrays, f'{embedding}.{n}') for n in ('weight', 'bias'))
  if weight.shape[1] != 3 or mean.shape != (3,) or std.shape != (3,):
    raise ValueError(
      f'its pixels are normalised by mean={mean} and std={std}, which its '
      f'{weight.shape[1]} input channels do not have'
    )
  weight = weight.astype(np.float64)
  folded = {
    f'{embedding}.weight': weight / (2 * std[:, None, None]),
    f'{embedding}.bias': bias
    + np.einsum('ochw,c->o', weight, (0.5 - mean) / std),
  }
  changed = dict.fromkeys(folded, 'with the normalisation of pixels')
  return arrays | folded, changed


def is_normalised(config):
  """Returns whether pixels were normalised other than to [-1, 1]."""
  values = [config.get('mean') or [0.5], config.get('std') or [0.5]]
  return any(v != 0.5 for value in values for v in value)


def grid(count, given=None):
  """Returns (rows, columns) of so many patches: given, or a square.

  Raises:
    ValueError: if the given grid has another number, or nothing is given and
      there is no square.
  """
  side = math.isqrt(max(count, 0))
  rows, columns = given or (side, side)
  if rows * columns != count or count < 1:
    wrong = f'a grid of {rows} x {columns} is not' if given else 'is no square'
    raise ValueError(
      f'its position embeddings are of {count} patches, which {wrong}; pass '
      'grid=(rows, columns)'
    )
  return rows, columns


def _is_square(count):
  return count > 0 and math.isqrt(count) ** 2 == count


def with_prefix(positions, num_prefix, grid=None):
  """Returns positions [1, N, D] for the prefix and the patches.

  Some models add positions before they prepend class token and registers;
  adding 0 to these is the same. Unless the grid is known, a table whose length
  is a square is taken for one of patches alone.

  Args:
    positions: [1, N, D], of patches, or of prefix and patches.
    num_prefix: number of tokens before the patches.
    grid: (rows, columns) of the patches, if it is known.
  """
  count = positions.shape[1]
  may_be_both = _is_square(count) and _is_square(count - num_prefix)
  if grid is None and num_prefix and may_be_both:
    raise ValueError(
      f'its {count} position embeddings may be of patches alone, or of '
      f'{num_prefix} tokens before them as well; pass grid=(rows, columns)'
    )
  if count != (math.prod(grid) if grid else math.isqrt(count) ** 2):
    return positions
  return np.pad(positions, ((0, 0), (num_prefix, 0), (0, 0)))


def _check_all_there(found, pattern):
  if found and len(found) != max(found) + 1:
    raise ValueError(
      f'of its layers, named like {pattern!r}, there are {len(found)}, but the '
      f'last has index {max(found)}, counted from 0'
    )


def units(prefix, stage_depths):
  """Yields (our module, layer, stage from 1, unit from 1) of a ResNet."""
  for stage, count in enumerate(stage_depths, 1):
    yield f'{prefix}/stage{stage}_first', None, stage, 1
    for layer in range(count - 1):
      yield f'{prefix}/stage{stage}_rest', layer, stage, layer + 2


def resnet(root, depths, num_classes, version):
  """Returns the arguments of models.build of a ResNet.

  Args:
    root: kernel of the root convolution, [7, 7, 3, 64 width].
    depths: units per stage.
    num_classes: C.
    version: 1 or 2.
  """
  width = root.shape[-1] / 64
  known = {value: key for key, value in resnet_module.DEPTHS.items()}
  arguments = dict(
    name='resnet',
    variant=f'R{known.get(depths, 50)}x{width:g}',
    num_classes=num_classes,
    version=version,
  )
  if depths not in known:
    arguments['depths'] = depths
  return arguments


def vit(patch_size, num_classes, stem_depths=None, stem_width=1.0, **arguments):
  """Returns the arguments of models.build of a ViT, with a variant's name."""
  sizes = tuple(arguments[name] for name in variants.SIZES)
  for name, value in variants.VARIANTS.items():
    if value == sizes:
      variant = name
      arguments = {
        k: v for k, v in arguments.items() if k not in variants.SIZES
      }
      break
  else:
    variant = 'Ti'  # all its sizes are overridden
  if stem_depths is not None:
    arguments |= dict(stem_depths=stem_depths, stem_width=stem_width)
  return dict(
    name='vit',
    variant=f'{variant}/{patch_size}',
    num_classes=num_classes,
    **arguments,
  )


def num_heads(hidden_size, config):
  """Returns H of PyTorch files, which do not show it.

  Args:
    hidden_size: D.
    config: dict with 'num_heads', if that is known; 'num_heads_else' is what to
      take where nothing says it.

  Raises:
    ValueError: if it is not given, and D is of no model whose H is known.
  """
  if config.get('num_heads'):
    return int(config['num_heads'])
  for sizes in variants.VARIANTS.values():
    if sizes[0] == hidden_size:
      return sizes[3]
  if hidden_size not in _NUM_HEADS and config.get('num_heads_else'):
    return config['num_heads_else']
  if hidden_size not in _NUM_HEADS:
    raise ValueError(
      f'nothing says how many attention heads its hidden_size={hidden_size} '
      'is split into; pass num_heads=...'
    )
  return _NUM_HEADS[hidden_size]
