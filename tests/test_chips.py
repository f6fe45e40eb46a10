import jax
import pytest

from vit_jax import chips


def test_a_chip_that_is_not_known():
  assert chips.find(jax.devices('cpu')[0].device_kind) is None


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


@pytest.mark.parametrize('known', [True, False])
def test_options_that_a_compiler_does_not_know_are_left_out(known):
  asked = []

  class Lowered:
    def compile(self, options=None):
      asked.append(options)
      if options and not known:
        raise jax.errors.JaxRuntimeError("No such compile option: 'xla_x'")
      return 'compiled'

  assert chips.compiled(Lowered(), 'TPU v5p') == 'compiled'
  assert [bool(options) for options in asked] == [True] + [False] * (not known)
  assert chips.compiled(Lowered(), 'cpu') == 'compiled'
  assert asked[-1] is None


def test_other_errors_of_the_compiler_pass():
  class Lowered:
    def compile(self, options=None):
      raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: no')

  with pytest.raises(jax.errors.JaxRuntimeError, match='EXHAUSTED'):
    chips.compiled(Lowered(), 'TPU v3')
