"""How much compute does a model, or a whole run, take?

  python -m vit_jax.analysis.compute --config=configs/vit_h14_jft.py
  python -m vit_jax.analysis.compute --config=... --config.model.head=gap
  python -m vit_jax.analysis.compute --table6

Nothing is run or allocated: the model is traced on shapes, and its matrix
products and convolutions are counted, a multiply-add as 2 FLOPs (1 MAC). The
backward pass is counted as twice the forward pass; what remat computes again
does not count. `--table6` compares with the paper's Table 6, and docs/paper.md
explains the differences.
"""

import re
import sys
from typing import NamedTuple

import jax
from absl import app, flags
from ml_collections import config_flags

from vit_jax import chips, command_line, flops, models
from vit_jax.data import datasets

JFT_CLASSES = 18_291  # as in configs/common.py
# Peak bf16 FLOP/s of a TPUv3 core, and the share of it that the paper's H/14
# reached: 4262 exaFLOPs (Table 6) in 2.5k TPUv3-core-days (Table 2).
TPU_V3_CORE_PEAK = chips.CHIPS['TPU v3'].peak_flops
PAPER_EFFICIENCY = 0.32
SECONDS_A_DAY = 86_400


class Compute(NamedTuple):
  """What a model takes for one image.

  Attributes:
    params: number of parameters.
    flops: of the forward pass, as `flops.count` counts them.
    padding_flops: how many of those multiply with the zeros around an image.
    tokens: N, the class token included; None if the model has none.
    activations: elements that the matrix products and convolutions make.
    image_size: side of the image, in pixels.
  """

  params: int
  flops: int
  padding_flops: int
  tokens: int | None
  activations: int
  image_size: int


class Run(NamedTuple):
  """A row of the paper's Table 6: a model pre-trained on JFT."""

  variant: str
  epochs: int
  exaflops: int


TABLE_6 = (
  Run('ViT-B/32', 7, 55),
  Run('ViT-B/16', 7, 224),
  Run('ViT-L/32', 7, 196),
  Run('ViT-L/16', 7, 783),
  Run('ViT-L/16', 14, 1567),
  Run('ViT-H/14', 14, 4262),
  Run('R50x1', 7, 50),
  Run('R50x2', 7, 199),
  Run('R101x1', 7, 96),
  Run('R152x1', 7, 141),
  Run('R152x2', 7, 563),
  Run('R152x2', 14, 1126),
  Run('R200x3', 14, 3306),
  Run('R50x1+ViT-B/32', 7, 106),
  Run('R50x1+ViT-B/16', 7, 274),
  Run('R50x1+ViT-L/32', 7, 246),
  Run('R50x1+ViT-L/16', 7, 859),
  Run('R50x1+ViT-L/16', 14, 1668),
)


def forward(model, image_size):
  """Returns the `Compute` of a model for one square RGB image.

  Nothing is computed, and no memory is taken: the model is traced on shapes.

  Args:
    model: a linen module as `models` describes.
    image_size: side of the image, in pixels.
  """
  images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), 'float32')
  # A real key would start the accelerator.
  rng = jax.eval_shape(jax.random.key, 0)
  params = jax.eval_shape(model.init, rng, images)['params']

  def apply(params, images):
    return model.apply({'params': params}, images, train=False)

  traced, (_, features) = jax.make_jaxpr(apply, return_shape=True)(
    params, images
  )
  count = flops.of_jaxpr(traced.jaxpr)
  tokens = features.get('tokens')
  return Compute(
    params=sum(x.size for x in jax.tree.leaves(params)),
    flops=count.flops,
    padding_flops=count.padding_flops,
    tokens=None if tokens is None else tokens.shape[1],
    activations=count.activations,
    image_size=image_size,
  )


def training_flops(forward_flops, images):
  """Returns the FLOPs of training on so many images: 3 forward passes each.

  Args:
    forward_flops: of one image.
    images: how many the model sees; an image counts in every epoch.
  """
  return 3 * forward_flops * images


def table_6():
  """Returns [(exaFLOPs, exaFLOPs without padding)] for the rows of `TABLE_6`.

  An exaFLOP is 1e18 FLOPs; `flops.Count` says what padding has to do with it.
  """
  computes = {variant: _pretrained(variant) for variant, _, _ in TABLE_6}
  num_train = datasets.DATASETS['jft300m'].num_train
  results = []
  for variant, epochs, _ in TABLE_6:
    compute, images = computes[variant], epochs * num_train
    ours = training_flops(compute.flops, images)
    padding = training_flops(compute.padding_flops, images)
    results.append((ours / 1e18, (ours - padding) / 1e18))
  return results


def _pretrained(variant):
  """Returns the `Compute` of a model as the paper trains it on JFT."""
  kwargs = dict(variant=variant, num_classes=JFT_CLASSES)
  if 'ViT' in variant:
    model = models.build(name='vit', pre_logits=True, **kwargs)
  else:
    model = models.build(name='resnet', **kwargs)
  return forward(model, 224)


def image_size(preprocess):
  """Returns the side, in pixels, of what a recipe's last crop or resize makes.

  Args:
    preprocess: such as 'inception_crop(224)|flip_lr'.

  Raises:
    ValueError: if there is no crop or resize.
  """
  sizes = re.findall(
    r'(?:crop|resize)\w*\(\s*(?:size\s*=\s*)?(\d+)', preprocess
  )
  if not sizes:
    raise ValueError(
      f'config.train.preprocess={preprocess!r} names no size; give it as '
      '--image_size=224.'
    )
  return int(sizes[-1])


def training_images(config):
  """Returns how many images a run sees, or None if that is not known here.

  Args:
    config: ConfigDict with the fields of `configs/common.py`.
  """
  if config.total_steps is not None:
    return config.total_steps * config.train.batch_size
  row = datasets.DATASETS.get(config.train.dataset)
  if config.total_epochs is None or row is None or row.num_train is None:
    return None
  # Of another split, only the data itself knows the length.
  if config.train.split != 'train':
    return None
  return round(config.total_epochs * row.num_train)


def _model_section(config):
  """Returns the model's arguments, with the classes of the training set."""
  section = dict(config.model)
  if section.get('num_classes') is None:
    dataset = config.train.dataset
    if dataset not in datasets.DATASETS:
      raise ValueError(
        f'config.train.dataset={dataset!r} does not say how many classes it '
        'has; set config.model.num_classes.'
      )
    section['num_classes'] = datasets.DATASETS[dataset].num_classes
  return section


def report(config, size=None):
  """Returns lines of text: what a config's model and run take.

  Args:
    config: ConfigDict with the fields of `configs/common.py`.
    size: side of the images, in pixels; by default what the config trains on.
  """
  size = size or image_size(config.train.preprocess)
  compute = forward(models.build(**_model_section(config)), size)
  rows = [
    ('parameters', f'{compute.params:,}'),
    ('tokens', compute.tokens or 'none'),
    ('forward, an image', f'{compute.flops / 1e9:,.4g} GFLOPs'),
    ('', f'{compute.flops / 2e9:,.4g} GMACs'),
    ('activations, an image', f'{compute.activations / 1e6:,.4g} M'),
  ]
  images = training_images(config)
  if images is None:
    rows.append(('images of the run', 'not known without the data'))
  else:
    total = training_flops(compute.flops, images)
    days = total / TPU_V3_CORE_PEAK / SECONDS_A_DAY
    rows += [
      ('images of the run', f'{images:,}'),
      ('training', f'{total / 1e18:,.4g} exaFLOPs'),
      ('TPUv3-core-days, at peak', f'{days:,.4g}'),
      (
        f"at {PAPER_EFFICIENCY:.0%}, the paper's H/14",
        f'{days / PAPER_EFFICIENCY:,.4g}',
      ),
    ]
  title = f'{config.model.variant} on images of {size} x {size} pixels'
  width = max(len(name) for name, _ in rows)
  return [title, *(f'  {name:{width}}  {value}' for name, value in rows)]


def report_table_6():
  """Returns lines of text: the paper's Table 6 beside ours."""
  lines = [
    'exaFLOPs of pre-training on JFT; on the right without padding',
    'model            epochs   paper    ours            ours',
  ]
  for run, (ours, unpadded) in zip(TABLE_6, table_6(), strict=True):
    lines.append(
      f'{run.variant:16}{run.epochs:7}{run.exaflops:8,}'
      f'{ours:8,.0f} {ours / run.exaflops - 1:+6.1%}'
      f'{unpadded:9,.0f} {unpadded / run.exaflops - 1:+6.1%}'
    )
  return lines


def main(argv):
  """Prints what the flags ask for."""
  command_line.only_flags(argv)
  command_line.be_brief()
  given = flags.FLAGS
  with command_line.one_line_errors():
    if given.table6:
      lines = report_table_6()
    elif given.config is None:
      sys.exit('Error: give --config=configs/digits.py, or --table6.')
    else:
      command_line.config_file()
      lines = report(given.config, given.image_size)
  print('\n'.join(lines))


if __name__ == '__main__':
  # Here, because other programs import this file and have flags of these names.
  config_flags.DEFINE_config_file('config', None, command_line.CONFIG_HELP)
  flags.DEFINE_integer(
    'image_size',
    None,
    'Side of the images, in pixels. By default what the config trains on.',
    lower_bound=1,
  )
  flags.DEFINE_bool('table6', False, "Compares with the paper's Table 6.")
  app.run(main, flags_parser=command_line.parse_flags)
