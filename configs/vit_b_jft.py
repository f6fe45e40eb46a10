"""ViT-B/16 or B/32 on JFT-300M (paper, Tables 3 and 6).

  python -m vit_jax.main --config=configs/vit_b_jft.py
  python -m vit_jax.main --config=configs/vit_b_jft.py:B/32

7 epochs; 224 and 55 exaFLOPs. Fine-tuned at 384 pixels they give 84.15% and
80.73% on ImageNet. Of the memory of 8 TPU v3 cores (v3:2x2) a step of B/16
takes 38%, with --config.model.remat=dots it would take 138%; B/32 takes 45%,
with remat=none 155%.
"""

from configs import common

_RECIPES = {'B/16': (8e-4, 7.0, 'full'), 'B/32': (8e-4, 7.0, 'dots')}


def get_config(variant='B/16'):
  lr, epochs, remat = common.choose(_RECIPES, variant)
  c = common.jft(variant, lr, epochs)
  c.model.remat = remat
  return c
