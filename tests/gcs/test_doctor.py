"""The doctor's look at a bucket, as a process of its own."""

import pathlib

import process_runner
import pytest

ROOT = pathlib.Path(__file__).parents[2]


def probe(workdir):
  """Returns the doctor's finding on a folder: (exit code, its last lines)."""
  result = process_runner.run(
    '-m', 'vit_jax.doctor', f'--workdir={workdir}', timeout=200
  )
  found = result.stdout.partition(' workdir ')[2]
  return result.returncode, ' '.join(found.split())


def test_a_bucket_that_can_be_written(folder):
  code, text = probe(folder)
  assert code == 0, text
  assert f'{folder} can be written, read and deleted' in text
  assert not folder.exists() or not list(folder.iterdir())  # nothing is left


@pytest.mark.usefixtures('proxy')
def test_a_bucket_that_is_not_there():
  code, text = probe('gs://missing/run')
  assert code == 1
  assert "gs://missing/run: there is no bucket 'missing'" in text
  assert '-> correct the name, or make it: `gcloud storage buckets' in text
