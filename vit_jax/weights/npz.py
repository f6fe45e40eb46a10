"""The names in published `.npz` files: ViT, hybrids, BiT, big_vision.

`canonical` brings all generations to one set of names: pre-Linen ones for what
has a Transformer and for ResNets of version 1 (what google-research/
vision_transformer wrote), TensorFlow's for BiT. Those are also what is written.
"""

import re

from vit_jax.weights import infer
from vit_jax.weights.layout import JAX, TENSORFLOW, Row

POSITIONS = 'Transformer/posembed_input/pos_embedding'
_MAX_DEPTH = 1000
_LINEN = {
  'MultiHeadDotProductAttention_0': 'MultiHeadDotProductAttention_1',
  'LayerNorm_1': 'LayerNorm_2',
  'MlpBlock_0': 'MlpBlock_3',
}
# big_vision's names of BiT -> TensorFlow's.
_BIT = (
  (r'root_block/conv_root', 'resnet/root_block/standardized_conv2d'),
  (r'norm-pre-head/', 'resnet/group_norm/'),
  (r'head/', 'resnet/head/conv2d/'),
  (r'(block\d+/unit\d+)/conv_proj', r'resnet/\1/a/proj/standardized_conv2d'),
)


def matches(arrays):
  """Returns whether the names are of these files."""
  pattern = r'(.*/)?(embedding/kernel|conv_root/kernel|standardized_conv2d.*)'
  return any(re.fullmatch(pattern, name) for name in arrays)


def canonical(arrays, config):
  """Returns the arrays under one generation's names, and what was changed.

  Old norms lose their extra dimensions on loading. What loaders of several
  models add in front ('params/', 'img/', 'opt/target/') is cut off.

  Returns:
    dict from name to array, and dict from the names of those that were changed
    to what was done; a name that is left out is in the second alone.
  """
  arrays, changed = _without_prefix(arrays)
  if any(name.startswith(('resnet/', 'root_block/')) for name in arrays):
    return infer.renamed(arrays, _bit_name), changed
  arrays = _unstack_blocks(arrays)
  arrays = infer.renamed(arrays, _vit_name)
  # big_vision adds positions before the class token.
  positions = arrays.pop('pos_embedding', None)
  if positions is not None:
    arrays[POSITIONS] = infer.with_prefix(
      positions, int('cls' in arrays), config.get('grid')
    )
    if arrays[POSITIONS] is not positions:
      changed[POSITIONS] = 'with 0 for the class token'
  return arrays, changed


def _without_prefix(arrays):
  """Returns the arrays of the image tower, and why others are left out.

  Their names lose what is before them. The text tower, its scale and the
  optimizer's state are left out; anything else stays, and is an error later.
  """
  left_out = {}
  for prefix, other, what in (
    ('params/', 'opt/.*', "the optimizer's state"),
    ('opt/target/', 'opt/state/.*', "the optimizer's state"),
    ('img/', 'txt/.*|[tb]', 'of the text tower'),
  ):
    if not any(name.startswith(prefix) for name in arrays):
      continue
    left_out |= {name: what for name in arrays if re.fullmatch(other, name)}
    left_out = {n: w for n, w in left_out.items() if not n.startswith(prefix)}
    arrays = infer.renamed(
      {name: array for name, array in arrays.items() if name not in left_out},
      lambda name, prefix=prefix: name.removeprefix(prefix),
    )
  return arrays, left_out


def _unstack_blocks(arrays):
  """Splits big_vision's scanned blocks, whose arrays lead with the layer."""
  result, stacked = {}, 'Transformer/encoderblock/'
  for name, array in arrays.items():
    if not name.startswith(stacked):
      result[name] = array
      continue
    rest = name.removeprefix(stacked)
    if len(array) > _MAX_DEPTH:
      raise ValueError(
        f'its {name!r} stacks {len(array):,} layers; {_MAX_DEPTH} are allowed'
      )
    for i, part in enumerate(array):
      result[f'Transformer/encoderblock_{i}/{rest}'] = part
  return result


def _vit_name(name):
  name = name.replace('Transformer/pos_embedding', 'pos_embedding')
  name = re.sub(
    r'^(probe|MultiHeadDotProductAttention_0|LayerNorm_0|MlpBlock_0)(?=/|$)',
    r'MAPHead_0/\1', name,
  )  # fmt: skip
  name = re.sub(r'(block\d+/unit)0+', r'\1', name)
  match = re.fullmatch(r'(Transformer/encoderblock_\d+)/(\w+)/(.*)', name)
  if match and match[2] in _LINEN:
    return f'{match[1]}/{_LINEN[match[2]]}/{match[3]}'
  return name


def _bit_name(name):
  if name.startswith('resnet/'):
    return re.sub(r'standardized_conv2d_\d+', 'standardized_conv2d', name)
  for pattern, replacement in _BIT:
    name = re.sub(f'^{pattern}', replacement, name)
  match = re.fullmatch(r'(block\d+/unit\d+)/(conv|gn)([123])/(\w+)', name)
  if match:
    kind = {'conv': 'standardized_conv2d', 'gn': 'group_norm'}[match[2]]
    letter = 'abc'[int(match[3]) - 1]
    name = f'resnet/{match[1]}/{letter}/{kind}/{match[4]}'
  if '/group_norm/' in name:
    name = name.replace('/scale', '/gamma').replace('/bias', '/beta')
  return name


def architecture(arrays, config):
  """Returns the arguments of models.build for canonical arrays.

  Raises:
    ValueError: if the arrays are of no model that there is.
  """
  del config
  if any(name.startswith('resnet/') for name in arrays):
    return infer.resnet(
      root=infer.get(arrays, 'resnet/root_block/standardized_conv2d/kernel'),
      depths=infer.depths(arrays, r'resnet/block(\d+)/unit(\d+)/'),
      num_classes=infer.size(arrays, 'resnet/head/conv2d/kernel', -1),
      version=2,
    )
  stem = {}
  if 'conv_root/kernel' in arrays:
    depths = infer.depths(arrays, r'block(\d+)/unit(\d+)/')
    root = arrays['conv_root/kernel']
    stem = dict(stem_depths=depths, stem_width=root.shape[-1] / 64)
    if not any(name.startswith('Transformer/') for name in arrays):
      num_classes = infer.size(arrays, 'head/kernel', -1)
      return infer.resnet(root, depths, num_classes, version=1)
  block = 'Transformer/encoderblock_0/'
  kernel = infer.get(arrays, 'embedding/kernel')
  query = infer.get(
    arrays, f'{block}MultiHeadDotProductAttention_1/query/kernel'
  )
  has_map = 'MAPHead_0/probe' in arrays
  return infer.vit(
    patch_size=kernel.shape[0],
    hidden_size=kernel.shape[-1],
    depth=infer.depth(arrays, r'Transformer/encoderblock_(\d+)/'),
    mlp_dim=infer.get(arrays, f'{block}MlpBlock_3/Dense_0/kernel').shape[-1],
    num_heads=query.shape[1],
    num_classes=infer.size(arrays, 'head/kernel', -1),
    head='map' if has_map else 'token' if 'cls' in arrays else 'gap',
    pre_logits='pre_logits/kernel' in arrays,
    position_embedding=_position_embedding(arrays),
    **stem,
  )


def _position_embedding(arrays):
  """Returns the kind: big_vision's fixed embeddings leave no array."""
  if POSITIONS in arrays:
    return '1d'
  if 'cls' in arrays:
    raise ValueError(
      f'it has a class token, but lacks {POSITIONS!r}; if its positions are '
      'fixed, there is no class token in models that are known'
    )
  return 'sincos2d'


def rows(model):
  """Returns the layout of a ViT or ResNet module."""
  if hasattr(model, 'version'):
    return _bit_rows(model) if model.version == 2 else _v1_rows(model)
  result = [
    Row('class_token', 'cls'),
    Row('embedding', 'embedding'),
    Row('position_embedding', POSITIONS),
    Row('norm', 'Transformer/encoder_norm'),
    Row('pre_logits', 'pre_logits'),
    Row('head', 'head'),
    Row('attention_pool/probe', 'MAPHead_0/probe'),
    Row('attention_pool/norm', 'MAPHead_0/LayerNorm_0'),
    Row('attention_pool/mlp_in', 'MAPHead_0/MlpBlock_0/Dense_0'),
    Row('attention_pool/mlp_out', 'MAPHead_0/MlpBlock_0/Dense_1'),
  ]
  attention = 'MAPHead_0/MultiHeadDotProductAttention_0'
  result += [
    Row('attention_pool/query', f'{attention}/query'),
    Row('attention_pool/key_value', f'{attention}/key', part=0),
    Row('attention_pool/key_value', f'{attention}/value', part=1),
    Row('attention_pool/out', f'{attention}/out'),
  ]
  for i in range(model.depth):
    block = f'Transformer/encoderblock_{i}'
    attention = f'{block}/MultiHeadDotProductAttention_1'
    result += [
      Row('blocks/attention_norm', f'{block}/LayerNorm_0', i),
      Row('blocks/attention/out', f'{attention}/out', i),
      Row('blocks/mlp_norm', f'{block}/LayerNorm_2', i),
      Row('blocks/mlp_in', f'{block}/MlpBlock_3/Dense_0', i),
      Row('blocks/mlp_out', f'{block}/MlpBlock_3/Dense_1', i),
    ]
    for part, name in enumerate(('query', 'key', 'value')):
      result.append(Row('blocks/attention/qkv', f'{attention}/{name}', i, part))
  return result + _stem_rows('stem', model.stem_depths or ())


def style(model):
  """Returns the Style in which a model's file is written."""
  return TENSORFLOW if getattr(model, 'version', 1) == 2 else JAX


def _v1_rows(model):
  return [Row('head', 'head'), *_stem_rows('backbone', model.depths)]


def _stem_rows(ours, depths):
  result = [
    Row(f'{ours}/root/conv', 'conv_root'),
    Row(f'{ours}/root/norm', 'gn_root'),
  ]
  for unit, layer, stage, number in infer.units(ours, depths):
    theirs = f'block{stage}/unit{number}'
    for name in ('1', '2', '3', '_proj'):
      result += [
        Row(f'{unit}/conv{name}', f'{theirs}/conv{name}', layer),
        Row(f'{unit}/norm{name}', f'{theirs}/gn{name}', layer),
      ]
  return result


def _bit_rows(model):
  conv = 'standardized_conv2d'
  result = [
    Row('backbone/root/conv', f'resnet/root_block/{conv}'),
    Row('norm', 'resnet/group_norm'),
    Row('head', 'resnet/head/conv2d', as_conv=True),
  ]
  for unit, layer, stage, number in infer.units('backbone', model.depths):
    theirs = f'resnet/block{stage}/unit{number:02}'
    result.append(Row(f'{unit}/conv_proj', f'{theirs}/a/proj/{conv}', layer))
    for i, letter in enumerate('abc', 1):
      result += [
        Row(f'{unit}/conv{i}', f'{theirs}/{letter}/{conv}', layer),
        Row(f'{unit}/norm{i}', f'{theirs}/{letter}/group_norm', layer),
      ]
  return result
