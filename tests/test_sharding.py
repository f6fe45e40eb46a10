import json

import jax
import jax.numpy as jnp
import numpy as np
import process_runner
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
  def sizes(**asked):
    return tuple(sharding.make_mesh(**asked).shape.values())

  assert sharding.make_mesh().axis_names == ('replica', 'data', 'model')
  assert sizes() == (1, 8, 1)
  assert sizes(model=2) == (1, 4, 2)
  assert sizes(data=2, model=-1) == (1, 2, 4)
  assert sizes(replica=2, model=2) == (2, 2, 2)
  assert sizes(devices=jax.devices()[:3]) == (1, 3, 1)


@pytest.mark.parametrize(
  'sizes',
  [(1, 3, -1), (-1, 4, 1), (-1, -1, -1), (1, 0, -1), (1, 8, 0), (3, -1, 1)],
)
def test_make_mesh_explains_sizes_that_do_not_fit(sizes):
  with pytest.raises(ValueError, match=r'config.mesh: .* of devices, 8; set'):
    sharding.make_mesh(*sizes)


SLICES = """
import collections, json
import numpy as np
from jax.experimental import topologies
from vit_jax import sharding
devices = topologies.get_topology_desc(
  platform='tpu', topology_name='v5e:2x4', num_slices=2).devices
found = {}
for sizes in [(-1, -1, 1), (-1, -1, 2), (4, -1, 1), (1, -1, 2), (1, 1, -1),
              (8, -1, 1), (3, -1, 1)]:
  try:
    mesh = sharding.make_mesh(*sizes, devices=devices)
  except ValueError as error:
    found[str(sizes)] = str(error)
    continue
  rows = collections.defaultdict(set)
  batch = sharding.batch_sharding(mesh)
  for device, (part,) in batch.devices_indices_map((16,)).items():
    rows[device.process_index] |= set(range(16)[part])
  found[str(sizes)] = dict(
    shape=list(mesh.shape.values()),
    slices=[sorted({d.slice_index for d in r.flat}) for r in mesh.devices],
    rows=[sorted(rows[i]) for i in sorted(rows)],
  )
print(json.dumps(found))
"""


@pytest.fixture(scope='module')
def on_two_slices():
  """Meshes over two slices of eight TPUs that only exist as a description."""
  pytest.importorskip('libtpu')
  result = process_runner.run('-c', SLICES, **process_runner.FOR_TPUS)
  assert result.returncode == 0, result.stderr
  return json.loads(result.stdout.splitlines()[-1])


def test_a_replica_is_a_slice(on_two_slices):
  found = on_two_slices['(-1, -1, 1)']
  assert found['shape'] == [2, 8, 1]
  assert found['slices'] == [[0], [1]]
  found = on_two_slices['(-1, -1, 2)']
  assert found['shape'] == [2, 4, 2]
  assert found['slices'] == [[0], [1]]


def test_a_slice_holds_whole_replicas_or_a_replica_whole_slices(on_two_slices):
  assert on_two_slices['(4, -1, 1)']['slices'] == [[0], [0], [1], [1]]
  assert on_two_slices['(1, -1, 2)']['slices'] == [[0, 1]]
  # A model never crosses slices, and nothing else fits.
  for sizes in ('(1, 1, -1)', '(3, -1, 1)'):
    assert on_two_slices[sizes].startswith('config.mesh: replica=')
  assert 'does not fit 2 slices of 8 devices' in on_two_slices['(1, 1, -1)']


def test_the_processes_of_slices_feed_each_row_once(on_two_slices):
  for sizes in ('(-1, -1, 1)', '(-1, -1, 2)', '(4, -1, 1)', '(8, -1, 1)'):
    rows = on_two_slices[sizes]['rows']
    assert len(rows) == 4
    assert sorted(row for part in rows for row in part) == list(range(16))
    assert {len(part) for part in rows} == {4}
    # The first slice's two processes feed the first half.
    assert sorted(rows[0] + rows[1]) == list(range(8))


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


@pytest.mark.parametrize(
  ('axes', 'message'),
  [
    (('data',), '12 does not divide by 8; use None there'),
    (
      (None, ('replica', 'modle')),
      "there is no 'modle'; use replica, data, mo",
    ),
    ((None,) * 4, 'it has 3 dimensions; give at most so many'),
    ((None, 'data', 'data'), "'data' can split only one dimension"),
    ((None, ['model', 'model']), "'model' can split only one dimension"),
    ((('replica', 'data'),), '12 does not divide by 8'),
  ],
)
def test_table_explains_axes_that_do_not_fit(make_mesh, axes, message):
  with pytest.raises(ValueError, match=r"'mlp_in/kernel' gives .*" + message):
    specs(make_mesh(8), [('mlp_in/kernel', axes)])


def test_table_splits_a_dimension_over_several_axes(make_mesh):
  # As a config has it, and as JSON gives it back.
  table = (('mlp_in/kernel', (None, ('replica', 'data'), 'model')),)
  for params in (table, json.loads(json.dumps(table))):
    layout = specs(make_mesh(2, 2, 2), params)['params']['mlp_in']
    assert layout['kernel'] == PartitionSpec(None, ('replica', 'data'), 'model')


@pytest.mark.parametrize('table', [[('a',)], [('(', ())], 3, [('a', (3,))]])
def test_what_is_no_table_is_explained(make_mesh, table):
  with pytest.raises(ValueError, match='is no table .* rows of .regex, axes'):
    specs(make_mesh(8), table)


def test_unknown_layout_is_explained(make_mesh):
  with pytest.raises(
    ValueError, match="mean 'fsdp'.* fsdp, fsdp_tensor, replicate, t"
  ):
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


@pytest.mark.parametrize('sizes', [(4, 2, 1), (2, 2, 2)])
def test_global_batch_is_split_over_replica_and_data(make_mesh, sizes):
  mesh = make_mesh(*sizes)
  np.testing.assert_array_equal(sharding.local_rows(mesh, 8), np.arange(8))
  images = np.arange(16).reshape(8, 2)
  batch = sharding.global_batch({'image': images}, mesh)
  np.testing.assert_array_equal(batch['image'], images)
  shards = {s.device: s.data.shape for s in batch['image'].addressable_shards}
  assert len(shards) == 8
  assert set(shards.values()) == {(2, 2)}
