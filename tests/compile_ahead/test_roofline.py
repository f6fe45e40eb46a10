"""Bounds, by hand."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from vit_jax import chips
from vit_jax.compile_ahead import roofline, traffic

CHIP = chips.Chip(
  peak_flops=100.0, hbm_bytes=1, hbm_bandwidth=10.0, link_bandwidth=2.0,
  num_links=4, network_bandwidth=0.5,
)  # fmt: skip


def devices(num_slices, chips_in_slice, cores=1):
  """Returns a mesh: anything that has devices with coordinates."""
  listed = [
    SimpleNamespace(id=0, slice_index=s, coords=[x, 0, 0])
    for s in range(num_slices)
    for x in range(chips_in_slice)
    for _ in range(cores)
  ]
  return SimpleNamespace(devices=np.array(listed, object))


def everyone(kind, size, mesh):
  return traffic.Collective(kind, size, (tuple(range(mesh.devices.size)),))


def test_one_chip_sends_nothing():
  mesh = devices(1, 1, cores=2)
  assert roofline.crossing(everyone('all-reduce', 80, mesh), mesh) == (0, 0)


def test_cores_of_a_chip_share_what_it_sends():
  mesh = devices(1, 4, cores=2)
  crossing = roofline.crossing(everyone('all-reduce', 80, mesh), mesh)
  assert crossing == (2 * 80 * 3 / 4, 0)  # of chips, not of cores


def test_groups_that_share_a_chip_share_its_links():
  mesh = devices(1, 4, cores=2)
  halves = traffic.Collective('all-gather', 80, ((0, 2, 4, 6), (1, 3, 5, 7)))
  assert roofline.crossing(halves, mesh) == (2 * 80 * 3 / 4, 0)


def test_slices_exchange_over_the_network():
  mesh = devices(2, 4)
  links, network = roofline.crossing(everyone('all-reduce', 80, mesh), mesh)
  assert links == 2 * 80 * 3 / 4  # within the slice
  assert network == 2 * (80 / 4) * 1 / 2  # a quarter of it, with one partner


def test_permutes():
  mesh = devices(2, 2)
  ring = traffic.Collective('collective-permute', 80, ((0, 1), (1, 0)))
  assert roofline.crossing(ring, mesh) == (80, 0)
  across = traffic.Collective('collective-permute', 80, ((0, 2), (2, 0)))
  assert roofline.crossing(across, mesh) == (0, 80)


def test_the_slowest_part_bounds_the_step():
  mesh = devices(2, 4)
  reduction = everyone('all-reduce', 80, mesh)._replace(times=3)
  bound = roofline.bound(CHIP, 500.0, 70, [reduction], mesh)
  assert bound == (5.0, 7.0, 3 * 120 / 8, 3 * 20 / 0.5)
  assert (bound.seconds, bound.by) == (120.0, 'network')
  unknown = CHIP._replace(network_bandwidth=None)
  assert roofline.bound(unknown, 500.0, 70, [reduction], mesh).by == 'links'


@pytest.mark.parametrize(
  ('spec', 'expected'),
  [  # of 32 x 6 float32 on a mesh of 4 x 2: 768 bytes
    ((), 768 * 2 * 7 / 8),
    (('data',), 768 * 3 * 3 / 4 + 768 / 4 * 2 * 1 / 2),
    ((('replica', 'data'),), 768 * 3 * 7 / 8),
  ],
)
def test_what_a_layout_needs(spec, expected):
  mesh = jax.make_mesh((2, 4), ('replica', 'data'))
  place = NamedSharding(mesh, PartitionSpec(*spec))
  shape = jax.ShapeDtypeStruct((32, 6), 'float32')
  assert roofline.ideal_sent([shape], [place]) == pytest.approx(expected)
  in_bfloat16 = roofline.ideal_sent([shape], [place], itemsize=2)
  assert in_bfloat16 == pytest.approx(expected / 2)


def test_parts_over_model_are_no_one_elses():
  mesh = jax.make_mesh((4, 2), ('data', 'model'))
  place = NamedSharding(mesh, PartitionSpec('model'))
  shape = jax.ShapeDtypeStruct((32, 6), 'float32')
  assert roofline.ideal_sent([shape], [place]) == 384 * 2 * 3 / 4
