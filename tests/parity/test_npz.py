"""timm reads our `.npz` files with its own reader of Google's layout."""

import numpy as np
import pytest
import timm
from parity.both import (
  differences,
  make_images,
  our_model,
  our_outputs,
  timm_outputs,
)
from timm.models.vision_transformer import VisionTransformer

from vit_jax import weights
from vit_jax.weights import files

pytestmark = pytest.mark.parity

SMALL = dict(
  variant='Ti/8', num_classes=5, hidden_size=24, depth=2, mlp_dim=48,
  num_heads=3,
)  # fmt: skip
TINY = dict(
  img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, mlp_ratio=2.0,
  num_classes=5, act_layer='gelu_tanh',
)  # fmt: skip
SHORT = dict(hidden_size=64, depth=2, mlp_dim=256, num_heads=1, num_classes=5)
THEIR_SHORT = dict(
  img_size=64, embed_dim=64, depth=2, num_heads=1, num_classes=5,
  act_layer='gelu_tanh',
)  # fmt: skip


def vit(**arguments):
  return lambda: VisionTransformer(**TINY | arguments)


CASES = {  # format, our arguments, what makes theirs, size of images
  'token': ('ViT', SMALL, vit(), (32, 32)),
  'gap': (
    'ViT',
    SMALL | dict(head='gap'),
    vit(class_token=False, global_pool='avg', fc_norm=False),
    (32, 32),
  ),
  'map': (
    'ViT',
    SMALL | dict(head='map'),
    vit(class_token=False, global_pool='map'),
    (32, 32),
  ),
  'Ti/16': (
    'ViT',
    dict(variant='Ti/16', num_classes=1000),
    lambda: timm.create_model('vit_tiny_patch16_224', act_layer='gelu_tanh'),
    (224, 224),
  ),
  'R50+/16': (
    'hybrid',
    SHORT | dict(variant='R50+ViT-B/16'),
    lambda: timm.create_model('vit_base_r50_s16_224', **THEIR_SHORT),
    (64, 64),
  ),
  'R+Ti/16': (
    'hybrid',
    dict(variant='R+ViT-Ti/16', num_classes=5, depth=2),
    lambda: timm.create_model(
      'vit_tiny_r_s16_p8_224', img_size=64, depth=2, num_classes=5,
      act_layer='gelu_tanh',
    ),
    (64, 64),
  ),
  'BiT-R50x1': (
    'BiT',
    dict(name='resnet', variant='R50x1', num_classes=7),
    lambda: timm.create_model('resnetv2_50x1_bit', num_classes=7),
    (65, 97),
  ),
}  # fmt: skip


@pytest.mark.parametrize('case', CASES)
def test_their_reader(case, tmp_path, agree):
  kind, arguments, make, size = CASES[case]
  model, params = our_model(size, **arguments)
  weights.save(tmp_path / 'x.npz', model, params)
  theirs = make().eval()
  theirs.load_pretrained(str(tmp_path / 'x.npz'))
  images = make_images(*size)
  ours = our_outputs(model, params, images)
  agree(ours, timm_outputs(theirs, images), (f'npz {kind}', 'ours to theirs'))


def as_big_vision(arrays, scanned):
  """Returns arrays as big_vision names them, given the older names."""
  renamed = {}
  for name, array in arrays.items():
    for old, new in (
      ('MultiHeadDotProductAttention_1', 'MultiHeadDotProductAttention_0'),
      ('LayerNorm_2', 'LayerNorm_1'),
      ('MlpBlock_3', 'MlpBlock_0'),
      ('Transformer/posembed_input/pos_embedding', 'pos_embedding'),
    ):
      name = name.replace(old, new)
    renamed[f'params/{name}'] = array
  first = 'params/Transformer/encoderblock_0/'
  for name in [n for n in renamed if scanned and n.startswith(first)]:
    layers = [renamed.pop(name.replace('_0/', f'_{i}/', 1)) for i in range(2)]
    renamed[name.replace('_0/', '/', 1)] = np.stack(layers)
  return renamed


@pytest.mark.parametrize('scanned', [False, True])
@pytest.mark.parametrize('head', ['token', 'gap', 'map'])
def test_both_readers_of_big_vision(head, scanned, tmp_path, agree):
  """Positions of patches alone at the top level, added before the token."""
  model, params = our_model((32, 32), **SMALL | dict(head=head))
  weights.save(tmp_path / 'x.npz', model, params)
  arrays = as_big_vision(files.read(tmp_path / 'x.npz'), scanned)
  if head == 'token':
    positions = arrays['params/pos_embedding']
    arrays['params/pos_embedding'] = np.ascontiguousarray(positions[:, 1:])
  files.write(tmp_path / 'y.npz', arrays)
  theirs = vit(
    no_embed_class=True, class_token=head == 'token', fc_norm=False,
    global_pool={'gap': 'avg'}.get(head, head),
  )().eval()  # fmt: skip
  theirs.load_pretrained(str(tmp_path / 'y.npz'))
  images = make_images(32)
  ours = our_outputs(*weights.load(tmp_path / 'y.npz'), images)
  expected = timm_outputs(theirs, images)
  agree(ours, expected, ('npz big_vision', 'both read it'))


def test_a_mistake_would_show(tmp_path):
  """Two norms, swapped in a file, move outputs by far more than 1e-4."""
  model, params = our_model((32, 32), **SMALL)
  weights.save(tmp_path / 'x.npz', model, params)
  arrays = files.read(tmp_path / 'x.npz')
  one, other = (
    f'Transformer/encoderblock_1/LayerNorm_{i}/bias' for i in (0, 2)
  )
  arrays[one], arrays[other] = arrays[other], arrays[one]
  files.write(tmp_path / 'y.npz', arrays)
  theirs = vit()().eval()
  theirs.load_pretrained(str(tmp_path / 'y.npz'))
  images = make_images(32)
  found = differences(
    our_outputs(model, params, images), timm_outputs(theirs, images)
  )
  assert min(found.values()) > 1e-2
