"""Fine-tunes published weights on any images, your own too (paper, Table 4).

  python -m vit_jax.main --config=configs/finetune.py --workdir=runs/photos \
    --config.train.dataset=/path/to/photos

with photos/cat/1.jpg, photos/dog/2.png, ... The classes are the folders' names;
a tenth of the images, chosen by a hash of their paths, tells the accuracy. A
manifest (.csv, .jsonl) or prepared shards do as well. Another model:
--config.model.variant=L/16 --config.init.checkpoint=PATH_OR_NAME.

SGD with momentum, cosine decay, 500 steps: the paper's setting for data sets of
a few thousand images, with a smaller batch. More images deserve more steps, and
a learning rate of 0.001, 0.003, 0.01 or 0.03, whichever is best on 'val'.
"""

from configs import common


def get_config():
  c = common.base()
  c.total_steps = 500
  c.log_every = 10
  c.init.checkpoint = 'vit_b16_augreg_i21k'
  c.train.dataset = ''  # a path, or a name
  c.train.batch_size = 64
  c.train.preprocess = 'resize(448)|random_crop(384)|flip_lr'
  c.optimizer.name = 'sgd'
  c.optimizer.lr = 0.01
  c.optimizer.warmup_steps = 50
  c.optimizer.clip_norm = 1.0
  c.checkpoint.every = 100
  c.evals.val = common.classification(
    '', 'val', 'resize(384)', every=100, batch_size=64
  )
  return c
