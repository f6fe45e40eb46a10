"""Slurm, GKE, and what launch/README.md says of all launchers."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys

import pytest
import yaml
from launch.scripts import (
  LAUNCH,
  OURS,
  ROOT,
  TPU_VM,
  TRAINING,
  dry_run,
  run,
  wait_until,
)

SBATCH = LAUNCH / 'slurm.sbatch'


def test_slurm_starts_one_process_for_each_gpu():
  result = run(SBATCH, *TRAINING, DRY_RUN='1', SLURM_CPUS_PER_TASK='12')
  words = shlex.split(result.stdout)
  assert words[0] == 'srun'
  assert '--cpus-per-task=12' in words
  assert words[-len(TRAINING) - 4 :] == [
    '.venv/bin/python', '-u', '-m', 'vit_jax.main', *TRAINING,
  ]  # fmt: skip
  options = re.findall(r'^#SBATCH --([a-z-]+)=?(.*)', SBATCH.read_text(), re.M)
  options = dict(options)
  assert options['ntasks-per-node'] == options['gpus-per-node']
  assert options['signal'] == 'TERM@120'
  assert 'requeue' in options


@pytest.fixture
def slurm(tmp_path, monkeypatch):
  """A false srun, which runs its command here, and a false scontrol."""
  for name, text in {
    'srun': 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
    'scontrol': f'echo "$@" >> {tmp_path}/asked',
    'python': f"trap 'sleep 0.3; exit 75' TERM\necho x > {tmp_path}/ready\n"
    'for i in {1..300}; do sleep 0.1; done',
  }.items():
    (tmp_path / name).write_text(f'#!/usr/bin/env bash\n{text}\n')
    (tmp_path / name).chmod(0o755)
  monkeypatch.setenv('PATH', f'{tmp_path}:{os.environ["PATH"]}')
  monkeypatch.setenv('PYTHON', 'python')
  monkeypatch.setenv('SLURM_JOB_ID', '17')
  return tmp_path


@pytest.mark.parametrize('code', [0, 1])
def test_a_job_ends_as_its_run_does(slurm, code):
  (slurm / 'python').write_text(f'#!/usr/bin/env bash\nexit {code}\n')
  assert run(SBATCH, '--config=a').returncode == code
  assert not (slurm / 'asked').exists()


def test_a_stopped_job_goes_back_into_the_queue(slurm):
  with subprocess.Popen(
    [SBATCH], cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL
  ) as process:
    wait_until((slurm / 'ready').exists)
    os.killpg(process.pid, signal.SIGTERM)  # the shell and the run, as Slurm
    assert process.wait(30) == 0
  assert (slurm / 'asked').read_text() == 'requeue 17\n'


def manifest():
  return yaml.safe_load((LAUNCH / 'gke/jobset.yaml').read_text())


def test_the_jobset_holds_together():
  jobset = manifest()
  assert jobset['kind'] == 'JobSet'
  # The machines of many hard preemptions; the README says the number.
  restarts = jobset['spec']['failurePolicy']['maxRestarts']
  assert restarts >= 100
  text = (LAUNCH / 'README.md').read_text()
  assert f'after {restarts} errors (`maxRestarts`)' in text
  (jobs,) = jobset['spec']['replicatedJobs']
  job = jobs['template']['spec']
  pod = job['template']['spec']
  (container,) = pod['containers']
  # One pod a machine, together all chips of the slice.
  rows, columns = map(
    int,
    pod['nodeSelector']['cloud.google.com/gke-tpu-topology'].split('x'),
  )
  chips = container['resources']['limits']['google.com/tpu']
  assert job['parallelism'] == job['completions'] == rows * columns / chips
  assert job['backoffLimit'] == 0
  assert pod['terminationGracePeriodSeconds'] >= 60
  # Kubernetes asks for it where a podFailurePolicy is given.
  assert pod['restartPolicy'] == 'Never'
  exit_codes = job['podFailurePolicy']['rules'][0]['onExitCodes']
  assert exit_codes['containerName'] == container['name']


def test_the_jobset_runs_what_there_is():
  (jobs,) = manifest()['spec']['replicatedJobs']
  (container,) = jobs['template']['spec']['template']['spec']['containers']
  module, *flags = container['args']
  dockerfile = (LAUNCH / 'gke/Dockerfile').read_text()
  assert 'ENTRYPOINT ["python", "-u", "-m"]' in dockerfile
  text = run(sys.executable, '-m', module, '--help').stdout
  for flag in flags:
    assert f'\n  {flag.partition("=")[0]}:' in text
  config = next(f for f in flags if f.startswith('--config='))
  assert (ROOT / config.removeprefix('--config=')).is_file()


def readme_commands():
  """Returns the commands of the README, one a line."""
  text = (LAUNCH / 'README.md').read_text().replace('\\\n', '')
  blocks = re.findall(r'^ *```\n(.*?)^ *```', text, re.S | re.M)
  lines = (line.strip() for block in blocks for line in block.splitlines())
  return [line.split('  #')[0].split(' && ')[0] for line in lines]


def help_commands():
  """Returns the examples of tpu_vm.sh --help, one a line."""
  text = run(TPU_VM, '--help').stdout.replace('\\\n', '')
  return text.partition('\nExamples\n')[2].strip().splitlines()


def test_the_commands_of_the_readme_are_accepted():
  scripts = [
    line.strip()
    for line in (*readme_commands(), *help_commands())
    if line.strip().startswith(('launch/tpu_vm.sh', 'python launch/local.py'))
  ]
  assert len(scripts) >= 14
  runs = [
    line for line in scripts if re.search(r'tpu_vm.sh (run|resume)', line)
  ]
  assert len(runs) == 4
  for line in runs:  # ImageNet is where step 5 has copied it
    assert '--env=TFDS_DATA_DIR=gs://BUCKET/tfds' in line
  assert any(
    line.startswith('gcloud ') and ' gs://BUCKET/tfds' in line
    for line in readme_commands()
  )
  for line in scripts:
    line = line.replace('"${TPU[@]}"', shlex.join(OURS))
    line = line.replace('python ', f'{sys.executable} ')
    program, separator, training = line.partition(' -- ')
    result = run(*shlex.split(f'{program} --dry_run{separator}{training}'))
    assert result.returncode == 0, f'{line}: {result.stderr}'


@pytest.mark.skipif(
  not shutil.which('gcloud'),
  reason='Without the gcloud CLI nothing checks the names of its flags.',
)
def test_gcloud_knows_all_commands_and_flags(tmp_path):
  commands = [
    line.replace('PROJECT', 'our-project')
    for line in readme_commands()
    if line.startswith('gcloud ')
  ]
  flags = ('--type=v3-128', '--spot', *TRAINING)
  for action in ('create', 'resume', 'doctor', 'logs', 'stop', 'status'):
    commands += map(shlex.join, dry_run(action, *flags))
  assert len(commands) > 20
  file = tmp_path / 'commands.json'
  file.write_text(json.dumps([{'command_string': c} for c in commands]))
  result = run(
    'gcloud', 'meta', 'lint-gcloud-commands', f'--commands-file={file}',
    CLOUDSDK_CONFIG=str(tmp_path), CLOUDSDK_CORE_CHECK_GCE_METADATA='false',
  )  # fmt: skip
  checked = json.loads(result.stdout)
  assert len(checked) == len(set(commands))
  assert not [row['error_message'] for row in checked if not row['success']]


def test_what_is_installed_has_a_name_in_setup():
  setup = (ROOT / 'setup.py').read_text()
  for file in ('gke/Dockerfile', 'tpu_worker.sh'):
    (extras,) = re.findall(
      r"editable '\.\[(.*)\]'", (LAUNCH / file).read_text()
    )
    for extra in extras.split(','):
      assert f"'{extra}': " in setup
