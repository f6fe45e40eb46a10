import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from vit_jax import sharding

SHAPES = {
  'params': {
    'mlp_in': {
      'kernel': jax.ShapeDtypeStruct((12, 256, 512), jnp.float32),
      'bias': jax.ShapeDtypeStruct((12, 512), jnp.float32),
    },
    'odd': jax.ShapeDtypeStruct((333, 333), jnp.float32),
  },
  'step': jax.ShapeDtypeStruct((), jnp.int32),
}


def specs(mesh, params):
  layout = sharding.layout(SHAPES, mesh, params)
  return jax.tree.map(lambda s: s.spec, layout)


def test_make_mesh_fills_in_the_devices():
  assert dict(sharding.make_mesh().shape) == {'data': 8, 'model': 1}
  assert dict(sharding.make_mesh(model=2).shape) == {'data': 4, 'model': 2}
  assert dict(sharding.make_mesh(2, -1).shape) == {'data': 2, 'model': 4}


@pytest.mark.parametrize('sizes', [(3, -1), (4, 1), (-1, -1), (0, -1), (8, 0)])
def test_make_mesh_explains_sizes_that_do_not_fit(sizes):
  with pytest.raises(ValueError, match=r'config.mesh: .* of devices, 8; set'):
    sharding.make_mesh(*sizes)


def test_replicate_keeps_everything_whole(make_mesh):
  layout = specs(make_mesh(8), 'replicate')
  assert set(jax.tree.leaves(layout)) == {PartitionSpec()}


def test_fsdp_splits_the_largest_dimension_that_divides(make_mesh):
  layout = specs(make_mesh(8), 'fsdp')
  assert layout['params']['mlp_in'] == {
    'kernel': PartitionSpec(None, None, 'data'),
    'bias': PartitionSpec(),  # small
  }
  assert layout['params']['odd'] == PartitionSpec()
  assert layout['step'] == PartitionSpec()


def test_table_places_by_name(make_mesh):
  table = [('mlp_in/kernel', (None, None, 'model')), ('mlp', ())]
  layout = specs(make_mesh(4, 2), table)
  assert layout['params']['mlp_in'] == {
    'kernel': PartitionSpec(None, None, 'model'),
    'bias': PartitionSpec(),
  }


@pytest.mark.parametrize('axes', [('data',), ('modle',), (None,) * 4])
def test_table_explains_axes_that_do_not_fit(make_mesh, axes):
  with pytest.raises(ValueError, match=r"'mlp_in/kernel' gives params/mlp_in"):
    specs(make_mesh(8), [('mlp_in/kernel', axes)])


@pytest.mark.parametrize('table', [[('a',)], [('(', ())], 3])
def test_what_is_no_table_is_explained(make_mesh, table):
  with pytest.raises(ValueError, match='is no table .* rows of .regex, axes'):
    specs(make_mesh(8), table)


def test_unknown_layout_is_explained(make_mesh):
  with pytest.raises(ValueError, match="mean 'fsdp'.* fsdp, replicate"):
    specs(make_mesh(8), 'fdsp')


def test_batch_size_has_to_divide(make_mesh):
  sharding.check_batch_size(16, make_mesh(8), 'config.train.batch_size', 2)
  with pytest.raises(ValueError) as error:
    sharding.check_batch_size(100, make_mesh(8), 'config.train.batch_size')
  assert str(error.value) == (
    'config.train.batch_size=100 does not divide over 8 devices; '
    'use a multiple of 8.'
  )
  with pytest.raises(ValueError, match=r'batch_size=16.0 does not divide'):
    sharding.check_batch_size(16.0, make_mesh(8), 'config.train.batch_size')
  with pytest.raises(ValueError, match='2 accumulation steps; .* of 16'):
    sharding.check_batch_size(8, make_mesh(8), 'config.train.batch_size', 2)


def test_global_batch_is_split_over_data_only(make_mesh):
  mesh = make_mesh(4, 2)
  np.testing.assert_array_equal(sharding.local_rows(mesh, 8), np.arange(8))
  images = np.arange(16).reshape(8, 2)
  batch = sharding.global_batch({'image': images}, mesh)
  np.testing.assert_array_equal(batch['image'], images)
  shards = {s.device: s.data.shape for s in batch['image'].addressable_shards}
  assert len(shards) == 8
  assert set(shards.values()) == {(2, 2)}
