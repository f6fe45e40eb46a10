"""Hybrids of R50 and ViT on JFT-300M (paper, Tables 3 and 6).

  python -m vit_jax.main --config=configs/hybrid_jft.py:R50+ViT-L/16

7 or 14 epochs; 106 to 1668 exaFLOPs. Fine-tuned at 384 pixels they give 84.90,
85.58, 85.68 and 87.12% on ImageNet.
"""

from configs import common

_RECIPES = {
  'R50+ViT-B/32': (8e-4, 7.0),
  'R50+ViT-B/16': (8e-4, 7.0),
  'R50+ViT-L/32': (2e-4, 7.0),
  'R50+ViT-L/16': (4e-4, 14.0),
}


def get_config(variant='R50+ViT-B/16'):
  lr, epochs = common.choose(_RECIPES, variant)
  return common.jft(variant, lr, epochs)
