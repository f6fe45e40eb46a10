"""What config.json and preprocessor_config.json say of the weights beside them.

timm and transformers write them. They are not trusted: what is of another type
than it should be is an error, what is not there is None.
"""

import json
import re

_GELUS = {
  'gelu': 'exact',
  'gelu_new': 'tanh',
  'gelu_pytorch_tanh': 'tanh',
  'gelu_fast': 'tanh',
  'gelu_tanh': 'tanh',
}


# What timm's code says of an architecture, and its config.json does not.
_ARCHITECTURES = (
  ('vit_base_patch16_gap_224', dict(num_heads=16)),
  (r'vit_giantopt_.*', dict(num_heads=16, gelu='tanh')),
  (
    r'vit_(so400m_patch16_siglip|base_patch32_siglip).*'
    r'|vit_large_patch16_siglip(_gap)?_512',
    dict(gelu='tanh'),
  ),
)


def read(file):
  """Returns dict of what is said beside a file called model.safetensors.

  Args:
    file: `epath.Path`.

  Returns:
    'mean' and 'std' of pixels in [0, 1]; 'image_size', (height, width);
    'num_heads'; 'gelu', see `models.vit`; 'norm_epsilon'; 'pool', timm's word;
    'labels', a tuple of class names; 'preprocess', see `data.preprocess`. Only
    what is said.

  Raises:
    ValueError: if a file is no JSON object, or a value is none that it can be.
  """
  if file.name != 'model.safetensors':
    return {}
  config = _json(file.parent / 'config.json')
  images = _json(file.parent / 'preprocessor_config.json')
  trained = _typed(config, 'pretrained_cfg', dict) or {}
  arguments = _typed(config, 'model_args', dict) or {}
  mean, std = (
    _floats(trained, name) or _floats(images, f'image_{name}')
    for name in ('mean', 'std')
  )
  size = trained.get('input_size', config.get('image_size'))
  activation = config.get('hidden_act') or arguments.get('act_layer')
  name = _typed(config, 'architecture', str) or ''
  known = {}
  for pattern, said in _ARCHITECTURES:
    if re.fullmatch(pattern, name):
      known = said
  values = dict(
    mean=mean,
    std=std,
    image_size=None if size is None else _size(size),
    num_heads=_typed(config, 'num_attention_heads', int)
    or _typed(arguments, 'num_heads', int),
    gelu=None if activation is None else _gelu(activation),
    norm_epsilon=_typed(config, 'layer_norm_eps', float),
    pool=_typed(arguments, 'global_pool', str)
    or _typed(config, 'global_pool', str),
    labels=_labels(_typed(config, 'id2label', dict) or {}),
    preprocess=None if size is None else _preprocess(size, trained, images),
  )
  return known | {k: value for k, value in values.items() if value is not None}


def _json(path):
  if not path.exists():
    return {}
  try:
    return dict(json.loads(path.read_text()))
  except (ValueError, TypeError) as error:
    raise ValueError(
      f'{path} is no JSON object ({error}); delete it, or get it again.'
    ) from None


def _typed(config, name, kind):
  value = config.get(name)
  if value is None or isinstance(value, kind):
    return value
  raise ValueError(
    f'its config.json has {name}={value!r}, which is no {kind.__name__}'
  )


def _floats(config, name):
  values = _typed(config, name, list)
  if values and not all(isinstance(v, int | float) for v in values):
    raise ValueError(f'its config.json has {name}={values!r}, no numbers')
  return values


def _size(value):
  """Returns (height, width) of 224, [224, 160] or [3, 224, 160]."""
  sizes = value if isinstance(value, list) else [value] * 2
  if not 2 <= len(sizes) <= 3 or not all(
    isinstance(size, int) and 0 < size < 10_000 for size in sizes
  ):
    raise ValueError(f'its config.json has an image size of {value!r}')
  return tuple(sizes[-2:])


def _preprocess(size, trained, images):
  """Returns the recipe of evaluation, or None if nothing is said of it."""
  height, width = _size(size)
  share = _typed(trained, 'crop_pct', float)
  if share and height == width and 0.1 < share <= 1:
    return f'resize_small({int(height / share)})|central_crop({height})'
  if images.get('do_resize') and not images.get('do_center_crop'):
    return f'resize({height}, {width})'
  return None


def _gelu(activation):
  gelu = _GELUS.get(activation) if isinstance(activation, str) else None
  if gelu is None:
    raise ValueError(
      f'its config.json has the activation {activation!r}; there is '
      f'{", ".join(_GELUS)}'
    )
  return gelu


def _labels(by_index):
  """Returns the class names, or None if there are none but LABEL_0, ..."""
  labels = tuple(str(by_index.get(str(i))) for i in range(len(by_index)))
  return None if not labels or 'LABEL_0' in labels else labels
