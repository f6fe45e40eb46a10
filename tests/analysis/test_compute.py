import pathlib

import process_runner
import pytest

from configs import common
from vit_jax import models
from vit_jax.analysis import compute

ROOT = pathlib.Path(__file__).parent.parent.parent


@pytest.mark.parametrize(
  ('variant', 'size', 'gmacs', 'activations'),
  [  # of timm's models with 1000 classes
    ('B/32', 224, 4.41, 5.01),
    ('B/16', 224, 17.58, 23.90),
    ('B/16', 384, 55.54, 101.56),
    ('L/16', 224, 61.60, 63.52),
    ('H/14', 224, 167.40, 139.41),
    ('R50+ViT-L/32', 224, 19.58, 24.41),
    ('R50+ViT-B/16', 384, 67.43, 135.03),
    ('R50x1', 224, 4.23, 11.11),
    ('R152x2', 224, 46.95, 45.11),
  ],
)
def test_published_numbers(variant, size, gmacs, activations):
  """Source: results/benchmark-infer-amp-nchw-pt113-cu117-rtx3090.csv of timm.

  Its GMACs hold 4 operations for each weight that is standardised, and 5 for
  each element that is normalised.
  """
  name = 'vit' if '/' in variant else 'resnet'
  model = models.build(name=name, variant=variant, num_classes=1000)
  ours = compute.forward(model, size)
  if name == 'resnet':
    gmacs -= 4 * ours.params / 1e9
  assert ours.flops / 2e9 == pytest.approx(gmacs, rel=0.01)
  assert ours.activations / 1e6 == pytest.approx(activations, rel=1e-3)
  assert ours.image_size == size


@pytest.mark.parametrize('remat', ['none', 'full'])
@pytest.mark.parametrize('unroll', [1, 5, 12])
def test_neither_scan_nor_remat_changes_the_count(unroll, remat):
  sizes = dict(variant='Ti/16', num_classes=3, depth=12)
  expected = compute.forward(models.build(**sizes), 32)
  model = models.build(**sizes, unroll=unroll, remat=remat)
  assert compute.forward(model, 32) == expected


def test_a_vit_by_hand():
  N, D, mlp_dim, depth, C = 5, 192, 768, 12, 3  # 2 x 2 patches and a token
  model = models.build(variant='Ti/16', num_classes=C, pre_logits=True)
  block = 4 * N * D * D + 2 * N * N * D + 2 * N * D * mlp_dim
  macs = 4 * 16 * 16 * 3 * D + depth * block + D * D + D * C
  block = 5 * N * D + 3 * N * N + N * mlp_dim + N * D
  activations = 4 * D + depth * block + D + C
  ours = compute.forward(model, 32)
  assert ours.flops == 2 * macs
  assert (ours.tokens, ours.activations) == (N, activations)
  assert ours.padding_flops == 0


# Rows further than 3% from the paper. ResNets: the paper leaves products with
# padding out, see the next test. R50x1+ViT-L/16: 859 is not half of 1668.
DEVIATIONS = {
  ('R50x1', 7): 0.050,
  ('R50x2', 7): 0.035,
  ('R101x1', 7): 0.039,
  ('R152x1', 7): 0.042,
  ('R152x2', 7): 0.037,
  ('R152x2', 14): 0.037,
  ('R200x3', 14): 0.035,
}
# As the paper counts; its integers alone are up to 1% off. Its ViT-B/32 has
# less than its own R50x1+ViT-B/32 allows.
UNPADDED_DEVIATIONS = {
  ('ViT-B/32', 7): 0.023,
  ('R50x1', 7): 0.014,
  ('R50x1+ViT-L/16', 7): -0.031,
}


def test_table_6():
  results = compute.table_6()
  assert len(results) == len(compute.TABLE_6) == 18
  for run, (ours, unpadded) in zip(compute.TABLE_6, results, strict=True):
    key = (run.variant, run.epochs)
    difference = ours / run.exaflops - 1
    if key in DEVIATIONS:
      assert difference == pytest.approx(DEVIATIONS[key], abs=1e-3), key
    else:
      assert abs(difference) < 0.03, key
    difference = unpadded / run.exaflops - 1
    if key in UNPADDED_DEVIATIONS:
      expected = UNPADDED_DEVIATIONS[key]
      assert difference == pytest.approx(expected, abs=1e-3), key
    else:
      assert abs(difference) < 0.0075, key


@pytest.mark.parametrize(
  ('recipe', 'size'),
  [
    ('inception_crop(224)|flip_lr', 224),
    ('resize_small(256)|central_crop(224)', 224),
    ('random_crop(8, padding=1)', 8),
    ('inception_crop(size=384, area_min=0.1)', 384),
    ('decode|resize( 32 )', 32),
  ],
)
def test_image_size(recipe, size):
  assert compute.image_size(recipe) == size


def test_a_recipe_without_size_asks_for_one():
  with pytest.raises(ValueError, match="'flip_lr' names no size.*--image_size"):
    compute.image_size('flip_lr')


def test_training_images():
  config = common.base()
  assert compute.training_images(config) is None
  config.total_epochs = 300
  assert compute.training_images(config) == 300 * 1_281_167
  config.train.split = 'train[:99%]'
  assert compute.training_images(config) is None
  config.train.split = 'train'
  for dataset, num_train in (('vtab_pets', 1000), ('cifar10', 50_000)):
    config.train.dataset = dataset
    assert compute.training_images(config) == 300 * num_train
  for dataset in ('imagenet_v2', '~/photos'):
    config.train.dataset = dataset
    assert compute.training_images(config) is None
  config.total_epochs, config.total_steps = None, 10
  assert compute.training_images(config) == 40_960


def run(*flags):
  return process_runner.run('-m', 'vit_jax.analysis.compute', *flags)


def test_command():
  result = run(
    '--config=configs/vit_h14_jft.py',
    '--config.model.depth=16',
    '--image_size=448',
  )
  assert result.returncode == 0, result.stderr
  title, *lines = result.stdout.splitlines()
  assert title == 'H/14 on images of 448 x 448 pixels'
  values = {line[2:26].strip(): line[26:].strip() for line in lines}
  assert values['tokens'] == '1025'
  assert values['images of the run'] == '4,242,000,000'
  assert values['training'].endswith(' exaFLOPs')


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    ([], 'Error: give --config=configs/digits.py, or --table6.'),
    (
      ['--config=configs/vit_h14_jft.py', '--image_size=225'],
      'Error: Images of 225x225 pixels do not divide into patches of 14x14',
    ),
  ],
)
def test_mistakes_end_in_one_line(flags, message):
  result = run(*flags)
  assert result.returncode == 1
  assert result.stderr.startswith(message)
  assert 'Traceback' not in result.stderr


def test_report_of_the_papers_largest_model():
  config = common.jft('H/14', lr=3e-4, epochs=14.0)
  lines = compute.report(config)
  assert any('4,259 exaFLOPs' in line for line in lines)
  # Table 2: 2.5k TPUv3-core-days.
  assert lines[-1].split()[-1] == '2,505'
