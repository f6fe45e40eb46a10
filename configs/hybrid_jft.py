"""Hybrids of R50 and ViT on JFT-300M (paper, Tables 3 and 6).

  python -m vit_jax.main --config=configs/hybrid_jft.py:R50+ViT-L/16

7 or 14 epochs; 106 to 1668 exaFLOPs. Fine-tuned at 384 pixels they give 84.90,
85.58, 85.68 and 87.12% on ImageNet. A step of L/32 takes 83% of the memory of
32 TPU v3 cores; one of B/32 with --config.model.remat=dots would take 149% of 8
cores, and B/16 and L/16 have four times the tokens.
"""

from configs import common

_RECIPES = {  # lr, epochs, remat
  'R50+ViT-B/32': (8e-4, 7.0, 'full'),
  'R50+ViT-B/16': (8e-4, 7.0, 'full'),
  'R50+ViT-L/32': (2e-4, 7.0, 'dots'),
  'R50+ViT-L/16': (4e-4, 14.0, 'full'),
}


def get_config(variant='R50+ViT-B/16'):
  lr, epochs, remat = common.choose(_RECIPES, variant)
  c = common.jft(variant, lr, epochs)
  c.model.remat = remat
  return c
