"""ViT-B or L on ImageNet-21k (paper, Tables 3 and 5).

  python -m vit_jax.main --config=configs/vit_i21k.py
  python -m vit_jax.main --config=configs/vit_i21k.py:L/16

90 epochs (the paper also trains L for 30: --config.total_epochs=30.0).
Fine-tuned at 384 pixels on ImageNet: B/16 83.97%, B/32 81.28%, L/16 85.15%,
L/32 80.99%. L/16 takes 0.23k TPUv3-core-days. What is computed again suits 8
TPU v3 cores for B, and 32 for L.
"""

from configs import common

_RECIPES = {  # remat, layout: see those on JFT-300M
  'B/16': ('full', 'replicate'),
  'B/32': ('dots', 'replicate'),
  'L/16': ('dots', 'fsdp'),
  'L/32': ('dots', 'fsdp'),
}


def get_config(variant='B/16'):
  remat, layout = common.choose(_RECIPES, variant)
  c = common.base()
  c.total_epochs = 90.0
  c.model.variant = variant
  c.model.remat = remat
  c.sharding.params = layout
  c.model.pre_logits = True
  c.model.dropout = 0.1
  c.train.dataset = 'imagenet21k'
  c.optimizer.lr = 1e-3
  c.optimizer.decay = 'linear'
  c.optimizer.weight_decay = 0.03
  return c
