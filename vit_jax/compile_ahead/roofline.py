"""The least time that a compiled step can take on a chip, and what it sends.

A bound, not a forecast: each part of the machine works at its published peak,
and all of them at the same time.
"""

import math
from typing import NamedTuple

import jax


class Bound(NamedTuple):
  """Seconds of a step that one part of the machine alone would need.

  Attributes:
    flops: of the matrix units.
    memory: of the device's memory, for what the compiled program moves.
    links: of a chip's links to its slice, all of them sending at once.
    network: of a chip's share of the network between slices; 0 if nothing
      crosses it, or if its bandwidth is not known.
  """

  flops: float
  memory: float
  links: float
  network: float

  @property
  def seconds(self):
    return max(self)

  @property
  def by(self):
    """The name of the part that takes longest."""
    return max(self._fields, key=lambda name: getattr(self, name))


def bound(chip, flops, memory_bytes, collectives, mesh):
  """Returns the Bound of a step.

  Args:
    chip: `chips.Chip`.
    flops: of one device.
    memory_bytes: that one device reads and writes.
    collectives: list of `traffic.Collective`.
    mesh: the device mesh.
  """
  links, network = 0, 0
  for collective in collectives:
    on_links, on_network = crossing(collective, mesh)
    links += collective.times * on_links
    network += collective.times * on_network
  return Bound(
    flops=flops / chip.peak_flops,
    memory=memory_bytes / chip.hbm_bandwidth,
    links=links / (chip.link_bandwidth * chip.num_links),
    network=network / chip.network_bandwidth if chip.network_bandwidth else 0,
  )


def crossing(collective, mesh):
  """Returns the fewest bytes that a chip sends, over its links and the network.

  Devices of one chip share its links, and exchange what they can without them.
  A group of several slices exchanges within each slice first, so that each of
  its chips sends a part of the whole over the network.

  Args:
    collective: `traffic.Collective`.
    mesh: the device mesh, whose devices the groups number.
  """
  devices = list(mesh.devices.flat)
  most, users = (0, 0), {}
  for group in collective.groups:
    chips = {_chip(devices[i]) for i in group}
    slices = {_slice(devices[i]) for i in group}
    for each in chips:
      users[each] = users.get(each, 0) + 1
    if collective.kind == 'collective-permute':
      crosses = (collective.size * (len(chips) > 1), 0)
      if len(slices) > 1:
        crosses = crosses[::-1]
    else:
      in_slice = len(chips) // len(slices)
      crosses = (
        collective.sent(in_slice),
        collective.sent(len(slices)) / in_slice,
      )
    most = tuple(map(max, most, crosses))
  # A permute names senders and receivers: a chip is in two of its groups.
  pairs = 2 if collective.kind == 'collective-permute' else 1
  sharing = max(users.values(), default=1) / pairs
  return tuple(max(sharing, 1) * size for size in most)


def ideal_sent(shapes, layout, itemsize=4):
  """Returns the bytes that a device must send for one step, by the layout.

  A parameter that n devices hold: its gradient's all-reduce, 2 (n - 1) / n of
  its size. One that is split over f: the reduce-scatter of its gradient and two
  all-gathers, for the forward and the backward pass, (f - 1) / f of its size
  each; where its parts have copies, the all-reduce of a part. The all-reduces
  of activations that `model` takes are not counted.

  Args:
    shapes: tree of `jax.ShapeDtypeStruct`, the parameters.
    layout: tree of shardings.
    itemsize: bytes of a number that is sent: 4 in float32, 2 in bfloat16.
  """
  return itemsize * sum(
    _ideal_sent(shape, sharding)
    for shape, sharding in zip(
      jax.tree.leaves(shapes), jax.tree.leaves(layout), strict=True
    )
  )


def _ideal_sent(shape, sharding):
  """Returns how many numbers are sent of one parameter."""
  axes = {
    axis
    for part in sharding.spec
    if part is not None
    for axis in ((part,) if isinstance(part, str) else part)
  }
  sizes = sharding.mesh.shape
  # Over `model` the examples are the same: parts are no one else's.
  batch = [axis for axis in sizes if axis != 'model']
  split = math.prod(sizes[axis] for axis in batch if axis in axes)
  copies = math.prod(sizes[axis] for axis in batch if axis not in axes)
  part = math.prod(sharding.shard_shape(shape.shape))
  return part * (3 * (split - 1) + 2 * (copies - 1) / copies)


def _chip(device):
  return _slice(device), tuple(getattr(device, 'coords', (device.id,)))


def _slice(device):
  return getattr(device, 'slice_index', 0)
