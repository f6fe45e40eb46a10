"""Models. Add one: a file with `build`, and its line in MODELS.

A model is a linen module: `model.apply({'params': p}, images, train=False)`
returns logits [B, C] and a dict of features, among them 'representation'
[B, D], for images [B, height, width, channels] scaled to [-1, 1].
"""

import jax.numpy as jnp

from vit_jax import names
from vit_jax.models import resnet, vit

MODELS = {'resnet': resnet.build, 'vit': vit.build}


def build(name='vit', **kwargs):
  """Returns the named model; the other arguments are its build function's.

  `build(name='vit', variant='B/16', num_classes=1000)` is ViT-B/16.

  Raises:
    ValueError: on a name or argument that does not exist.
  """
  model = names.lookup(MODELS, name, 'config.model.name')
  return names.call(model, kwargs, 'config.model')


def scale_pixels(images):
  """Returns uint8 pixels as the floats that models take: [-1, 1] float32.

  This runs inside the compiled step: as bytes, pixels take a quarter of the
  memory and bandwidth on their way to the device.
  """
  return (images.astype(jnp.float32) - 127.5) / 127.5
