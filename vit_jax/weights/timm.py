"""The names in timm's `.safetensors` files: ViT, hybrids, BiT."""

import re

import numpy as np

from vit_jax.weights import infer
from vit_jax.weights.layout import TORCH, Row

POSITIONS = 'pos_embed'


def matches(arrays):
  """Returns whether the names are of these files."""
  names = ('patch_embed.proj.weight', 'stages.0.blocks.0.conv1.weight')
  return any(name in arrays for name in names)


def canonical(arrays, config):
  """Returns the arrays of a plain ViT, and what was changed.

  LayerScale is folded into the layer before it, and the normalisation of pixels
  into the patch embedding, which changes nothing; positions of patches alone
  get 0 for the tokens before them.

  Returns:
    dict from name to array, and dict from the names of those that were changed
    to what was done.
  """
  arrays, changed = dict(arrays), {}
  for name in [n for n in arrays if re.search(r'\.ls[12]\.gamma$', n)]:
    gamma = arrays.pop(name).astype(np.float32)
    layer = {'ls1': 'attn.proj', 'ls2': 'mlp.fc2'}[name.split('.')[-2]]
    block = name.rsplit('.', 2)[0]
    for leaf in ('weight', 'bias'):
      scaled = f'{block}.{layer}.{leaf}'
      array = infer.get(arrays, scaled).astype(np.float32)
      # Rows of a weight are outputs.
      arrays[scaled] = (array.T * gamma).T
      changed[scaled] = 'times LayerScale'
  if 'pos_embed' in arrays:
    prefix = sum(
      infer.size(arrays, name, 1) for name in ('cls_token', 'reg_token')
    )
    positions = infer.with_prefix(
      arrays['pos_embed'], prefix, config.get('grid')
    )
    if positions is not arrays['pos_embed']:
      changed['pos_embed'] = 'with 0 for the tokens before'
    arrays['pos_embed'] = positions
  is_padded = any('stem.conv' in n or 'backbone' in n for n in arrays)
  if is_padded and infer.is_normalised(config):
    raise ValueError(
      f'its pixels are normalised by mean={config["mean"]} and std='
      f'{config["std"]}, which a padded convolution cannot take over'
    )
  arrays, folded = infer.fold_normalisation(arrays, 'patch_embed.proj', config)
  return arrays, changed | folded


def architecture(arrays, config):
  """Returns the arguments of models.build for canonical arrays.

  Args:
    arrays: dict from name to array.
    config: dict, see `beside`.

  Raises:
    ValueError: if the arrays are of no model that there is.
  """
  if 'patch_embed.proj.weight' not in arrays:
    return infer.resnet(
      root=infer.get(arrays, 'stem.conv.weight').transpose(2, 3, 1, 0),
      depths=infer.depths(arrays, r'stages\.(\d+)\.blocks\.(\d+)\.', first=0),
      num_classes=infer.size(arrays, 'head.fc.weight', 0),
      version=2,
    )
  stem, backbone = {}, 'patch_embed.backbone.'
  for root in ('conv.weight', 'stem.conv.weight'):
    if backbone + root in arrays:
      pattern = re.escape(backbone) + r'stages\.(\d+)\.blocks\.(\d+)\.'
      stem = dict(
        stem_depths=infer.depths(arrays, pattern, first=0),
        stem_width=len(arrays[backbone + root]) / 64,
      )
  hidden_size, _, patch_size, _ = arrays['patch_embed.proj.weight'].shape
  after_pool = 'fc_norm.weight' in arrays
  if 'pos_embed' not in arrays and config.get('position_embedding') != 'none':
    raise ValueError(
      "it lacks 'pos_embed'; if its model has no positions, pass "
      "position_embedding='none'"
    )
  return infer.vit(
    patch_size=patch_size,
    hidden_size=hidden_size,
    depth=infer.depth(arrays, r'blocks\.(\d+)\.'),
    mlp_dim=len(infer.get(arrays, 'blocks.0.mlp.fc1.weight')),
    num_heads=infer.num_heads(hidden_size, config),
    num_classes=infer.size(arrays, 'head.weight', 0),
    position_embedding='1d' if 'pos_embed' in arrays else 'none',
    head=_head(arrays, config.get('pool')),
    class_token='cls_token' in arrays,
    num_registers=infer.size(arrays, 'reg_token', 1),
    norm_after_pool=after_pool,
    gelu=config.get('gelu', 'exact'),
    **stem,
  )


def _head(arrays, pool):
  """Returns what represents an image: as config.json says, or timm's default.

  Without a word, a norm after the pooling means that tokens are averaged.
  """
  if pool is None:
    if 'attn_pool.latent' in arrays:
      return 'map'
    is_token = 'cls_token' in arrays and 'fc_norm.weight' not in arrays
    return 'token' if is_token else 'gap'
  heads = {'token': 'token', 'avg': 'gap', 'map': 'map'}
  if pool not in heads:
    raise ValueError(
      f'its config.json has global_pool={pool!r}; there is {", ".join(heads)}'
    )
  return heads[pool]


def rows(model):
  """Returns the layout of a ViT or ResNet module."""
  if hasattr(model, 'version'):
    return [
      Row('backbone/root/conv', 'stem.conv'),
      Row('norm', 'norm'),
      Row('head', 'head.fc', as_conv=True),
      *_stage_rows('backbone', model.depths, ''),
    ]
  result = [
    Row('class_token', 'cls_token'),
    Row('registers', 'reg_token'),
    Row('embedding', 'patch_embed.proj'),
    Row('position_embedding', 'pos_embed'),
    Row('norm', 'fc_norm' if model.norm_after_pool else 'norm'),
    Row('head', 'head'),
    Row('attention_pool/probe', 'attn_pool.latent'),
    Row('attention_pool/query', 'attn_pool.q'),
    Row('attention_pool/key_value', 'attn_pool.kv'),
    Row('attention_pool/out', 'attn_pool.proj'),
    Row('attention_pool/norm', 'attn_pool.norm'),
    Row('attention_pool/mlp_in', 'attn_pool.mlp.fc1'),
    Row('attention_pool/mlp_out', 'attn_pool.mlp.fc2'),
  ]
  for i in range(model.depth):
    result += [
      Row('blocks/attention_norm', f'blocks.{i}.norm1', i),
      Row('blocks/attention/qkv', f'blocks.{i}.attn.qkv', i),
      Row('blocks/attention/out', f'blocks.{i}.attn.proj', i),
      Row('blocks/mlp_norm', f'blocks.{i}.norm2', i),
      Row('blocks/mlp_in', f'blocks.{i}.mlp.fc1', i),
      Row('blocks/mlp_out', f'blocks.{i}.mlp.fc2', i),
    ]
  if model.stem_depths is None:
    return result
  backbone = 'patch_embed.backbone.'
  # Without stages timm has the stem's layers directly.
  root = f'{backbone}stem.' if model.stem_depths else backbone
  return [
    *result,
    Row('stem/root/conv', f'{root}conv'),
    Row('stem/root/norm', f'{root}norm'),
    *_stage_rows('stem', model.stem_depths, backbone),
  ]


def style(model):
  """Returns the Style in which a model's file is written."""
  del model
  return TORCH


def _stage_rows(ours, depths, prefix):
  result = []
  for unit, layer, stage, number in infer.units(ours, depths):
    theirs = f'{prefix}stages.{stage - 1}.blocks.{number - 1}'
    for i in (1, 2, 3):
      result += [
        Row(f'{unit}/conv{i}', f'{theirs}.conv{i}', layer),
        Row(f'{unit}/norm{i}', f'{theirs}.norm{i}', layer),
      ]
    result += [
      Row(f'{unit}/conv_proj', f'{theirs}.downsample.conv', layer),
      Row(f'{unit}/norm_proj', f'{theirs}.downsample.norm', layer),
    ]
  return result
