"""Runs the launch scripts, for the tests."""

import os
import pathlib
import shlex
import subprocess
import time

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / 'launch'
TPU_VM = LAUNCH / 'tpu_vm.sh'
OURS = ['--name=vit', '--zone=us-central1-a', '--project=our-project']
TRAINING = [
  '--config=configs/vit_i1k.py:B/32',
  '--workdir=gs://bucket/a run',
  "--config.train.preprocess=random_crop(8, padding=1)|it's",
]


def run(*command, **environment):
  return subprocess.run(
    [str(word) for word in command],
    env=os.environ | environment,
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
    timeout=60,
  )


def dry_run(action, *flags):
  """Returns the gcloud commands it prints, each as a list of words."""
  result = run(TPU_VM, action, '--dry_run', *OURS, *flags)
  assert result.returncode == 0, result.stderr
  lines = result.stdout.replace('\\\n', '').splitlines()
  text = '\n'.join(
    line for line in lines if line[:1] != '#' and line[:4] != 'git '
  )
  words = shlex.split(text)
  starts = [i for i, word in enumerate(words) if word == 'gcloud']
  return [words[a:b] for a, b in zip(starts, [*starts[1:], None], strict=True)]


def wait_until(condition):
  deadline = time.monotonic() + 30
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.02)
