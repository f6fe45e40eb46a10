"""A small ViT on the handwritten digits that scikit-learn carries.

  python -m vit_jax.main --config=configs/digits.py --workdir=runs/digits

1,438 images to train on, 359 to test; no download. About 99% after a minute on
two CPU cores.
"""

from configs import common


def get_config():
  c = common.base()
  c.total_epochs = 100.0
  c.log_every = 50
  c.model.variant = 'Ti/4'  # 2 x 2 patches of 4 x 4 pixels
  c.model.hidden_size = 128
  c.model.depth = 3
  c.model.mlp_dim = 512
  c.model.num_heads = 4
  c.model.dtype = 'float32'
  c.model.unroll = 3
  c.train.dataset = 'digits'
  c.train.batch_size = 128
  c.train.preprocess = 'random_crop(8, padding=1)'
  c.optimizer.lr = 2e-3
  c.optimizer.warmup_steps = 100
  c.optimizer.weight_decay = 1.0
  c.optimizer.clip_norm = 1.0
  c.checkpoint.every = 200
  c.evals.test = common.classification(
    'digits', 'test', preprocess='', every=200, batch_size=128
  )
  return c
