"""timm's models and ours agree, whoever's weights they are."""

import functools

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from parity.both import (
  differences,
  from_timm,
  make_images,
  our_model,
  our_outputs,
  randomise,
  timm_outputs,
  to_timm,
)
from timm.models import save_for_hf
from timm.models.vision_transformer import VisionTransformer

from vit_jax import weights

pytestmark = pytest.mark.parity

THEIRS, OURS = 'theirs to ours', 'ours to theirs'


TINY = dict(
  img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, mlp_ratio=2.0,
  num_classes=5,
)  # fmt: skip
NO_CLASS = dict(class_token=False, global_pool='avg')
VITS = {  # arguments of theirs
  'token': {},
  'no head': dict(num_classes=0),
  'no positions': dict(pos_embed='none'),
  'gap': NO_CLASS,
  'gap beside a class token': dict(global_pool='avg'),
  'gap after the norm': dict(fc_norm=False, **NO_CLASS),
  'SigLIP': dict(class_token=False, global_pool='map'),
  'DeiT III': dict(init_values=1e-6, no_embed_class=True),
  'registers': dict(reg_tokens=4),
  'registers without positions': dict(reg_tokens=4, no_embed_class=True),
  'registers and gap': dict(reg_tokens=4, no_embed_class=True, **NO_CLASS),
  'rectangle': dict(img_size=(24, 40)),
}


@pytest.mark.parametrize('case', VITS)
def test_vit_of_theirs(case, tmp_path, agree):
  arguments = TINY | VITS[case]
  theirs = randomise(VisionTransformer(**arguments))
  height, width = np.broadcast_to(arguments['img_size'], 2)
  model, params = from_timm(
    tmp_path / 'x.safetensors',
    theirs,
    num_heads=3,
    grid=(height // 8, width // 8),
    position_embedding='none' if case == 'no positions' else None,
  )
  images = make_images(height, width)
  expected = timm_outputs(theirs, images)
  assert ('logits' in expected) == (case != 'no head')
  agree(our_outputs(model, params, images), expected, ('timm ViT', THEIRS))


@pytest.mark.parametrize(
  'name', ['vit_tiny_patch16_224', 'vit_base_patch32_224']
)
def test_real_vit_of_theirs(name, tmp_path, agree):
  theirs = randomise(timm.create_model(name))
  model, params = from_timm(tmp_path / 'x.safetensors', theirs)
  images = make_images(224)
  expected = timm_outputs(theirs, images)
  agree(our_outputs(model, params, images), expected, ('timm ViT', THEIRS))


@pytest.mark.parametrize('size', [(24, 32), (40, 56), (72, 16)])
def test_vit_of_theirs_at_another_size(size, tmp_path, agree):
  theirs = VisionTransformer(dynamic_img_size=True, **TINY)
  model, params = from_timm(
    tmp_path / 'x.safetensors',
    randomise(theirs),
    num_heads=3,
    image_size=size,
    resize='cubic',
  )
  images = make_images(*size)
  expected = timm_outputs(theirs, images)
  agree(
    our_outputs(model, params, images), expected, ('timm ViT, resized', THEIRS)
  )


def test_normalised_pixels_of_theirs(tmp_path, agree):
  """What timm uploads says how pixels are normalised, and how many heads."""
  theirs = randomise(
    timm.create_model(
      'deit3_small_patch16_224', img_size=32, depth=2, embed_dim=24, num_heads=3
    )
  )
  save_for_hf(theirs, tmp_path, safe_serialization=True)
  model, params = weights.load(tmp_path)
  images = make_images(32)
  mean, std = (
    np.array(theirs.pretrained_cfg[name], 'f4') for name in ('mean', 'std')
  )
  assert mean[0] == np.float32(0.485)
  expected = timm_outputs(theirs, ((images + 1) / 2 - mean) / std)
  agree(our_outputs(model, params, images), expected, ('timm ViT', THEIRS))


def small(**arguments):
  """Returns arguments of models.build that make what TINY makes."""
  return dict(
    variant='Ti/8', num_classes=5, hidden_size=24, depth=2, mlp_dim=48,
    num_heads=3,
  ) | arguments  # fmt: skip


OUR_VITS = {  # arguments of ours, of theirs
  'token': (small(), dict(act_layer='gelu_tanh')),
  'token, exact GELU': (small(gelu='exact'), {}),
  'epsilon': (
    small(norm_epsilon=1e-2),
    dict(
      act_layer='gelu_tanh',
      norm_layer=functools.partial(timm.layers.LayerNorm, eps=1e-2),
    ),
  ),
  'gap': (
    small(head='gap'),
    dict(act_layer='gelu_tanh', fc_norm=False, **NO_CLASS),
  ),
  'gap before the norm': (
    small(head='gap', norm_after_pool=True, gelu='exact'),
    NO_CLASS,
  ),
  'map': (
    small(head='map'),
    dict(act_layer='gelu_tanh', class_token=False, global_pool='map'),
  ),
  'registers': (small(num_registers=4, gelu='exact'), dict(reg_tokens=4)),
  'no head': (small(num_classes=0, gelu='exact'), dict(num_classes=0)),
  'rectangle': (small(gelu='exact'), dict(img_size=(24, 40))),
}


@pytest.mark.parametrize('case', OUR_VITS)
def test_vit_of_ours(case, tmp_path, agree):
  ours, theirs = OUR_VITS[case]
  theirs = TINY | theirs
  size = tuple(np.broadcast_to(theirs['img_size'], 2).tolist())
  model, params = our_model(size, **ours)
  vit = to_timm(
    tmp_path / 'x.safetensors', model, params, VisionTransformer(**theirs),
    image_size=size,
  )  # fmt: skip
  images = make_images(*size)
  expected = timm_outputs(vit, images)
  agree(our_outputs(model, params, images), expected, ('timm ViT', OURS))


@pytest.mark.parametrize(
  ('variant', 'name'),
  [('Ti/16', 'vit_tiny_patch16_224'), ('B/32', 'vit_base_patch32_224')],
)
def test_real_vit_of_ours(variant, name, tmp_path, agree):
  model, params = our_model((224, 224), variant=variant, num_classes=1000)
  theirs = timm.create_model(name, act_layer='gelu_tanh')
  to_timm(tmp_path / 'x.safetensors', model, params, theirs)
  images = make_images(224)
  expected = timm_outputs(theirs, images)
  agree(our_outputs(model, params, images), expected, ('timm ViT', OURS))


def swap_query_and_key(arrays):
  name = 'blocks.1.attn.qkv.weight'
  query, key, value = arrays[name].chunk(3)
  arrays[name] = torch.cat([key, query, value])


def swap_norms(arrays):
  one, other = (f'blocks.0.norm{i}.bias' for i in (1, 2))
  arrays[one], arrays[other] = arrays[other], arrays[one]


MISTAKES = {'query and key': swap_query_and_key, 'norms': swap_norms}


@pytest.mark.parametrize('case', MISTAKES)
def test_a_mistake_would_show(case, tmp_path):
  """Two arrays of one shape, swapped, move outputs by far more than 1e-4."""
  theirs, images = randomise(VisionTransformer(**TINY)), make_images(32)
  arrays = theirs.state_dict()
  MISTAKES[case](arrays)
  safetensors.torch.save_file(arrays, tmp_path / 'x.safetensors')
  model, params = weights.load(tmp_path / 'x.safetensors', num_heads=3)
  found = differences(
    our_outputs(model, params, images), timm_outputs(theirs, images)
  )
  assert min(found.values()) > 1e-2
