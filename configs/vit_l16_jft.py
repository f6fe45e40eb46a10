"""ViT-L/16 or L/32 on JFT-300M (paper, Tables 2, 3 and 6).

  python -m vit_jax.main --config=configs/vit_l16_jft.py
  python -m vit_jax.main --config=configs/vit_l16_jft.py:L/32

L/16 for 14 epochs takes 0.68k TPUv3-core-days in the paper, and gives 87.76% on
ImageNet, fine-tuned at 512 pixels; with --config.total_epochs=7.0 86.30% at
384. L/32 (7 epochs) gives 84.37%. A step of L/16 takes 76% of the memory of 32
TPU v3 cores (v3:4x4), with --config.model.remat=full 16%; of L/32 with
remat=none 96%.
"""

from configs import common

_RECIPES = {'L/16': (4e-4, 14.0), 'L/32': (6e-4, 7.0)}


def get_config(variant='L/16'):
  lr, epochs = common.choose(_RECIPES, variant)
  c = common.jft(variant, lr, epochs)
  c.model.remat = 'dots'
  c.sharding.params = 'fsdp'
  return c
