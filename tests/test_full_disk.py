"""Training on a disk that is really full for a while."""

import json
import subprocess

import jax
import numpy as np
import pytest

from vit_jax import metrics, train


@pytest.fixture
def disk(tmp_path):
  """A folder on a file system of 4 MB of its own."""
  folder = tmp_path / 'disk'
  folder.mkdir()
  command = ['mount', '-t', 'tmpfs', '-o', 'size=4m', 'none', str(folder)]
  try:
    subprocess.run(command, check=True, capture_output=True)
  except (OSError, subprocess.CalledProcessError) as error:
    pytest.skip(f'only root may mount: {error}')
  yield folder
  subprocess.run(['umount', str(folder)], check=True)


def fill(path):
  """Writes a file until not a byte more finds room."""
  with path.open('ab', buffering=0) as file, pytest.raises(OSError, match='28'):
    while True:
      file.write(bytes(4096))


def without_times(folder):
  lines = map(json.loads, (folder / 'metrics.jsonl').read_text().splitlines())
  return [
    {k: v for k, v in line.items() if k != 'train/images_per_second'}
    for line in lines
    if 'train/loss' in line or 'test/loss' in line
  ]


@pytest.mark.slow
# Of TensorStore, where Orbax has given up a save.
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_training_outlasts_a_full_disk(
  tiny_config, disk, tmp_path, monkeypatch, capfd
):
  tiny_config.total_steps = 40  # some pages of lines
  tiny_config.checkpoint.every = 20
  expected = train.train(tiny_config, tmp_path / 'roomy')
  capfd.readouterr()

  scalars = metrics.Writer.scalars

  def meanwhile(self, step, section, values):
    if 10 <= step < 40:  # also what a checkpoint that failed has left free
      fill(disk / 'others')
    if (step, section) == (40, 'train'):
      (disk / 'others').unlink()
    scalars(self, step, section, values)

  monkeypatch.setattr(metrics.Writer, 'scalars', meanwhile)
  state = train.train(tiny_config, disk / 'run')
  jax.tree.map(np.testing.assert_array_equal, state, expected)
  assert without_times(disk / 'run') == without_times(tmp_path / 'roomy')
  assert (disk / 'run' / 'checkpoints' / '40').is_dir()
  out, _ = capfd.readouterr()
  for name in ('metrics.jsonl', 'tensorboard'):
    warning = f'Warning: {disk}/run/{name} cannot be written: No space left on'
    assert out.count(warning) == 1
  assert 'WARNING: the checkpoint of step' in out
  assert 'Traceback' not in out
