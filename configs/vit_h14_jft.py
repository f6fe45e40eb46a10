"""ViT-H/14 on JFT-300M (paper, Tables 2, 3 and 6).

  python -m vit_jax.main --config=configs/vit_h14_jft.py --workdir=gs://...

14 epochs; 2.5k TPUv3-core-days in the paper. Fine-tuned at 518 pixels it gives
88.55% on ImageNet. JFT-300M is not public: bring a large set of your own. A
step takes 17% of the memory of 64 TPU v3 cores (v3:4x8), with
--config.model.remat=dots 95%.
"""

from configs import common


def get_config():
  c = common.jft('H/14', lr=3e-4, epochs=14.0)
  c.model.remat = 'full'
  c.sharding.params = 'fsdp'
  return c
