"""TPUs that are not here, as their compiler describes them."""

import os

import pytest

from vit_jax.compile_ahead import topology

pytest.importorskip('libtpu')


@pytest.mark.parametrize(
  ('name', 'num_slices', 'kind', 'count'),
  [
    ('v3:4x8', 1, 'TPU v3', 64),  # cores
    ('v4:2x2x1', 1, 'TPU v4', 4),  # chips, as real ones are used
    ('v5e:4x4', 1, 'TPU v5 lite', 16),
    ('v5e:1x1', 1, 'TPU v5 lite', 1),
    ('v5p:2x2x1', 2, 'TPU v5', 8),
    ('v6e:2x2', 1, 'TPU v6 lite', 4),
  ],
)
def test_devices(name, num_slices, kind, count):
  devices = topology.devices(name, num_slices)
  assert len(devices) == count
  assert {device.device_kind for device in devices} == {kind}
  slices = {getattr(device, 'slice_index', 0) for device in devices}
  assert len(slices) == num_slices


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('v3', '--topology=v3 is no topology; give a version and .* v3:4x8'),
    ('h100:8', 'is no topology'),
    ('v9:2x2', 'v9:2x2 is unknown to the compiler .*; give a version'),
    ('v3:3x3', 'v3:3x3 is unknown to the compiler .*divisible'),
  ],
)
def test_what_is_no_topology(name, message):
  with pytest.raises(ValueError, match=message):
    topology.devices(name)


def test_no_slices():
  with pytest.raises(ValueError, match='--num_slices=0 is not at least 1'):
    topology.devices('v3:2x2', 0)


def test_without_the_compiler(monkeypatch):
  monkeypatch.setattr(topology.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ValueError, match=r"pip install 'jax\[tpu\]'"):
    topology.devices('v3:2x2')


def test_what_the_user_set_stays(monkeypatch):
  monkeypatch.setenv('TPU_MIN_LOG_LEVEL', '0')
  before = dict(os.environ)
  topology.devices('v3:2x2')
  assert dict(os.environ) == before  # a run would take this for a pod


@pytest.mark.parametrize(
  ('message', 'needed'),
  [
    (
      'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required '
      'for HLO temporaries (24.00G) exceeds available HBM (15.48G).',
      24 * 2**30,
    ),
    (
      'RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 16.50G '
      'of 15.48G hbm. Exceeded hbm capacity by 1.02G.',
      16.5 * 2**30,
    ),
    ('RESOURCE_EXHAUSTED: something else', None),
    ('INVALID_ARGUMENT: (24.00G) exceeds available HBM', None),
  ],
)
def test_the_compilers_verdict(message, needed):
  assert topology.needed_bytes(message) == needed
