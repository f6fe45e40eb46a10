"""The names in Hugging Face's ViT files, and the config.json beside them."""

import re

from vit_jax.weights import infer
from vit_jax.weights.layout import TORCH, Row

POSITIONS = 'embeddings.position_embeddings'
_PATCHES = 'embeddings.patch_embeddings.projection'
# Transformers 5 renames modules in memory -> what its files say.
_RENAMED = (
  (r'^layers\.(\d+)\.attention\.([qkv])_proj', r'encoder.layer.\1.\2'),
  (r'^layers\.(\d+)\.attention\.o_proj', r'encoder.layer.\1.attention.output'),
  (r'^layers\.(\d+)\.mlp\.fc1', r'encoder.layer.\1.intermediate'),
  (r'^layers\.(\d+)\.mlp\.fc2', r'encoder.layer.\1.output'),
  (r'^layers\.', 'encoder.layer.'),
  (r'(attention\.output|intermediate|\d\.output)\.(?=weight|bias)',
   r'\1.dense.'),
  (r'(layer\.\d+)\.q\.', r'\1.attention.attention.query.'),
  (r'(layer\.\d+)\.k\.', r'\1.attention.attention.key.'),
  (r'(layer\.\d+)\.v\.', r'\1.attention.attention.value.'),
)  # fmt: skip


def matches(arrays):
  """Returns whether the names are of these files."""
  return any(name.endswith(f'{_PATCHES}.weight') for name in arrays)


def canonical(arrays, config):
  """Returns the arrays under the names that files have, without 'vit.'.

  The normalisation of pixels is folded into the patch embedding.

  Returns:
    dict from name to array, and dict from the names of those that were changed
    to what was done.
  """

  def rename(name):
    name = name.removeprefix('vit.')
    for pattern, replacement in _RENAMED:
      name = re.sub(pattern, replacement, name)
    return name

  result = infer.renamed(arrays, rename)
  return infer.fold_normalisation(result, _PATCHES, config)


def architecture(arrays, config):
  """Returns the arguments of models.build for canonical arrays.

  Args:
    arrays: dict from name to array.
    config: dict, see `beside`.

  Raises:
    ValueError: if the arrays are of no model that there is.
  """
  hidden_size, _, patch_size, _ = infer.get(arrays, f'{_PATCHES}.weight').shape
  infer.get(arrays, POSITIONS)
  return infer.vit(
    patch_size=patch_size,
    hidden_size=hidden_size,
    depth=infer.depth(arrays, r'encoder\.layer\.(\d+)\.'),
    mlp_dim=len(infer.get(arrays, 'encoder.layer.0.intermediate.dense.weight')),
    num_heads=infer.num_heads(hidden_size, config),
    num_classes=infer.size(arrays, 'classifier.weight', 0),
    head='token',
    pre_logits='pooler.dense.weight' in arrays,
    gelu=config.get('gelu', 'exact'),
    norm_epsilon=config.get('norm_epsilon', 1e-12),
  )


def with_prefix(arrays):
  """Returns arrays as files name them: 'vit.' before all but a classifier."""
  if 'classifier.weight' not in arrays:
    return arrays
  return {
    name if name.startswith('classifier.') else f'vit.{name}': array
    for name, array in arrays.items()
  }


def rows(model):
  """Returns the layout of a ViT module, without 'vit.'."""
  result = [
    Row('class_token', 'embeddings.cls_token'),
    Row('embedding', _PATCHES),
    Row('position_embedding', 'embeddings.position_embeddings'),
    Row('norm', 'layernorm'),
    Row('head', 'classifier'),
    Row('pre_logits', 'pooler.dense'),
  ]
  for i in range(model.depth):
    layer = f'encoder.layer.{i}'
    result += [
      Row('blocks/attention_norm', f'{layer}.layernorm_before', i),
      Row('blocks/attention/out', f'{layer}.attention.output.dense', i),
      Row('blocks/mlp_norm', f'{layer}.layernorm_after', i),
      Row('blocks/mlp_in', f'{layer}.intermediate.dense', i),
      Row('blocks/mlp_out', f'{layer}.output.dense', i),
    ]
    for part, name in enumerate(('query', 'key', 'value')):
      theirs = f'{layer}.attention.attention.{name}'
      result.append(Row('blocks/attention/qkv', theirs, i, part))
  return result


def style(model):
  """Returns the Style in which a model's file is written."""
  del model
  return TORCH


def config_json(model, image_size, labels=None):
  """Returns dict from file name to what transformers needs beside the arrays.

  Raises:
    ValueError: on a model that transformers' ViT is not.
  """
  different = {
    'a ResNet': hasattr(model, 'version'),
    f'head={getattr(model, "head", "")!r}': getattr(model, 'head', '')
    != 'token',
    'a hybrid': getattr(model, 'stem_depths', None) is not None,
    'registers': getattr(model, 'num_registers', 0) > 0,
    'pre_logits before a head': getattr(model, 'pre_logits', False)
    and model.num_classes,
    'norm_after_pool': getattr(model, 'norm_after_pool', False),
    'such position embeddings': (
      getattr(model, 'position_embedding', ''),
      getattr(model, 'position_embedding_at', ''),
    )
    != ('1d', 'stem'),
  }
  wrong = [name for name, is_so in different.items() if is_so]
  if wrong:
    raise ValueError(
      f"Hugging Face's ViT has no {', '.join(wrong)}; convert to timm, npz or "
      'orbax.'
    )
  kind = 'ViTForImageClassification' if model.num_classes else 'ViTModel'
  labels = labels or [f'LABEL_{i}' for i in range(model.num_classes)]
  labels = dict(enumerate(labels[: model.num_classes]))
  height, width = image_size
  size = dict(height=height, width=width)
  preprocessor = dict(
    image_processor_type='ViTImageProcessor',
    image_mean=[0.5] * 3,
    image_std=[0.5] * 3,
    do_normalize=True,
    do_rescale=True,
    rescale_factor=1 / 255,
    do_resize=True,
    resample=2,  # bilinear
    size=size,
  )
  config = dict(
    architectures=[kind],
    model_type='vit',
    hidden_size=model.hidden_size,
    num_hidden_layers=model.depth,
    num_attention_heads=model.num_heads,
    intermediate_size=model.mlp_dim,
    hidden_act={'exact': 'gelu', 'tanh': 'gelu_pytorch_tanh'}[model.gelu],
    layer_norm_eps=model.norm_epsilon,
    image_size=height if height == width else [height, width],
    patch_size=model.patch_size,
    num_channels=3,
    pooler_act='tanh',
    pooler_output_size=model.hidden_size,
    qkv_bias=True,
    id2label={str(i): label for i, label in labels.items()},
    label2id={label: i for i, label in labels.items()},
  )
  return {'config.json': config, 'preprocessor_config.json': preprocessor}
