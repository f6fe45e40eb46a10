"""The whole schema: every field of a config, with its default."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def base():
  """Returns the config that every recipe changes.

  A section is the keyword arguments of the function named beside it, whose
  docstring says more. `placeholder` is None, or a value of that type.
  """
  c = ConfigDict()
  c.seed = 0  # of initialisation, dropout, order and augmentation
  c.log_every = 100  # steps between two lines of training metrics
  # Set exactly one of these two. Their type is object because a flag can set
  # such a field to None: --config.total_epochs=None --config.total_steps=100.
  c.total_steps = placeholder(object)
  c.total_epochs = placeholder(object)

  c.model = ConfigDict()  # models.build and vit.build; `resnet` has its own
  c.model.name = 'vit'
  c.model.variant = 'B/16'  # R50+ViT-B/16: a hybrid
  c.model.num_classes = placeholder(int)  # None: those of the training set
  c.model.head = 'token'  # token | gap | map | none
  c.model.pre_logits = False  # a tanh layer before the last: pre-training
  c.model.head_bias = 0.0
  c.model.position_embedding = '1d'  # none | 1d | 2d | relative | sincos2d
  c.model.position_embedding_at = 'stem'  # stem | every_layer | shared
  c.model.dropout = 0.0
  c.model.stochastic_depth = 0.0
  c.model.dtype = 'bfloat16'  # float32 | bfloat16
  c.model.unroll = 1  # blocks in one turn of the scan over depth
  c.model.remat = 'none'  # none | dots | full
  c.model.hidden_size = placeholder(int)  # these four override the variant
  c.model.depth = placeholder(int)
  c.model.mlp_dim = placeholder(int)
  c.model.num_heads = placeholder(int)
  c.model.stem_depths = placeholder(object)  # units per stage of any ResNet
  c.model.stem_width = 1.0
  c.model.class_token = placeholder(bool)  # these five: other libraries' models
  c.model.num_registers = 0
  c.model.norm_after_pool = False
  c.model.gelu = 'tanh'  # tanh | exact
  c.model.norm_epsilon = 1e-6

  c.objective = ConfigDict()  # objectives.build
  c.objective.name = 'classification'
  c.objective.loss = 'softmax'  # softmax | sigmoid
  c.objective.label_smoothing = 0.0
  c.objective.mixup = 0.0  # p of Beta(p, p); 0: images are not mixed

  c.train = ConfigDict()  # pipeline.TrainData
  # A name in vit_jax/data/datasets.py, or a path: a folder of class folders of
  # images, a manifest (.csv, .jsonl), or what vit_jax.data.prepare has packed.
  c.train.dataset = 'imagenet2012'
  c.train.split = 'train'
  c.train.batch_size = 4096  # over all devices
  c.train.preprocess = 'inception_crop(224)|flip_lr'
  c.train.subset = placeholder(int)  # so many random examples; None: all
  c.train.drop = ''  # list of examples to leave out, of data.deduplicate
  c.train.max_bad_share = 0.01  # of images that cannot be read: then it stops

  c.optimizer = ConfigDict()  # optimizers.build
  c.optimizer.name = 'adam'  # adam | sgd
  c.optimizer.lr = 1e-3
  c.optimizer.decay = 'cosine'  # cosine | linear | constant
  c.optimizer.warmup_steps = 10_000
  c.optimizer.weight_decay = 0.0
  c.optimizer.clip_norm = placeholder(float)

  c.step = ConfigDict()  # train_step.make_train_step
  c.step.accum_steps = 1
  c.step.ema_decay = 0.0  # 0: no Polyak average

  c.init = ConfigDict()  # weights.load_into: start from other weights
  c.init.checkpoint = ''  # path or public name; '' starts from scratch
  c.init.reset = ('head/.*', 'pre_logits/.*')  # regexes of what starts anew
  c.init.resize = 'linear'  # linear | cubic, of position embeddings
  c.init.grid = placeholder(object)  # (rows, columns), if they are no square

  c.mesh = ConfigDict()  # sharding.make_mesh; -1: all that are left
  c.mesh.replica = -1  # slices of TPUs, or 1
  c.mesh.data = -1
  c.mesh.model = 1

  c.sharding = ConfigDict()  # sharding.layout
  c.sharding.params = placeholder(object)  # a name, or layouts.layout's table
  c.sharding.params = 'replicate'  # replicate | fsdp | tensor | fsdp_tensor

  c.checkpoint = ConfigDict()  # checkpoint.Manager
  c.checkpoint.every = 5_000
  c.checkpoint.keep = 2

  c.profile = ConfigDict()  # profiling.Profiler: traces for TensorBoard
  c.profile.start = 10  # so many steps after the start
  c.profile.num_steps = 0  # 0: no trace

  c.watchdog = ConfigDict()  # watchdog.Watchdog: says where a run hangs
  c.watchdog.factor = 10.0  # times the usual duration
  c.watchdog.at_least = 300.0  # seconds, of a step
  c.watchdog.at_least_other = 1800.0  # of compiling, evaluating, saving

  c.evals = ConfigDict()  # evaluators.build: name -> classification(...)
  return c


def classification(
  dataset,
  split,
  preprocess,
  every=5_000,
  batch_size=1024,
  loss='softmax',
  skip_bad=False,
):
  """Returns the row of `c.evals` that measures accuracy on a data set.

  Its `dataset` '' is the training set's.
  """
  return ConfigDict(
    dict(
      kind='classification',
      every=every,
      dataset=dataset,
      split=split,
      batch_size=batch_size,
      preprocess=preprocess,
      loss=loss,
      skip_bad=skip_bad,
    )
  )


def resnet(variant):
  """Returns the section `c.model` of a BiT-ResNet: resnet.build's arguments."""
  return ConfigDict(
    dict(
      name='resnet',
      variant=variant,
      num_classes=placeholder(int),
      version=2,  # 2: pre-activation, as published | 1: post-activation
      head_bias=0.0,
      dtype='bfloat16',
      unroll=1,
      remat='none',
      depths=placeholder(object),
      width=placeholder(float),
    )
  )


def jft(variant, lr, epochs):
  """Returns what the paper's ViTs and hybrids share on JFT-300M (Table 3)."""
  c = base()
  c.total_epochs = epochs
  c.model.variant = variant
  c.model.pre_logits = True
  c.model.head_bias = -10.0  # an image has few of the labels
  c.objective.loss = 'sigmoid'
  c.train.dataset = 'jft300m'
  c.optimizer.lr = lr
  c.optimizer.decay = 'linear'
  c.optimizer.weight_decay = 0.1
  return c


def choose(table, name):
  """Returns `table[name]`, where a recipe's argument picks a row."""
  if name not in table:
    raise ValueError(
      f'The recipe has no {name!r}; choose one of {", ".join(table)}.'
    )
  return table[name]
