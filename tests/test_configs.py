"""Every recipe loads, fits the functions it configures, and trains."""

import importlib
import inspect
import pathlib

import pytest
from conftest import shrink

from vit_jax import (
  checkpoint,
  evaluators,
  experiment,
  models,
  objectives,
  optimizers,
  sharding,
  train,
  train_step,
  weights,
)
from vit_jax.data import datasets, pipeline, preprocess

ROOT = pathlib.Path(__file__).parent.parent
RECIPES = sorted(
  path.stem
  for path in (ROOT / 'configs').glob('*.py')
  if path.stem not in ('__init__', 'common')
)
# Table 3 of the paper: epochs, learning rate, decay, weight decay, dropout,
# clipping, classes.
TABLE_3 = {
  ('vit_h14_jft', None): ('H/14', 14, 3e-4, 'linear', 0.1, 0.0, None, 18291),
  ('vit_l16_jft', None): ('L/16', 14, 4e-4, 'linear', 0.1, 0.0, None, 18291),
  ('vit_l16_jft', 'L/32'): ('L/32', 7, 6e-4, 'linear', 0.1, 0.0, None, 18291),
  ('vit_b_jft', None): ('B/16', 7, 8e-4, 'linear', 0.1, 0.0, None, 18291),
  ('vit_b_jft', 'B/32'): ('B/32', 7, 8e-4, 'linear', 0.1, 0.0, None, 18291),
  **{
    ('hybrid_jft', f'R50+ViT-{name}'): (
      f'R50+ViT-{name}', epochs, lr, 'linear', 0.1, 0.0, None, 18291
    )
    for name, epochs, lr in (
      ('B/32', 7, 8e-4), ('B/16', 7, 8e-4), ('L/32', 7, 2e-4),
      ('L/16', 14, 4e-4),
    )
  },
  **{
    ('resnet_jft', name): (name, epochs, lr, 'linear', 0.1, 0.0, None, 18291)
    for name, epochs, lr in (
      ('R50x1', 7, 1e-3), ('R50x2', 7, 1e-3), ('R101x1', 7, 8e-4),
      ('R152x1', 7, 6e-4), ('R152x2', 7, 6e-4), ('R200x3', 14, 6e-4),
    )
  },
  ('vit_i21k', None): ('B/16', 90, 1e-3, 'linear', 0.03, 0.1, None, 21843),
  ('vit_i21k', 'B/32'): ('B/32', 90, 1e-3, 'linear', 0.03, 0.1, None, 21843),
  ('vit_i21k', 'L/16'): ('L/16', 90, 1e-3, 'linear', 0.03, 0.1, None, 21843),
  ('vit_i21k', 'L/32'): ('L/32', 90, 1e-3, 'linear', 0.03, 0.1, None, 21843),
  ('vit_i1k', None): ('B/16', 300, 3e-3, 'cosine', 0.3, 0.1, 1.0, 1000),
  ('vit_i1k', 'B/32'): ('B/32', 300, 3e-3, 'cosine', 0.3, 0.1, 1.0, 1000),
  ('vit_i1k', 'L/16'): ('L/16', 300, 3e-3, 'cosine', 0.3, 0.1, 1.0, 1000),
  ('vit_i1k', 'L/32'): ('L/32', 300, 3e-3, 'cosine', 0.3, 0.1, 1.0, 1000),
}  # fmt: skip

# How to train your ViT?: augmentation, weight decay, dropout and stochastic
# depth; and RandAugment (layers, magnitude) and mixup of each augmentation.
AUGREG = {
  'i1k-Ti/16': ('light1', 0.1, 0.0), 'i21k-Ti/16': ('none', 0.03, 0.0),
  'i1k-S/32': ('light2', 0.1, 0.0), 'i21k-S/32': ('light2', 0.03, 0.0),
  'i1k-S/16': ('medium2', 0.1, 0.0), 'i21k-S/16': ('light2', 0.03, 0.0),
  'i1k-B/32': ('medium2', 0.1, 0.1), 'i21k-B/32': ('medium1', 0.03, 0.0),
  'i1k-B/16': ('strong2', 0.1, 0.1), 'i21k-B/16': ('medium1', 0.1, 0.0),
  'i1k-L/16': ('medium1', 0.1, 0.1), 'i21k-L/16': ('medium1', 0.1, 0.1),
}  # fmt: skip
AUGMENTATIONS = {
  'none': ('', 0.0),
  'light1': ('|randaugment(2, 0)', 0.0),
  'light2': ('|randaugment(2, 10)', 0.2),
  'medium1': ('|randaugment(2, 15)', 0.2),
  'medium2': ('|randaugment(2, 15)', 0.5),
  'strong1': ('|randaugment(2, 20)', 0.5),
  'strong2': ('|randaugment(2, 20)', 0.8),
}


def load(name, argument=None):
  get_config = importlib.import_module(f'configs.{name}').get_config
  return get_config() if argument is None else get_config(argument)


def binds(function, section, **context):
  inspect.signature(function).bind(**section, **context)


@pytest.mark.parametrize(
  ('name', 'argument'), sorted({(name, '') for name in RECIPES} | {
    (name, argument or '') for name, argument in TABLE_3
  } | {('augreg', argument) for argument in AUGREG})
)  # fmt: skip
def test_sections_are_arguments_of_their_functions(name, argument):
  c = load(name, argument or None)
  assert set(c) == set(experiment.FIELDS)
  assert c.model.num_classes is None  # those of the data
  c.train.dataset = c.train.dataset or 'digits'  # of fine-tuning: any
  c.model.num_classes = datasets.DATASETS[c.train.dataset].num_classes
  model = models.build(**c.model)
  objective = objectives.build(model, **c.objective)
  tx, _ = optimizers.build(total_steps=10**6, **c.optimizer)
  train_step.make_train_step(objective, tx, **c.step)
  binds(sharding.make_mesh, c.mesh)
  binds(sharding.layout, c.sharding, shapes=None, mesh=None)
  binds(checkpoint.Manager, c.checkpoint, workdir='', config={}, shapes={})
  binds(weights.load_into, c.init, state=None, model=None, image_size=None)
  binds(pipeline.TrainData, c.train, mesh=None, seed=0)
  for row in [c.train, *c.evals.values()]:
    preprocess.parse(row.preprocess, '')
    # '' of an evaluation is the training set.
    assert row.dataset in datasets.DATASETS or not row.dataset
  for row in c.evals.values():
    row = dict(row)
    build = evaluators.EVALUATORS[row.pop('kind')]
    row.pop('every')
    binds(build, row, predict=None, params=None, mesh=None, field='',
          class_names=None)  # fmt: skip


@pytest.mark.parametrize('name', RECIPES)
def test_every_recipe_trains(name, tmp_path, capsys):
  config = shrink(load(name))
  state = train.train(config, tmp_path)
  assert state.step == 2
  assert 'Done after 2 steps' in capsys.readouterr().out


@pytest.mark.parametrize(('recipe', 'row'), TABLE_3.items())
def test_settings_are_those_of_table_3(recipe, row):
  c = load(*recipe)
  assert row == (
    c.model.variant,
    c.total_epochs,
    c.optimizer.lr,
    c.optimizer.decay,
    c.optimizer.weight_decay,
    c.model.get('dropout', 0.0),  # a ResNet has none
    c.optimizer.clip_norm,
    datasets.DATASETS[c.train.dataset].num_classes,
  )
  assert c.optimizer.name == 'adam'
  assert c.optimizer.warmup_steps == 10_000
  assert c.train.batch_size == 4096
  assert c.train.preprocess == 'inception_crop(224)|flip_lr'
  assert c.model.get('pre_logits', True)  # the pre-training head of a ViT


@pytest.mark.parametrize(('model', 'row'), AUGREG.items())
def test_settings_are_those_of_augreg(model, row):
  dataset, variant = model.split('-')
  usual, decay, rate = row
  for given in ('', *AUGMENTATIONS):
    c = load('augreg', f'{model}-{given}' if given else model)
    randaugment, mixup = AUGMENTATIONS[given or usual]
    assert c.train.preprocess == f'inception_crop(224)|flip_lr{randaugment}'
    assert c.objective.mixup == mixup
    assert (c.model.variant, c.model.dropout) == (variant, rate)
    assert c.model.stochastic_depth == rate
    # 0.1 of big_vision's 0.0001, which it does not scale by lr = 0.001.
    assert (c.optimizer.lr, c.optimizer.weight_decay) == (1e-3, decay)
    assert (c.optimizer.decay, c.optimizer.clip_norm) == ('cosine', 1.0)
    assert (c.optimizer.name, c.optimizer.warmup_steps) == ('adam', 10_000)
    assert (c.total_epochs, c.train.batch_size) == (300, 4096)
    assert not c.model.pre_logits
    if dataset == 'i21k':
      assert (c.train.dataset, c.objective.loss) == ('imagenet21k', 'sigmoid')
      assert c.model.head_bias == -10
    else:
      assert (c.train.dataset, c.objective.loss) == ('imagenet2012', 'softmax')
      assert c.model.head_bias == 0


def test_recipes_are_small_and_say_how_they_are_run():
  for name in RECIPES:
    source = (ROOT / 'configs' / f'{name}.py').read_text()
    assert source.count('\n') <= 50, name
    assert f'--config=configs/{name}.py' in source


def test_unknown_argument_is_explained():
  with pytest.raises(ValueError, match="no 'B/8'; choose one of B/16, B/32"):
    load('vit_b_jft', 'B/8')
  with pytest.raises(ValueError, match="no 'i21k-B/8'; choose one of i1k-Ti"):
    load('augreg', 'i21k-B/8-light1')
  with pytest.raises(
    ValueError, match="no 'light3'; choose one of none, light"
  ):
    load('augreg', 'i21k-B/16-light3')
  with pytest.raises(ValueError, match="no 'B/16'; choose one of i1k-Ti/16"):
    load('augreg', 'B/16')
