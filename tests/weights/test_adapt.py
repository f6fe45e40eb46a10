import re

import jax
import numpy as np
import pytest
from scipy import ndimage

from vit_jax import models, weights
from vit_jax.weights import adapt, describe, files, report

VIT = dict(
  variant='Ti/4', num_classes=5, hidden_size=16, depth=2, mlp_dim=24,
  num_heads=2,
)  # fmt: skip


@pytest.fixture
def saved(tmp_path):
  """Returns a function from arguments to (path, flat parameters)."""

  def save(size=(16, 16), to='orbax', **kwargs):
    model = models.build(**(VIT | kwargs))
    rng = np.random.default_rng(0)
    params = {
      name: rng.normal(size=leaf.shape).astype('f4')
      for name, leaf in describe.shapes(model, size).items()
    }
    path = tmp_path / f'{len(list(tmp_path.iterdir()))}'
    tree = describe.unflatten(params)
    weights.save(path, model, tree, image_size=size, to=to)
    return path, params

  return save


@pytest.mark.parametrize(
  ('old', 'new'),
  [((4, 4), (7, 7)), ((24, 24), (14, 14)), ((2, 6), (5, 3)), ((3, 3), (1, 4))],
)
def test_linear_is_what_the_published_fine_tunings_used(old, new):
  x = np.random.default_rng(0).normal(size=(2, *old, 3)).astype('f4')
  zoom = np.array([1, *new, 1]) / [1, *old, 1]
  expected = ndimage.zoom(x, zoom, order=1)
  np.testing.assert_allclose(adapt.resize_linear(x, new), expected, atol=1e-6)


def test_both_ways_keep_a_constant_and_the_size():
  x = np.full((5, 4, 3), 2.0, np.float32)
  for resize in adapt.RESIZES.values():
    np.testing.assert_allclose(resize(x, (8, 2)), np.full((8, 2, 3), 2), 1e-6)
    np.testing.assert_allclose(resize(x, (5, 4)), x, atol=1e-6)


@pytest.mark.parametrize('resize', ['linear', 'cubic'])
@pytest.mark.parametrize('at', ['stem', 'every_layer'])
def test_load_at_another_size(saved, resize, at):
  path, params = saved(position_embedding_at=at, num_registers=1)
  checkpoint = weights.load_checkpoint(path, image_size=(24, 8), resize=resize)
  assert checkpoint.image_size == (24, 8)
  name = 'position_embedding' if at == 'stem' else 'blocks/position_embedding'
  old = params.pop(name)
  flat = describe.flatten(checkpoint.params)
  new = flat.pop(name)
  lead = old.shape[:-2]
  np.testing.assert_array_equal(new[..., :2, :], old[..., :2, :])
  grid = old[..., 2:, :].reshape(*lead, 4, 4, 16)
  expected = adapt.RESIZES[resize](grid, (6, 2)).reshape(*lead, 12, 16)
  np.testing.assert_array_equal(new[..., 2:, :], expected)
  for name, array in params.items():
    np.testing.assert_array_equal(flat[name], array)
  assert report.counts(checkpoint.report).endswith(' loaded, 1 resized')
  images = np.zeros((1, 24, 8, 3), np.float32)
  jax.eval_shape(checkpoint.model.apply, {'params': checkpoint.params}, images)


@pytest.mark.parametrize(
  ('size', 'new_size', 'kwargs'),
  [  # as many tokens before as after
    ((16, 36), (36, 16), {}),
    ((16, 36), (24, 24), {}),
    ((8, 16), (12, 12), dict(head='gap')),  # 1 + 2 x 4, then 3 x 3
  ],
)
def test_grids_with_as_many_patches_are_told_apart(
  saved, size, new_size, kwargs
):
  path, params = saved(size)
  loaded = weights.load_checkpoint(path, image_size=new_size, **kwargs)
  table = loaded.params['position_embedding']
  old, new = ((height // 4, width // 4) for height, width in (size, new_size))
  grid = params['position_embedding'][:, 1:].reshape(1, *old, 16)
  expected = adapt.resize_linear(grid, new).reshape(1, -1, 16)
  np.testing.assert_array_equal(table[:, -expected.shape[1] :], expected)
  assert ' 1 resized' in report.counts(loaded.report)


@pytest.mark.parametrize(
  ('reset', 'message'),
  [
    ('hea(', r"reset='hea\(' is no regular expression"),
    (('haed/.*',), r"reset='haed/\.\*' matches no parameter; there are"),
    ((3,), 'reset=3 is no regular expression'),
  ],
)
def test_mistakes_in_reset(saved, reset, message):
  path, _ = saved()
  with pytest.raises(ValueError, match=message):
    weights.load(path, reset=reset)


@pytest.mark.parametrize(
  ('kwargs', 'message'),
  [
    (dict(image_size='64'), "image_size='64' is no size in pixels"),
    (dict(image_size=(1, 2, 3)), 'is no size in pixels'),
    (dict(image_size=-16), 'image_size=-16 is no size in pixels'),
    (dict(image_size=18), '18x18 pixels do not divide into patches of 4x4'),
    (dict(num_classes='10'), "config.model.num_classes='10' is no whole"),
    (dict(resize='x'), 'choose one of cubic, linear'),
  ],
)
def test_mistakes_in_arguments(saved, kwargs, message):
  path, _ = saved()
  with pytest.raises(ValueError, match=message):
    weights.load(path, **kwargs)


def test_2d_positions_are_resized_by_axis(saved):
  path, params = saved(position_embedding='2d')
  flat = describe.flatten(weights.load(path, image_size=(16, 28))[1])
  for name in ('row', 'prefix'):
    name = f'position_embedding_{name}'
    np.testing.assert_array_equal(flat[name], params[name])
  column = 'position_embedding_column'
  np.testing.assert_allclose(
    flat[column], ndimage.zoom(params[column], (7 / 4, 1), order=1), atol=1e-6
  )


def test_relative_embeddings_are_not_resized(saved):
  path, _ = saved(position_embedding='relative')
  with pytest.raises(ValueError, match='cannot be resized: use the old image'):
    weights.load(path, image_size=24)


def test_new_head(saved):
  path, params = saved(pre_logits=True)
  checkpoint = weights.load_checkpoint(path, num_classes=3)
  flat = describe.flatten(checkpoint.params)
  assert flat['head/kernel'].shape == (16, 3)
  assert not flat['head/kernel'].any()
  assert not flat['head/bias'].any()
  assert checkpoint.labels is None
  assert set(params) - set(flat) == {'pre_logits/kernel', 'pre_logits/bias'}
  assert ' 4 reset' in report.counts(checkpoint.report)
  model, tree = weights.load(path, num_classes=0)
  assert model.num_classes == 0
  assert 'head' not in tree


@pytest.mark.parametrize('head', ['gap', 'map'])
def test_another_head_drops_the_class_token(saved, head):
  path, params = saved()
  checkpoint = weights.load_checkpoint(path, head=head)
  flat = describe.flatten(checkpoint.params)
  assert 'class_token' not in flat
  assert ('attention_pool/probe' in flat) == (head == 'map')
  np.testing.assert_array_equal(
    flat['position_embedding'], params['position_embedding'][:, 1:]
  )
  statuses = {line.theirs: line.status for line in checkpoint.report}
  assert statuses['class_token'] == 'reset'
  assert statuses['position_embedding'] == 'resized'


def test_another_head_may_keep_the_class_token(saved):
  path, params = saved()
  model, tree = weights.load(path, head='gap', class_token=True)
  assert model.num_prefix == 1
  np.testing.assert_array_equal(tree['class_token'], params['class_token'])


def test_a_class_token_comes_without_position(saved):
  path, params = saved(head='gap')
  flat = describe.flatten(weights.load(path, head='token')[1])
  assert not flat['class_token'].any()
  table = flat['position_embedding']
  assert not table[:, 0].any()
  np.testing.assert_array_equal(table[:, 1:], params['position_embedding'])


class State:
  """As much of a TrainState as `load_into` touches."""

  def __init__(self, params, average):
    self.params, self.average = params, average

  def _replace(self, params, average):
    return State(params, average)


def first_state(model, size, with_average=False):
  params = jax.tree.map(
    jax.device_put, describe.unflatten(describe.init(model, size))
  )
  return State(params, params if with_average else None)


def test_load_into_a_first_state(saved):
  path, params = saved(pre_logits=True)
  model = models.build(**(VIT | dict(num_classes=7)))
  state = first_state(model, (24, 24), with_average=True)
  new, table = weights.load_into(
    state, model, (24, 24), str(path), reset=('head/.*', 'pre_logits/.*')
  )
  flat = describe.flatten(new.params)
  assert flat['head/kernel'].shape == (16, 7)
  assert flat['position_embedding'].shape == (1, 37, 16)
  for name in ('class_token', 'blocks/mlp_in/kernel'):
    np.testing.assert_array_equal(flat[name], params[name])
  assert re.search(
    r'resized +position_embedding .*\(1, 17, 16\) -> \(1, 37', table
  )
  for a, b in zip(
    *map(jax.tree.leaves, (new.params, new.average)), strict=True
  ):
    np.testing.assert_array_equal(a, b)
    assert a is not b
    assert a.unsafe_buffer_pointer() != b.unsafe_buffer_pointer()


def test_no_checkpoint_changes_nothing():
  assert weights.load_into('state', None, None) == ('state', '')


@pytest.mark.parametrize(
  ('saved_as', 'wanted', 'message'),
  [
    ({}, dict(num_classes=7), r"misfit .*or drop it, reset 'head/\.\*'"),
    (dict(pre_logits=True), {}, r'extra +pre_logits/kernel'),
    ({}, dict(pre_logits=True), r'missing +- +pre_logits/kernel'),
    ({}, dict(depth=3), r'misfit +blocks/.*\(2, .* there, \(3, '),
    (
      dict(gelu='exact'),
      {},
      "config.model.gelu='tanh', but the weights are of a model with 'exact'; "
      'set config.model.gelu=exact',
    ),
    ({}, dict(head='gap'), r"extra +class_token .*reset 'class_token'"),
    (
      dict(position_embedding='sincos2d'),
      dict(position_embedding='none'),
      "position_embedding='none', but the weights .*'sincos2d'",
    ),
  ],
)
def test_what_does_not_fit(saved, saved_as, wanted, message):
  path, _ = saved(**saved_as)
  model = models.build(**(VIT | wanted))
  with pytest.raises(ValueError, match=message) as error:
    weights.load_into(
      first_state(model, (16, 16)), model, (16, 16), str(path), reset=()
    )
  assert str(error.value).startswith('config.init.checkpoint: ')


def test_a_vit_is_no_resnet(saved):
  path, _ = saved()
  model = models.build('resnet', variant='R14x0.5', num_classes=5, depths=(1,))
  with pytest.raises(ValueError, match='are of a ViT, but .* makes a ResNet'):
    weights.load_into(first_state(model, (16, 16)), model, (16, 16), str(path))


def test_heads_of_the_config_are_taken_where_nothing_says_them(
  tmp_path,
):
  model = models.build(**VIT)
  state = first_state(model, (16, 16))
  path = tmp_path / 'x.safetensors'
  weights.save(path, model, jax.device_get(state.params))
  files.write(path, files.read(path), overwrite=True)  # without metadata
  exact = models.build(**(VIT | dict(gelu='exact')))
  weights.load_into(state, exact, (16, 16), str(path), reset=())
  # Where the width says it, the config has to agree.
  arguments = VIT | dict(gelu='exact', hidden_size=192, num_heads=3)
  state = first_state(models.build(**arguments), (16, 16))
  weights.save(
    path, models.build(**arguments), jax.device_get(state.params),
    overwrite=True,
  )  # fmt: skip
  files.write(path, files.read(path), overwrite=True)
  other = models.build(**(arguments | dict(num_heads=6)))
  with pytest.raises(ValueError, match='num_heads=6, but .* model with 3; set'):
    weights.load_into(
      first_state(other, (16, 16)), other, (16, 16), str(path), reset=()
    )
