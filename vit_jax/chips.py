"""The accelerators that JAX names, by their data sheets."""

from typing import NamedTuple

_GIB = 2**30


class Chip(NamedTuple):
  """One device as JAX counts them: on TPU v2 and v3 a core, half a chip.

  Attributes:
    peak_flops: dense bf16 FLOP/s of a device.
    hbm_bytes: bytes of a device's memory that a program can use. The TPU
      compiler keeps some: what it says that it has, not the data sheet. None,
      as all that follows, of GPUs: no one compiles for them elsewhere.
    hbm_bandwidth: bytes/s of a device, between memory and compute units.
    link_bandwidth: bytes/s that one link of a chip sends (and receives, at the
      same time): between the chips of a TPU slice, or the GPUs of a host.
    num_links: of a chip.
    network_bandwidth: bytes/s that a chip's share of the network sends, between
      slices or hosts; None if that is not published.
    devices_per_chip: how many devices share the links of a chip.
  """

  peak_flops: float
  hbm_bytes: int | None = None
  hbm_bandwidth: float | None = None
  link_bandwidth: float | None = None
  num_links: int | None = None
  network_bandwidth: float | None = None
  devices_per_chip: int = 1


def _gib(number):
  return round(number * _GIB)


_V5P = Chip(459e12, _gib(95.74), 2765e9, 100e9, 6, 50e9 / 8)

# TPU: "System architecture" of each version at cloud.google.com/tpu/docs; what
# it gives for a chip is halved for the cores of v2 and v3. The links of v2 and
# v3 are from Norrie et al., "The Design Process for Google's Training Chips",
# 2021 (496 and 656 Gbit/s each way), of v4 from Jouppi et al., 2304.01433 (50
# GB/s), of the others a chip's "bidirectional ICI bandwidth" over both
# directions of all links. The network of v5e and v6e is that of a pod, 6.4 and
# 25.6 Tbit/s, over 256 chips.
# hbm_bytes is what libtpu 0.0.42 says when a program does not fit.
# GPU: NVIDIA's data sheets.
CHIPS = {
  'TPU v2': Chip(
    22.5e12, _gib(7.48), 350e9, 62e9, 4, devices_per_chip=2
  ),
  'TPU v3': Chip(
    61.5e12, _gib(15.48), 450e9, 82e9, 4, devices_per_chip=2
  ),
  'TPU v4': Chip(275e12, _gib(30.75), 1200e9, 50e9, 6),
  'TPU v5 lite': Chip(197e12, _gib(15.75), 819e9, 50e9, 4, 25e9 / 8),
  'TPU v5': _V5P,
  'TPU v5p': _V5P,
  'TPU v6 lite': Chip(918e12, _gib(31.25), 1638e9, 100e9, 4, 100e9 / 8),
  'NVIDIA A100-SXM4-40GB': Chip(312e12),
  'NVIDIA A100-SXM4-80GB': Chip(312e12),
  'NVIDIA A100 80GB PCIe': Chip(312e12),
  'NVIDIA H100 80GB HBM3': Chip(989.4e12),
  'NVIDIA H200': Chip(989.4e12),
}  # fmt: skip


def find(device_kind):
  """Returns the Chip of a device, or None where it is not known, as of CPUs.

  Args:
    device_kind: as `jax.Device.device_kind` has it.
  """
  return CHIPS.get(device_kind)
