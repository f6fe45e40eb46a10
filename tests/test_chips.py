import pytest

from vit_jax import chips


def test_a_chip_that_is_not_known():
  assert chips.find('cpu') is None


@pytest.mark.parametrize(
  ('kind', 'per_chip'),
  [  # of a chip: bf16 FLOP/s, GiB, GB/s (cloud.google.com/tpu/docs)
    ('TPU v2', (45e12, 16, 700)),
    ('TPU v3', (123e12, 32, 900)),
    ('TPU v4', (275e12, 32, 1200)),
    ('TPU v5 lite', (197e12, 16, 819)),
    ('TPU v5p', (459e12, 96, 2765)),
    ('TPU v6 lite', (918e12, 32, 1638)),
  ],
)
def test_published_figures(kind, per_chip):
  chip = chips.find(kind)
  n = chip.devices_per_chip
  peak, memory, bandwidth = per_chip
  assert n * chip.peak_flops == pytest.approx(peak)
  assert n * chip.hbm_bandwidth == pytest.approx(bandwidth * 1e9)
  # The compiler keeps up to 7% (v2) for itself.
  assert 0.93 * memory < n * chip.hbm_bytes / 2**30 <= memory


@pytest.mark.parametrize(
  ('kind', 'chips_in_pod', 'pod'),
  [  # all-reduce bandwidth of a pod (cloud.google.com/tpu/docs)
    ('TPU v3', 1024, 340e12),
    ('TPU v4', 4096, 1.1e15),
    ('TPU v5 lite', 256, 51.2e12),
    ('TPU v6 lite', 256, 102.4e12),
  ],
)
def test_links_make_the_published_bandwidth_of_a_pod(kind, chips_in_pod, pod):
  chip = chips.find(kind)
  total = chips_in_pod * chip.num_links * chip.link_bandwidth
  assert total == pytest.approx(pod, rel=0.12)


@pytest.mark.parametrize(
  ('kind', 'pod'),  # Tbit/s of the network of 256 chips (the same pages)
  [('TPU v5 lite', 6.4), ('TPU v6 lite', 25.6)],
)
def test_the_published_network_of_a_pod(kind, pod):
  chip = chips.find(kind)
  assert 256 * chip.network_bandwidth * 8 == pytest.approx(pod * 1e12)
