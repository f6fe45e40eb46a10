"""ViT on ImageNet-21k or ImageNet, as "How to train your ViT?" (2106.10270).

  python -m vit_jax.main --config=configs/augreg.py
  python -m vit_jax.main --config=configs/augreg.py:i21k-B/16-medium1

300 epochs. Weight decay, dropout and augmentation, if it is not given, are of
the published checkpoint, else of big_vision. The paper's weight decay, 0.1 or
0.03, is decoupled and scaled by the learning rate, like our field (big_vision's
0.0001 is the product with 0.001). We take it that the published files write
light0 and light1 for the paper's light1 and light2. Remat: see vit_b_jft.py.
"""

from configs import common

_AUGMENTATIONS = {  # RandAugment's layers and magnitude, mixup
  'none': (0, 0, 0.0), 'light1': (2, 0, 0.0), 'light2': (2, 10, 0.2),
  'medium1': (2, 15, 0.2), 'medium2': (2, 15, 0.5), 'strong1': (2, 20, 0.5),
  'strong2': (2, 20, 0.8),
}  # fmt: skip
_MODELS = {  # augmentation, weight decay, dropout and stochastic depth
  'i1k-Ti/16': ('light1', 0.1, 0.0), 'i21k-Ti/16': ('none', 0.03, 0.0),
  'i1k-S/32': ('light2', 0.1, 0.0), 'i21k-S/32': ('light2', 0.03, 0.0),
  'i1k-S/16': ('medium2', 0.1, 0.0), 'i21k-S/16': ('light2', 0.03, 0.0),
  'i1k-B/32': ('medium2', 0.1, 0.1), 'i21k-B/32': ('medium1', 0.03, 0.0),
  'i1k-B/16': ('strong2', 0.1, 0.1), 'i21k-B/16': ('medium1', 0.1, 0.0),
  'i1k-L/16': ('medium1', 0.1, 0.1), 'i21k-L/16': ('medium1', 0.1, 0.1),
}  # fmt: skip


def get_config(name='i1k-B/16'):
  words = name.split('-')
  usual, decay, rate = common.choose(_MODELS, '-'.join(words[:2]))
  layers, magnitude, mixup = common.choose(
    _AUGMENTATIONS, '-'.join(words[2:]) or usual
  )
  c = common.base()
  c.model.update(variant=words[1], dropout=rate, stochastic_depth=rate)
  c.model.remat = 'full' if words[1] in ('B/16', 'L/16') else 'dots'
  c.total_epochs, c.objective.mixup = 300.0, mixup
  if layers:
    c.train.preprocess += f'|randaugment({layers}, {magnitude})'
  c.optimizer.update(lr=1e-3, weight_decay=decay, clip_norm=1.0)
  if words[0] == 'i21k':  # an image has few of the labels
    c.model.head_bias, c.objective.loss = -10.0, 'sigmoid'
    c.train.dataset = 'imagenet21k'
  else:
    c.evals.validation = common.classification(
      'imagenet2012', 'validation', 'resize_small(256)|central_crop(224)'
    )
  return c
