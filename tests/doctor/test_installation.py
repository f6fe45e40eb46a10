"""What the doctor finds in what is installed, and in the folder."""

from importlib import metadata

import process_runner
import pytest

from vit_jax.doctor import installation, workdir
from vit_jax.doctor.finding import FAIL, OK, WARN


@pytest.fixture
def versions(monkeypatch):
  """Versions that take the place of the installed ones; None is missing."""
  replaced = {}
  real = metadata.version

  def version(name):
    result = replaced.get(name, ...)
    if result is None:
      raise metadata.PackageNotFoundError(name)
    return real(name) if result is ... else result

  monkeypatch.setattr(metadata, 'version', version)
  return replaced


def problems(**options):
  """Returns the findings of the installation that are not ok, by name."""
  findings = installation.check(**options)
  return {f.name: f for f in findings if f.status != OK}


def test_the_packages_of_this_environment_are_right():
  assert not problems()


def test_packages_outside_of_the_tested_range(versions):
  versions |= {'flax': '0.13.1', 'optax': None, 'array_record': None}
  found = problems()
  assert found['flax'].status == found['optax'].status == FAIL
  # Range and remedy are setup.py's.
  (line,) = [
    line for line in (process_runner.ROOT / 'setup.py').read_text().splitlines()
    if "'flax" in line
  ]  # fmt: skip
  for bound in line.split("'")[1].removeprefix('flax').split(','):
    assert bound in found['flax'].text
    assert bound in found['flax'].remedy
  assert found['optax'].text == 'not installed'
  assert found['array_record'].status == WARN
  assert found['array_record'].remedy == "pip install -e '.[data]'"


def test_a_run_in_a_bucket_needs_more(versions):
  versions['gcsfs'] = '2024.1.0'
  assert not problems()
  found = problems(remote=True)['gcsfs']
  assert found.status == FAIL
  assert '2024.1.0 is outside of the tested range' in found.text
  assert 'paths at gs:// need it' in found.text
  versions['gcsfs'] = None
  assert problems(remote=True)['gcsfs'].remedy == "pip install -e '.[gcs]'"


def test_what_does_not_go_with_jax(versions):
  versions['jaxlib'] = '0.4.1'
  versions['libtpu'] = '0.0.2'
  versions['jax-cuda12-plugin'] = metadata.version('jax')
  versions['jax-cuda12-pjrt'] = '0.4.1'
  found = problems()
  assert set(found) == {'jaxlib', 'libtpu', 'jax-cuda12-pjrt'}
  jax = metadata.version('jax')
  assert f'for jax {jax}, which asks for jaxlib' in found['jaxlib'].text
  assert found['libtpu'].remedy == f"pip install 'jax[tpu]=={jax}'"


def test_another_python(monkeypatch):
  monkeypatch.setattr(
    installation.platform, 'python_version', lambda: '3.10.12'
  )
  assert '3.10.12 is not >=3.11' in problems()['python'].text


def test_vit_jax_is_not_installed(monkeypatch):
  def missing(name):
    raise metadata.PackageNotFoundError(name)

  monkeypatch.setattr(metadata, 'metadata', missing)
  (finding,) = installation.check()
  assert finding.status == FAIL
  assert finding.remedy == 'pip install -e .'


@pytest.mark.parametrize(
  ('free', 'status'), [(30e9, OK), (5e9, WARN), (0.5e9, FAIL)]
)
def test_room_for_checkpoints(free, status):
  finding = workdir.judge('runs/a', {'seconds': None, 'free': free})
  assert finding.status == status


def test_a_store_that_does_not_answer():
  finding = workdir.judge('gs://bucket/run', None, timeout=120)
  assert finding.status == FAIL
  assert 'gs://bucket/run did not answer within 120 s' in finding.text
  assert 'gcloud auth application-default login' in finding.remedy


def test_a_store_that_refuses():
  error = 'access is denied (no rights); ask for the role'
  finding = workdir.judge('gs://bucket/run', {'error': error})
  assert finding.text == 'gs://bucket/run: access is denied (no rights)'
  assert finding.remedy == 'ask for the role'
