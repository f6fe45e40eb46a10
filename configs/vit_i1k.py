"""ViT on ImageNet from scratch (paper, Tables 3 and 5).

  python -m vit_jax.main --config=configs/vit_i1k.py
  python -m vit_jax.main --config=configs/vit_i1k.py:L/16

300 epochs. Fine-tuned at 384 pixels: B/16 77.91%, B/32 73.38%, L/16 76.53%,
L/32 71.16%. What is computed again suits 8 TPU v3 cores for B, and 32 for L; on
devices that have room, --config.model.remat=none is faster.
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
  c.total_epochs = 300.0
  c.model.variant = variant
  c.model.remat = remat
  c.sharding.params = layout
  c.model.pre_logits = True
  c.model.dropout = 0.1
  c.optimizer.lr = 3e-3
  c.optimizer.decay = 'cosine'
  c.optimizer.weight_decay = 0.3
  c.optimizer.clip_norm = 1.0
  c.evals.validation = common.classification(
    'imagenet2012',
    'validation',
    preprocess='resize_small(256)|central_crop(224)',
  )
  return c
