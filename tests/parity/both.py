"""Random weights, images, and the outputs of both libraries for them.

All outputs are dicts from 'logits', 'representation' and 'tokens' to float32
numpy arrays, as the models here name them.
"""

import re

import jax
import numpy as np
import safetensors.torch
import torch

from vit_jax import models, weights
from vit_jax.weights import describe


def make_images(height, width=None):
  """Returns two images, [2, height, width, 3] float32 in [-1, 1]."""
  shape = (2, height, width or height, 3)
  return np.random.default_rng(0).uniform(-1, 1, shape).astype('f4')


# The published stems divide kernels by std + 1e-5, timm by sqrt(var + 1e-8). At
# a deviation of 0.2 this moves tokens by 5e-5, at a smaller one by more, in
# proportion: test_timm_resnets.py shows that stems differ in nothing else.
_DEVIATION = 0.2


def randomise(module, deviation=_DEVIATION):
  """Returns a torch module with new weights, none of which is constant.

  They are of the size that training makes: with LayerScale at 1e-6, or heads at
  0, anything agrees.

  Args:
    module: torch module.
    deviation: of the kernels that the model standardises.
  """
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for name, p in module.named_parameters():
      noise = torch.randn(p.shape, generator=generator)
      if 'conv' in name:
        p.copy_(deviation * noise)
      elif p.ndim in (2, 4):  # [out, in, ...]
        p.copy_(noise / p[0].numel() ** 0.5)
      else:
        p.copy_(_mean(name) + 0.2 * noise)
  return module.eval()


def our_model(image_size, **arguments):
  """Returns (module, parameters) likewise, from models.build."""
  model = models.build(**arguments)
  rng, params = np.random.default_rng(0), {}
  for name, leaf in describe.shapes(model, image_size).items():
    noise = rng.standard_normal(leaf.shape, 'f4')
    if '/conv' in name:
      params[name] = _DEVIATION * noise
    elif name in ('embedding/kernel', 'head/kernel'):
      params[name] = noise / np.float32(np.prod(leaf.shape[:-1])) ** 0.5
    elif name.endswith('kernel'):
      params[name] = noise / model.hidden_size**0.5
    else:
      params[name] = _mean(name) + 0.2 * noise
  return model, describe.unflatten(params)


def _mean(name):
  """Returns the mean of biases, tokens, and scales of norms and layers.

  Scales that end a residual branch start at 0 in ResNets. At 1 rounding errors
  grow to 1e-4 on their way through 16 units, in either library.
  """
  is_scale = re.search(r'scale|gamma|norm\w*\.weight', name)
  return float(bool(is_scale) and 'norm3' not in name)


def our_outputs(model, params, images):
  logits, features = jax.jit(model.apply)({'params': params}, images)
  return _as_numpy({'logits': logits, **features})


def timm_outputs(model, images):
  x = torch.from_numpy(images.transpose(0, 3, 1, 2))
  with torch.no_grad():
    tokens = model.forward_features(x)
    representation = model.forward_head(tokens, pre_logits=True)
    logits = model(x) if model.num_classes else None
  if tokens.ndim == 4:  # a ResNet's map, [B, D, rows, columns]
    tokens = tokens.flatten(2).transpose(1, 2)
  return _as_numpy(
    dict(logits=logits, representation=representation, tokens=tokens)
  )


def from_timm(path, model, **kwargs):
  """Returns our (module, parameters) of a timm model, by way of a file."""
  safetensors.torch.save_file(model.state_dict(), path)
  return weights.load(path, **kwargs)


def to_timm(path, model, params, theirs, **kwargs):
  """Returns the timm model with our weights, by way of a file."""
  weights.save(path, model, params, **kwargs)
  theirs.load_state_dict(safetensors.torch.load_file(path), strict=True)
  return theirs.eval()


def differences(ours, theirs):
  """Returns dict from output to the largest absolute difference.

  Raises:
    AssertionError: if outputs are missing, of another shape, or so much alike
      for all images and channels that comparing them shows nothing.
  """
  assert set(ours) == set(theirs)
  for name, array in theirs.items():
    assert ours[name].shape == array.shape, name
    assert array.std() > 0.05, name
    assert abs(array[0] - array[1]).max() > 0.01, name
  return {name: float(abs(ours[name] - theirs[name]).max()) for name in theirs}


def _as_numpy(outputs):
  return {
    name: np.asarray(array, np.float32)
    for name, array in outputs.items()
    if array is not None
  }
