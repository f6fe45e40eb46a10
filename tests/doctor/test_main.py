"""The doctor as a user calls it, and its probes."""

import json
import re
import subprocess
import sys
import time
from importlib import metadata

import process_runner
import pytest
from doctor import test_machine

from vit_jax.doctor import __main__ as doctor
from vit_jax.doctor import devices, machine, workdir
from vit_jax.doctor.finding import FAIL, OK, WARN
from vit_jax.doctor.probe import Probe


def run(*args, **environment):
  """Runs the command, as `process_runner.run` does."""
  return process_runner.run(
    '-m', 'vit_jax.doctor', *args, timeout=200, **environment
  )


def test_a_good_machine(tmp_path):
  report = tmp_path / 'report.json'
  folder = tmp_path / 'run'
  folder.mkdir()
  result = run(
    '--require=cpu', '--num_devices=3', f'--workdir={folder}',
    f'--json={report}', devices=3,
  )  # fmt: skip
  assert result.returncode == 0, result.stdout + result.stderr
  assert f'ok    python       {sys.version.split()[0]}' in result.stdout
  assert 'ok    devices      3 x cpu (cpu)' in result.stdout
  findings = {row['name']: row for row in json.loads(report.read_text())}
  assert findings['arithmetic']['status'] == OK
  assert f'jax {metadata.version("jax")}' in findings['packages']['text']
  assert 'read and deleted' in findings['workdir']['text']
  assert not any(folder.iterdir())


def test_a_tpu_is_required_where_the_cpu_is_asked_for():
  result = run('--require=tpu', '--num_devices=8', JAX_PLATFORMS='cpu')
  assert result.returncode == 1
  assert 'FAIL  devices      1 x cpu (cpu), not on a tpu:' in result.stdout
  assert 'JAX_PLATFORMS=cpu hides it' in result.stdout
  assert '-> unset JAX_PLATFORMS' in result.stdout
  assert '1 FAIL' in result.stdout
  # Without --workdir it is about the folder that runs have by default.
  assert re.search(
    rf'\n(ok  |warn)  workdir      {workdir.DEFAULT} can be', result.stdout
  )
  assert 'ok    gcs          access to Google Cloud Storage was' in (
    result.stdout
  )


def test_the_default_folder_is_that_of_a_run():
  source = (process_runner.ROOT / 'vit_jax' / 'main.py').read_text()
  assert f"f'{workdir.DEFAULT}/{{name}}'" in source


@pytest.mark.parametrize('folder', ['gs://bucket/run', 'here', ''])
def test_a_store_that_was_not_asked_is_no_secret(folder, monkeypatch):
  class Answer:
    def __init__(self, *args):
      asked.append(args)

    def result(self, timeout):
      return test_machine.CPU | {'seconds': 0.1, 'free': 30e9}, ''

  asked = []
  monkeypatch.setattr(doctor, 'Probe', Answer)
  found = {f.name: f for f in doctor.examine(folder=folder)}
  assert asked[-1][-1] == (folder or 'runs')
  assert found['workdir'].status == OK
  if folder.startswith('gs://'):
    assert 'gcs' not in found
  else:
    assert '--workdir=gs://BUCKET/run checks it' in found['gcs'].text


def test_a_platform_that_does_not_exist():
  result = run(JAX_PLATFORMS='tup')
  assert result.returncode == 1
  assert 'FAIL  devices      JAX did not start:' in result.stdout
  assert 'unset JAX_PLATFORMS lets JAX choose' in ' '.join(
    result.stdout.split()
  )


def test_a_workdir_that_is_a_file(tmp_path):
  file = tmp_path / 'file'
  file.touch()
  result = run(f'--workdir={file}')
  assert result.returncode == 1
  # Whatever the width of the terminal.
  assert f'{file}isafile' in ''.join(result.stdout.split())


def test_the_machines_of_a_cluster_have_to_be_checked_together():
  # The environment of the second of two tasks under Slurm; the first is absent.
  result = run(
    '--timeout=16', SLURM_JOB_ID='1', SLURM_STEP_NODELIST='localhost',
    SLURM_PROCID='1', SLURM_LOCALID='0', SLURM_NTASKS='2',
    SLURM_STEP_NUM_NODES='2',
  )  # fmt: skip
  assert result.returncode == 1
  text = ' '.join(result.stdout.split())
  assert 'FAIL devices JAX did not start: it ended with exit code' in text
  assert 'did not find each other within 8 s' in text


def test_a_report_that_cannot_be_written_is_said_first(tmp_path, monkeypatch):
  monkeypatch.setattr(doctor, 'examine', None)
  path = tmp_path / 'missing' / 'x'
  with pytest.raises(SystemExit) as error:
    doctor.main([f'--json={path}'])
  assert str(error.value) == (
    f'Error: --json={path}: No such file or directory; give a file in a folder '
    'that exists and can be written.'
  )

  def stopped(*args):
    assert not (tmp_path / 'x').exists()
    raise KeyboardInterrupt

  monkeypatch.setattr(doctor, 'examine', stopped)
  with pytest.raises(KeyboardInterrupt):
    doctor.main([f'--json={tmp_path}/x'])


def test_its_start_is_quick():
  code = (
    'import sys, time\nstart = time.process_time()\n'
    'from vit_jax.doctor import __main__\n'
    'print(time.process_time() - start)\n'
    "assert not {'jax', 'numpy', 'etils'} & set(sys.modules)"
  )
  result = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert float(result.stdout) < 1


def test_devices_that_do_not_start(tmp_path, monkeypatch):
  # As a TPU that another process holds.
  (tmp_path / 'hang.py').write_text('import time\ntime.sleep(60)\n')
  monkeypatch.chdir(tmp_path)
  start = time.monotonic()
  result, log = Probe('hang').result(timeout=0.5)
  assert time.monotonic() - start < 5
  (finding,) = devices.judge(result, log, 'tpu', timeout=0.5)
  assert finding.status == FAIL
  assert 'did not start within 0.5 s' in finding.text


@pytest.mark.parametrize(
  'code', ['import os; os.abort()', 'print("no json")', 'raise SystemExit(3)']
)
def test_a_probe_that_dies(code, tmp_path, monkeypatch):
  (tmp_path / 'dies.py').write_text(code)
  monkeypatch.chdir(tmp_path)
  result, _ = Probe('dies').result(timeout=20)
  assert 'it ended with exit code' in result['error']


def test_what_is_wrong_decides_the_exit_code(monkeypatch, capsys):
  monkeypatch.setattr(doctor, 'examine', lambda *args: iter(findings))
  findings = [machine.Finding('a', WARN, 'text', 'remedy')]
  assert doctor.main([]) == 0
  findings += [machine.Finding('b', FAIL, 'text', 'remedy')]
  assert doctor.main([]) == 1
  assert '1 FAIL, 1 warn, 2 lines in all.' in capsys.readouterr().out
