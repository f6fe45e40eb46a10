import jax.numpy as jnp
import pytest

from vit_jax import names


def test_lookup_names_the_choices_and_the_nearest():
  assert names.lookup({'adam': 1}, 'adam', 'config.optimizer.name') == 1
  with pytest.raises(ValueError) as error:
    names.lookup({'adam': 1, 'sgd': 2}, 'adm', 'config.optimizer.name')
  assert str(error.value) == (
    "config.optimizer.name='adm' is unknown (did you mean 'adam'?); "
    'choose one of adam, sgd.'
  )


def test_call_checks_the_arguments():
  def make(context, size, color='red'):
    return context, size, color

  def call(**section):
    return names.call(make, section, 'config.part', context=0)

  assert call(size=3) == (0, 3, 'red')
  with pytest.raises(
    ValueError,
    match=r"config.part.colour is not a field \(did you mean 'color'\?\); "
    'config.part has size, color.',
  ):
    call(size=3, colour='blue')
  with pytest.raises(ValueError, match='config.part lacks size.'):
    call(color='blue')
  with pytest.raises(ValueError, match=r'config.part.context is not a field'):
    call(size=1, context=2)


def test_check_fields_names_the_nearest():
  names.check_fields({'seed': 0, 'train': 1}, 'config', ['seed', 'train'])
  with pytest.raises(ValueError, match='config lacks train.'):
    names.check_fields({'seed': 0}, 'config', ['seed', 'train'])
  with pytest.raises(ValueError, match="config.trian .*mean 'train'"):
    names.check_fields({'trian': 0}, 'config', ['seed', 'train'])


def test_mask_matches_whole_names():
  tree = {'head': {'kernel': jnp.ones(1), 'bias': jnp.ones(1)}, 'kernels': 0}
  assert names.leaf_names(tree)['head']['kernel'] == 'head/kernel'
  assert names.mask(tree, '.*/kernel') == {
    'head': {'kernel': True, 'bias': False},
    'kernels': False,
  }


def test_of_many_choices_the_nearest_are_shown():
  table = {f'vit_{i}': i for i in range(98)}
  with pytest.raises(
    ValueError, match=r'one of vit_\d.*, \.\.\. \(98 in all\)'
  ) as e:
    names.lookup(table, 'vit_x', 'checkpoint')
  assert len(str(e.value)) < 200


def test_flatten_joins_names_with_dots():
  tree = {'seed': 0, 'mesh': {'data': -1, 'more': {'a': None}}, 'evals': {}}
  assert names.flatten(tree) == {
    'seed': 0, 'mesh.data': -1, 'mesh.more.a': None, 'evals': {},
  }  # fmt: skip
  assert names.flatten({'seed': 0}, 'config.') == {'config.seed': 0}
