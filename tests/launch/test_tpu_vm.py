"""launch/tpu_vm.sh: its dry runs, and real runs against a false gcloud.

The false `gcloud` keeps the state of a TPU in a folder, and runs the commands
for its workers in a shell, as ssh does, with a home folder for each.
"""

import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import tarfile

import pytest
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


def test_shellcheck_finds_nothing():
  scripts = [*LAUNCH.glob('*.sh'), LAUNCH / 'slurm.sbatch']
  result = run(pathlib.Path(sys.executable).parent / 'shellcheck', *scripts)
  assert result.returncode == 0, result.stdout
  assert len(scripts) >= 3


def test_create_and_queue_ask_for_the_tpu():
  tpu = ['gcloud', 'compute', 'tpus']
  where = OURS[1:]
  assert dry_run('create', '--type=v3-128') == [
    [
      *tpu, 'tpu-vm', 'create', 'vit', '--accelerator-type=v3-128',
      '--version=tpu-ubuntu2204-base', *where,
    ]
  ]  # fmt: skip
  assert dry_run('queue', '--type=v5litepod-256', '--spot') == [
    [
      *tpu, 'queued-resources', 'create', 'vit', '--node-id=vit',
      '--accelerator-type=v5litepod-256',
      '--runtime-version=v2-alpha-tpuv5-lite', '--spot', *where,
    ]
  ]  # fmt: skip
  commands = dry_run('queue', '--type=v7-8', '--version=its-image')
  assert '--runtime-version=its-image' in commands[0]


def test_a_dry_run_of_install_packs_what_can_be_packed(tmp_path):
  """That is what git knows, and what it could be told of."""
  line, *_ = run(TPU_VM, 'install', '--dry_run', *OURS).stdout.splitlines()
  assert line.startswith(f'git -C {ROOT} ls-files')
  result = subprocess.run(['bash', '-c', line], cwd=tmp_path, check=False)
  assert result.returncode == 0
  with tarfile.open(tmp_path / 'vit_jax.tar.gz') as archive:
    names = archive.getnames()
  assert {'setup.py', 'launch/tpu_worker.sh'} <= set(names)
  assert not [name for name in names if name.startswith(('.git/', '.venv/'))]


def test_run_hands_every_word_to_the_workers():
  (command,) = dry_run('run', *TRAINING, '--env=TFDS_DATA_DIR=gs://b/a set')
  assert command[3:7] == ['tpu-vm', 'ssh', 'vit', '--worker=all']
  remote = command[7].removeprefix('--command=')
  assert shlex.split(remote) == [
    'env', 'TFDS_DATA_DIR=gs://b/a set',
    'bash', 'vit_jax/launch/tpu_worker.sh', 'run', *TRAINING,
  ]  # fmt: skip


def test_a_dry_run_of_resume_shows_all_that_it_may_do():
  commands = dry_run('resume', '--type=v3-128', '--spot', *TRAINING)
  kinds = [tuple(command[3:5]) for command in commands]
  assert kinds[-6:] == [
    ('queued-resources', 'delete'),
    ('queued-resources', 'create'),
    ('tpu-vm', 'scp'),
    ('tpu-vm', 'ssh'),  # install
    ('tpu-vm', 'ssh'),  # run
    ('tpu-vm', 'ssh'),  # state
  ]
  assert all(command[-2:] == OURS[1:] for command in commands)


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    (['run', '--name=vit'], 'run needs --zone=...'),
    (['create', *OURS], 'create needs --type=...'),
    (['create', *OURS, '--type=v9-8'], '--type=v9-8: unknown; give its'),
    (['run', *OURS, '--config=configs/digits.py'], 'run needs --workdir=...'),
    (['run', *OURS, '--config=a.py', '--workdir=gs://b/r'], 'no such file'),
    (
      ['run', *OURS, '--type=v3-32', *TRAINING, '--workdir=runs/a'],
      '--workdir=runs/a is local',
    ),
    (
      ['resume', *OURS, '--type=v9-8', *TRAINING],
      '--type=v9-8: unknown; give its',
    ),
    (
      ['resume', *OURS, '--type=v3-8', *TRAINING, '--workdir=runs/a'],
      '--workdir=runs/a is local',
    ),
    (['delete', *OURS], 'say --yes'),
    (['queue', *OURS, '--spto'], '--spto is no flag'),
    (['fly', *OURS], 'fly is no command'),
  ],
)
def test_mistakes_end_in_one_line(args, message, tmp_path):
  result = run(TPU_VM, *args, PATH=f'{tmp_path}:/usr/bin:/bin')
  assert result.returncode == 1
  assert result.stderr.startswith('Error: ')
  assert message in result.stderr
  assert result.stderr.count('\n') == 1


def test_help_names_every_command_and_flag():
  text = run(TPU_VM, '--help').stdout
  flags = set(re.findall(r'--([a-z_]+)(?:=\*)? ?[|)]', TPU_VM.read_text()))
  assert {'name', 'workdir', 'poll', 'spot', 'dry_run'} <= flags
  for flag in flags - {'help'}:
    assert f'\n  --{flag}' in text
  actions = ('create', 'queue', 'install', 'doctor', 'run', 'logs', 'stop')
  for action in (*actions, 'resume', 'status', 'delete'):
    assert f'\n  {action} ' in text


# A TPU of two workers. `describe` takes the next line of a file of states, and
# stays at the last one.
GCLOUD = """#!/usr/bin/env bash
cd "$CLOUD"
echo "$*" >> calls
case "$4 $3" in
  "describe queued-resources" | "describe tpu-vm")
    state=$(head -n 1 "$3")
    [[ $(wc -l < "$3") -eq 1 ]] || sed -i 1d "$3"
    if [[ $state == MISSING ]]; then echo 'NOT_FOUND: no vit' >&2; exit 1; fi
    if [[ $state == OFFLINE ]]; then echo 'no network' >&2; exit 1; fi
    echo "$state" ;;
  "create queued-resources")
    if [[ -s refusals ]]; then
      sed -i 1d refusals; echo 'there is no answer' >&2; exit 1
    fi
    mkdir -p worker0 worker1 ;;
  "delete queued-resources") rm -rf worker* ;;
  "scp tpu-vm")
    for home in worker*; do cp "$5" "$home/"; done ;;
  "ssh tpu-vm")
    for argument in "$@"; do
      case $argument in --command=*) command=${argument#--command=} ;; esac
    done
    for home in worker*; do
      (cd "$home" && HOME="$PWD" bash -c "$command")
    done ;;
esac
"""
# The Python of the workers: what stands for the run.
PYTHON = """#!/usr/bin/env bash
printf '%s\\n' "$@" "$TFDS_DATA_DIR" > "$HOME/words"
exit "$(cat "$CLOUD/exit_code")"
"""


@pytest.fixture
def cloud(tmp_path, monkeypatch):
  """A folder that stands for the cloud: states, calls, the workers' homes."""
  folder = tmp_path / 'cloud'
  for name in ('bin', 'worker0', 'worker1'):
    (folder / name).mkdir(parents=True)
  for name, text in {'gcloud': GCLOUD, 'pip': '', 'uv': UV}.items():
    (folder / 'bin' / name).write_text(text)
    (folder / 'bin' / name).chmod(0o755)
  # `python3 -m pip install uv`, as the workers do it.
  (folder / 'bin/python3').write_text(
    '#!/usr/bin/env bash\nmkdir -p "$HOME/.local/bin"\n'
    'cp "$CLOUD/bin/uv" "$HOME/.local/bin/uv"\n'
  )
  (folder / 'bin/python3').chmod(0o755)
  (folder / 'python').write_text(PYTHON)
  (folder / 'python').chmod(0o755)
  (folder / 'exit_code').write_text('0')
  monkeypatch.setenv('CLOUD', str(folder))
  monkeypatch.setenv('PATH', f'{folder}/bin:{os.environ["PATH"]}')
  return folder


UV = """#!/usr/bin/env bash
echo "uv $*" >> "$CLOUD/calls"
if [[ $1 == venv ]]; then
  mkdir -p "$HOME/vit_jax_venv/bin"
  cp "$CLOUD/python" "$HOME/vit_jax_venv/bin/python"
fi
"""


def calls(cloud):
  """Returns what gcloud was asked for, as 'verb resource'."""
  lines = (cloud / 'calls').read_text().splitlines()
  return [
    f'{line.split()[3]} {line.split()[2]}'
    for line in lines
    if line.startswith('compute')
  ]


def resume(*flags):
  return run(
    TPU_VM, 'resume', *OURS, '--type=v3-32', '--spot', '--poll=0.2', *TRAINING,
    *flags,
  )  # fmt: skip


def test_resume_goes_from_nothing_to_the_end(cloud):
  (cloud / 'queued-resources').write_text(
    'MISSING\nMISSING\nOFFLINE\nWAITING_FOR_RESOURCES\nACTIVE\n'
  )
  (cloud / 'tpu-vm').write_text('MISSING\nMISSING\nCREATING\nREADY\n')
  result = resume('--env=TFDS_DATA_DIR=gs://b/a set')
  assert result.returncode == 0, result.stdout + result.stderr
  done = [call for call in calls(cloud) if 'describe' not in call]
  assert done[:4] == [
    'create queued-resources', 'ssh tpu-vm',  # state: new
    'scp tpu-vm', 'ssh tpu-vm',  # install
  ]  # fmt: skip
  for worker in ('worker0', 'worker1'):
    words = (cloud / worker / 'words').read_text().splitlines()
    assert words == [
      '-u', '-m', 'vit_jax.main', *TRAINING, 'gs://b/a set',
    ]  # fmt: skip
    assert (cloud / worker / 'vit_jax/vit_jax/main.py').exists()
  assert 'the run is done' in result.stdout


def test_resume_starts_again_after_a_preemption(cloud):
  (cloud / 'queued-resources').write_text('SUSPENDED\nSUSPENDED\nACTIVE\n')
  (cloud / 'tpu-vm').write_text('READY\n')
  # The folders of the TPU that was taken away; deleting it clears them.
  (cloud / 'worker0/vit_jax.log').write_text('trains on the first TPU\n')
  (cloud / 'python').write_text(
    '#!/usr/bin/env bash\necho trains on the second TPU\n'
  )
  result = resume()
  assert result.returncode == 0, result.stdout + result.stderr
  changes = [call for call in calls(cloud) if 'queued' in call]
  changes = [call for call in changes if 'describe' not in call]
  assert changes == ['delete queued-resources', 'create queued-resources']
  for worker in ('worker0', 'worker1'):
    text = (cloud / worker / 'vit_jax.log').read_text()
    assert text == 'trains on the second TPU\n'


def test_resume_waits_for_an_outage_to_end(cloud):
  # Each look, and each deletion before a request, asks once.
  (cloud / 'queued-resources').write_text('MISSING\n' * 10 + 'ACTIVE\n')
  (cloud / 'tpu-vm').write_text('MISSING\n' * 10 + 'READY\n')
  (cloud / 'refusals').write_text('once\n' * 4)
  result = resume('--poll=0.02')
  assert result.returncode == 0, result.stdout + result.stderr
  assert 'could not ask for a TPU (4 of 10)' in result.stdout
  assert calls(cloud).count('create queued-resources') == 5
  assert (cloud / 'worker1/words').exists()


def test_resume_gives_up_on_a_tpu_that_is_always_refused(cloud):
  (cloud / 'queued-resources').write_text('MISSING\n')
  (cloud / 'tpu-vm').write_text('MISSING\n')
  (cloud / 'refusals').write_text('once\n' * 99)
  result = resume('--poll=0.001')
  assert result.returncode == 1
  assert calls(cloud).count('create queued-resources') == 10
  assert 'Error: gave up.' in result.stderr


def test_status_says_what_it_could_not_ask(cloud):
  (cloud / 'tpu-vm').write_text('MISSING\n')
  (cloud / 'queued-resources').write_text('OFFLINE\n')
  result = run(TPU_VM, 'status', *OURS)
  assert result.returncode == 1
  assert result.stderr == 'no network\n'
  (cloud / 'queued-resources').write_text('WAITING\n')
  result = run(TPU_VM, 'status', *OURS)
  assert result.returncode == 0
  assert result.stdout == 'queued resource: WAITING\nTPU: MISSING\n'


def test_resume_gives_up_on_a_run_that_fails(cloud):
  (cloud / 'queued-resources').write_text('ACTIVE\n')
  (cloud / 'tpu-vm').write_text('READY\n')
  (cloud / 'exit_code').write_text('1')
  result = resume()
  assert result.returncode == 1
  assert result.stdout.count('the run failed') == 3
  assert 'Error: gave up.' in result.stderr


def test_resume_starts_a_stopped_run_again_as_often_as_it_stops(cloud):
  (cloud / 'queued-resources').write_text('ACTIVE\n')
  (cloud / 'tpu-vm').write_text('READY\n')
  # Told to stop: 75, four times, then the end.
  (cloud / 'python').write_text(
    '#!/usr/bin/env bash\necho x >> "$HOME/starts"\n'
    '(( $(wc -l < "$HOME/starts") > 4 )) || exit 75\n'
  )
  result = resume()
  assert result.returncode == 0, result.stdout + result.stderr
  assert (cloud / 'worker0/starts').read_text().count('x') == 5
  assert calls(cloud).count('scp tpu-vm') == 1  # installed once


@pytest.fixture
def worker(tmp_path, monkeypatch):
  """Returns a function that runs tpu_worker.sh in a home folder of its own."""
  (tmp_path / 'vit_jax').mkdir()
  (tmp_path / 'vit_jax_venv/bin').mkdir(parents=True)
  python = tmp_path / 'vit_jax_venv/bin/python'
  python.write_text(
    f'#!{sys.executable}\nimport os, signal, sys, time\n'
    'def stop(*_):\n  time.sleep(0.3)\n  os._exit(75)\n'
    'signal.signal(signal.SIGTERM, stop)\n'
    'print("ready", flush=True)\ntime.sleep(60)\n'
  )
  python.chmod(0o755)
  monkeypatch.setenv('HOME', str(tmp_path))
  return lambda *args: run(LAUNCH / 'tpu_worker.sh', *args)


def test_a_worker_says_how_its_run_goes(worker, tmp_path):
  log = tmp_path / 'vit_jax.log'
  assert worker('state').stdout == 'state: new\n'
  assert worker('run', '--config=a').returncode == 0
  assert worker('state').stdout == 'state: running\n'
  wait_until(lambda: 'ready' in log.read_text())
  second = worker('run', '--config=a')
  assert second.returncode == 1
  assert 'already running' in second.stderr
  assert worker('stop').returncode == 0
  wait_until(lambda: worker('state').stdout != 'state: running\n')
  assert worker('state').stdout == 'state: stopped\n'


def test_a_machine_that_shuts_down_does_not_lose_how_the_run_ended(
  worker, tmp_path
):
  worker('run')
  wait_until(lambda: 'ready' in (tmp_path / 'vit_jax.log').read_text())
  shell = int((tmp_path / '.vit_jax.pid').read_text())
  # Shutting down sends SIGTERM to the shell and the run alike.
  os.killpg(shell, signal.SIGTERM)
  wait_until((tmp_path / '.vit_jax.status').exists)
  wait_until((tmp_path / '.vit_jax.status').read_text)
  assert (tmp_path / '.vit_jax.status').read_text() == '75\n'
