"""BiT-ResNets on JFT-300M with Adam (paper, Tables 3 and 6).

  python -m vit_jax.main --config=configs/resnet_jft.py:R152x2

7 or 14 epochs; 50 to 3306 exaFLOPs. Fine-tuned at 384 pixels they give 77.54,
82.12, 80.67, 81.88, 84.97 and 87.22% on ImageNet. A step of R50x1 takes 68% of
the memory of 8 TPU v3 cores, one of R50x2 45% of 32. With
--config.model.remat=dots R101x1 would take 95% of 8 cores, R152x2 93% of 32;
R152x1 is deeper, and of R200x3 it is our estimate.
"""

from configs import common

# The paper does not give R200x3's learning rate; that of R152 is used.
_RECIPES = {  # lr, epochs, remat
  'R50x1': (1e-3, 7.0, 'dots'),
  'R50x2': (1e-3, 7.0, 'dots'),
  'R101x1': (8e-4, 7.0, 'full'),
  'R152x1': (6e-4, 7.0, 'full'),
  'R152x2': (6e-4, 7.0, 'full'),
  'R200x3': (6e-4, 14.0, 'full'),
}


def get_config(variant='R50x1'):
  lr, epochs, remat = common.choose(_RECIPES, variant)
  c = common.jft(variant, lr, epochs)
  c.model = common.resnet(variant)
  c.model.head_bias = -10.0
  c.model.remat = remat
  return c
