"""Hybrids of R50 and ViT on JFT-300M (paper, Tables 3 and 6).

  python -m vit_jax.main --config=configs/hybrid_jft.py:R50+ViT-L/16

7 or 14 epochs; 106 to 1668 exaFLOPs. Fine-tuned at 384 pixels they give 84.90,
85.58, 85.68 and 87.12% on ImageNet. With remat=dots a step would take 86%
(L/32) to 296% (B/16) of the memory of 8 (B) or 32 (L) TPU v3 cores, by our
estimate, to which the compiler adds 10 to 30%.
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
  c = common.jft(variant, lr, epochs)
  c.model.remat = 'full'
  return c
