from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import sharding
from vit_jax.checkpoint import snapshot


def make_state(mesh, scale=1.0):
  state = {'w': np.arange(2**17, dtype='f4') * scale, 'step': np.int32(3)}
  return jax.device_put(state, sharding.layout(state, mesh, 'fsdp'))


def addresses(tree):
  return {
    shard.data.unsafe_buffer_pointer()
    for leaf in jax.tree.leaves(tree)
    for shard in leaf.addressable_shards
    if shard.data.size > 1
  }


def test_copies_are_made_where_the_one_before_was(make_mesh):
  mesh, copies = make_mesh(2), snapshot.Snapshot()
  state = make_state(mesh)
  copies.prepare(state)
  copies.prepare(state)  # does nothing
  one, is_snapshot = copies.take(state)
  assert is_snapshot
  np.testing.assert_array_equal(one['w'], np.arange(2**17))
  assert one['w'].sharding == state['w'].sharding
  place = addresses(one)
  assert not place & addresses(state)
  other, _ = copies.take(make_state(mesh, 2.0))
  np.testing.assert_array_equal(other['w'], 2 * np.arange(2**17))
  assert addresses(other) == place


def test_a_state_of_another_layout_is_copied_too(make_mesh):
  copies = snapshot.Snapshot()
  copies.take(make_state(make_mesh(2)))
  copy, _ = copies.take(make_state(make_mesh(4)))
  np.testing.assert_array_equal(copy['w'], np.arange(2**17))
  assert len(copy['w'].sharding.device_set) == 4


def test_an_accelerator_without_room_gets_no_copy():
  class Device:
    platform = 'tpu'

    def __init__(self, free):
      self._stats = {'bytes_limit': free + 1000, 'peak_bytes_in_use': 1000}

    def memory_stats(self):
      return self._stats

  def leaf_on(device):
    leaf = mock.Mock()
    leaf.addressable_shards = [
      mock.Mock(device=device, data=jnp.zeros(100))
    ]  # 400 bytes
    leaf.sharding.device_set = {device}
    return leaf

  state = leaf_on(Device(free=500))
  assert snapshot.Snapshot().take(state) == (state, False)
  with mock.patch.object(jnp, 'copy', lambda leaf: ('copy', leaf)):
    device, copies = Device(free=700), snapshot.Snapshot()
    state = leaf_on(device)
    assert copies.take(state) == (('copy', state), True)
    device._stats['peak_bytes_in_use'] += 400  # that copy
    assert copies.take(state) == (('copy', state), True)
    device._stats['peak_bytes_in_use'] += 200  # an evaluation since
    assert copies.take(state) == (state, False)
