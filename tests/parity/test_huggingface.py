"""transformers' ViT and ours agree, whoever's weights they are."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch
from parity.both import (
  differences,
  make_images,
  our_model,
  our_outputs,
  randomise,
)
from transformers import ViTConfig, ViTForImageClassification, ViTModel

from vit_jax import weights

pytestmark = pytest.mark.parity

THEIRS = 'Hugging Face ViT', 'theirs to ours'
OURS = 'Hugging Face ViT', 'ours to theirs'
TINY = dict(
  image_size=32, patch_size=8, hidden_size=24, num_hidden_layers=2,
  num_attention_heads=3, intermediate_size=48, num_labels=5,
)  # fmt: skip


def their_outputs(model, images):
  x = torch.from_numpy(images.transpose(0, 3, 1, 2))
  with torch.no_grad():
    if not isinstance(model, ViTModel):
      tokens = model.vit(x).last_hidden_state
      outputs = dict(logits=model(x).logits, representation=tokens[:, 0])
    else:
      tokens = model(x).last_hidden_state
      pooled = model(x).pooler_output
      outputs = dict(representation=tokens[:, 0] if pooled is None else pooled)
  return {
    name: a.numpy() for name, a in (outputs | dict(tokens=tokens)).items()
  }


def outputs(checkpoint, images):
  return our_outputs(checkpoint.model, checkpoint.params, images)


CASES = {  # their arguments
  'exact GELU': {},
  'tanh GELU': dict(hidden_act='gelu_pytorch_tanh'),
  'epsilon': dict(layer_norm_eps=1e-2),
  'rectangle': dict(image_size=[24, 40]),
  'Ti/16': dict(
    image_size=224, patch_size=16, hidden_size=192, num_hidden_layers=12,
    intermediate_size=768, num_labels=1000,
  ),
}  # fmt: skip


@pytest.mark.parametrize('case', CASES)
def test_classifier_of_theirs(case, tmp_path, agree):
  config = ViTConfig(**TINY | CASES[case])
  theirs = randomise(ViTForImageClassification(config))
  theirs.save_pretrained(tmp_path)
  size = np.broadcast_to(config.image_size, 2).tolist()
  grid = [side // config.patch_size for side in size]
  checkpoint = weights.load_checkpoint(tmp_path, grid=grid)
  images = make_images(*size)
  assert checkpoint.image_size == tuple(size)
  agree(outputs(checkpoint, images), their_outputs(theirs, images), THEIRS)


@pytest.mark.parametrize('pooler', [True, False])
def test_backbone_of_theirs(pooler, tmp_path, agree):
  theirs = ViTModel(ViTConfig(**TINY), add_pooling_layer=pooler)
  randomise(theirs).save_pretrained(tmp_path)
  checkpoint = weights.load_checkpoint(tmp_path)
  images = make_images(32)
  agree(outputs(checkpoint, images), their_outputs(theirs, images), THEIRS)


@pytest.mark.parametrize('kind', [ViTModel, ViTForImageClassification])
def test_names_in_memory(kind, tmp_path, agree):
  """Transformers 5 calls modules otherwise in memory than in its files."""
  theirs = randomise(kind(ViTConfig(**TINY)))
  arrays = theirs.state_dict()
  theirs.save_pretrained(tmp_path)
  path = tmp_path / 'model.safetensors'
  assert set(arrays) != set(safetensors.torch.load_file(path))
  safetensors.torch.save_file(arrays, path)
  checkpoint = weights.load_checkpoint(tmp_path)
  images = make_images(32)
  agree(outputs(checkpoint, images), their_outputs(theirs, images), THEIRS)


def test_normalised_pixels(tmp_path, agree):
  """Ours takes pixels in [-1, 1], whatever theirs was trained on."""
  theirs = randomise(ViTForImageClassification(ViTConfig(**TINY)))
  theirs.save_pretrained(tmp_path)
  mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
  (tmp_path / 'preprocessor_config.json').write_text(
    json.dumps(dict(image_mean=mean, image_std=std))
  )
  checkpoint = weights.load_checkpoint(tmp_path)
  images = make_images(32)
  normalised = ((images + 1) / 2 - np.float32(mean)) / np.float32(std)
  expected = their_outputs(theirs, normalised)
  agree(outputs(checkpoint, images), expected, THEIRS)


def small(**arguments):
  return dict(
    variant='Ti/8', num_classes=5, hidden_size=24, depth=2, mlp_dim=48,
    num_heads=3,
  ) | arguments  # fmt: skip


OUR_CASES = {  # our arguments, size of images
  'tanh GELU': (small(), (32, 32)),
  'exact GELU': (small(gelu='exact'), (32, 32)),
  'epsilon': (small(norm_epsilon=1e-2), (32, 32)),
  'rectangle': (small(), (24, 40)),
  'no head': (small(num_classes=0), (32, 32)),
  'pre_logits': (small(num_classes=0, pre_logits=True), (32, 32)),
  'Ti/16': (dict(variant='Ti/16', num_classes=1000), (224, 224)),
}


@pytest.mark.parametrize('case', OUR_CASES)
def test_ours(case, tmp_path, agree):
  arguments, size = OUR_CASES[case]
  model, params = our_model(size, **arguments)
  weights.save(tmp_path, model, params, size, to='huggingface')
  kind, options = ViTForImageClassification, {}
  if not arguments['num_classes']:
    kind, options = ViTModel, dict(add_pooling_layer=model.pre_logits)
  theirs, found = kind.from_pretrained(
    tmp_path, local_files_only=True, output_loading_info=True, **options
  )
  assert not any(found.values()), found
  images = make_images(*size)
  expected = their_outputs(theirs.eval(), images)
  agree(our_outputs(model, params, images), expected, OURS)


def test_a_mistake_would_show(tmp_path):
  """Query and key, swapped in a file, move outputs by far more than 1e-4."""
  theirs = randomise(ViTForImageClassification(ViTConfig(**TINY)))
  theirs.save_pretrained(tmp_path)
  path = tmp_path / 'model.safetensors'
  arrays = safetensors.torch.load_file(path)
  query, key = (
    f'vit.encoder.layer.1.attention.attention.{name}.weight'
    for name in ('query', 'key')
  )
  arrays[query], arrays[key] = arrays[key], arrays[query]
  safetensors.torch.save_file(arrays, path)
  images = make_images(32)
  found = differences(
    outputs(weights.load_checkpoint(tmp_path), images),
    their_outputs(theirs, images),
  )
  assert min(found.values()) > 1e-2
