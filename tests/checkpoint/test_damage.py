"""Damaged checkpoints are found, named, and the ones before them used."""

import os
import shutil

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest
from checkpoint.states import (
  NOISE_SHAPES,
  assert_same_bits,
  manager,
  noise,
  open_noise,
  restore,
)

from vit_jax import sharding

# Of Orbax's threads: where several of its reads or writes fail, some are never
# awaited.
pytestmark = [
  pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning'),
  pytest.mark.usefixtures('read_again_at_once', 'leave_nothing'),
]


def files(folder):
  return sorted(path for path in folder.glob('**/*') if path.is_file())


def cut_all(last):
  for path in files(last / 'state'):
    path.write_bytes(path.read_bytes()[:10])


def cut_largest(last):
  path = max(files(last), key=lambda path: path.stat().st_size)
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty_all(last):
  for path in files(last):
    path.write_bytes(b'')


def remove_state(last):
  shutil.rmtree(last / 'state')


def remove_data(last):
  shutil.rmtree(last / 'state' / 'd')


def remove_item(name):
  def damage(last):
    shutil.rmtree(last / name)

  return damage


@pytest.mark.parametrize(
  'damage',
  [
    cut_all, cut_largest, empty_all, remove_state, remove_data,
    *map(remove_item, ('config', 'inputs', 'checksums')),
  ],
)  # fmt: skip
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
  run, layout, damage
):
  damage(run / 'checkpoints' / '2')
  state, news = restore(run, layout)
  assert_same_bits(state, noise(1))
  (line,) = news
  assert 'the checkpoint of step 2 is damaged (' in line
  assert f'It is now {run}/checkpoints/damaged-2' in line
  # It is not in the way of the same step, and not lost.
  with open_noise(run) as checkpoints:
    assert checkpoints.restore_latest(layout)['step'] == 1
    checkpoints.save(2, noise(2))
  assert sorted(os.listdir(run / 'checkpoints')) == ['1', '2', 'damaged-2']
  state, news = restore(run, layout)
  assert_same_bits(state, noise(2))
  assert news == []


def test_a_flipped_bit_anywhere_is_found_or_harmless(run, layout):
  """In each file, in the middle and near both ends."""
  last = run / 'checkpoints' / '2'
  whole = {path: path.read_bytes() for path in files(last)}
  found = []
  for path, data in whole.items():
    for position in {3, len(data) // 2, len(data) - 4}:
      if not 0 <= position < len(data):
        continue
      changed = bytearray(data)
      changed[position] ^= 4
      path.write_bytes(changed)
      state, news = restore(run, layout)
      is_found = bool(news)
      assert_same_bits(state, noise(1 if is_found else 2))
      if is_found:
        found.append(path.relative_to(last).as_posix())
        (run / 'checkpoints' / 'damaged-2').rename(last)
      path.write_bytes(data)
  for item in ('config', 'inputs', 'checksums'):
    assert found.count(f'{item}/metadata') == 3
  largest = max(whole, key=lambda path: len(whole[path]))
  assert largest.relative_to(last).as_posix() in found


def test_values_are_compared_with_their_checksums(run, layout):
  """Where no file is damaged, too: another run's arrays."""
  folder = run / 'checkpoints'
  shutil.rmtree(folder / '2' / 'state')
  shutil.copytree(folder / '1' / 'state', folder / '2' / 'state')
  state, news = restore(run, layout)
  assert_same_bits(state, noise(1))
  assert 'step 2 is damaged (the values of ' in news[0]


def test_damage_to_all_is_an_error_that_changes_nothing(run, layout):
  for step in '12':
    cut_all(run / 'checkpoints' / step)
  for _ in range(2):  # the second time, too, it does not start from scratch
    with pytest.raises(ValueError, match=r'(?s)No .*\n  2: .*\n  1: .*a copy'):
      restore(run, layout)
  assert sorted(os.listdir(run / 'checkpoints')) == ['1', '2']


def test_another_models_state_is_not_damaged(run, make_mesh):
  shapes = NOISE_SHAPES | {'w': jax.ShapeDtypeStruct((40, 501), jnp.float32)}
  with (
    pytest.raises(ValueError, match=r'(?s)checkpoints/2 holds the state of anot'
                  r"her model:\n  w: \[\[40, 500\], 'float32'\] there, \[\[4"),
    manager(run, shapes) as checkpoints,
  ):  # fmt: skip
    checkpoints.restore_latest(sharding.layout(shapes, make_mesh(1)))
  assert sorted(os.listdir(run / 'checkpoints')) == ['1', '2']


def test_what_cannot_be_read_for_now_is_not_damaged(run, layout, monkeypatch):
  def fail(self, *args, **kwargs):
    raise RuntimeError('UNAVAILABLE: CURL error[7] Connection refused')

  monkeypatch.setattr(ocp.StandardCheckpointHandler, 'restore', fail)
  with pytest.raises(ValueError, match='/2 cannot be read now .*UNAVAILABLE.*'):
    restore(run, layout)
  assert sorted(os.listdir(run / 'checkpoints')) == ['1', '2']


def test_an_earlier_versions_checkpoint_is_restored_unchecked(run, layout):
  last = run / 'checkpoints' / '2'
  shutil.rmtree(last / 'checksums')
  (last / '_CHECKPOINT_METADATA').write_text('{}')
  state, (line,) = restore(run, layout)
  assert_same_bits(state, noise(2))
  assert line.endswith('/2 is of an earlier version, without checksums.')
