"""launch/local.py: what it starts, passes on and returns."""

import importlib.util
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent
SCRIPT = ROOT / 'launch' / 'local.py'
spec = importlib.util.spec_from_file_location('launch_local', SCRIPT)
local = importlib.util.module_from_spec(spec)
spec.loader.exec_module(local)


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
  for name in ('XLA_FLAGS', 'CUDA_VISIBLE_DEVICES'):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setattr(local.glob, 'glob', lambda pattern: [])


def launcher(*codes, patience=5, before=''):
  """Returns the command of a launcher that runs small programs together."""
  commands = [[sys.executable, '-c', code] for code in codes]
  environments = [{'NUMBER': str(i)} for i in range(len(codes))]
  program = (
    f'import sys; sys.path.insert(0, {str(SCRIPT.parent)!r})\n'
    f'import local\n{before}\n'
    f'sys.exit(local.run({commands!r}, {environments!r}, {patience}))'
  )
  return [sys.executable, '-c', program]


def test_a_dry_run_prints_the_commands(capsys):
  code = local.main(
    ['--num_processes=2', '--devices_per_process=4', '--dry_run', '--',
     '--config=configs/digits.py', '--workdir=a b']
  )  # fmt: skip
  assert code == 0
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 2
  ports = set()
  for i, line in enumerate(lines):
    words = shlex.split(line)
    port = re.search(r'--coordinator=127\.0\.0\.1:(\d+)', line)[1]
    assert words == [
      'JAX_PLATFORMS=cpu',
      'XLA_FLAGS=--xla_force_host_platform_device_count=4',
      sys.executable, '-m', 'vit_jax.main', f'--coordinator=127.0.0.1:{port}',
      '--num_processes=2', f'--process_id={i}', '--config=configs/digits.py',
      '--workdir=a b',
    ]  # fmt: skip
    ports.add(int(port))
  assert len(ports) == 1


def test_each_process_has_its_share_of_the_gpus(monkeypatch):
  monkeypatch.setattr(
    local.glob, 'glob', lambda pattern: [f'/dev/nvidia{i}' for i in range(4)]
  )
  assert [local.environment(i, 4) for i in range(4)] == [
    {'CUDA_VISIBLE_DEVICES': str(i)} for i in range(4)
  ]
  monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '2,3,5,7')
  assert local.environment(1, 2) == {'CUDA_VISIBLE_DEVICES': '5,7'}
  with pytest.raises(ValueError, match='=3 does not divide the 4 GPUs'):
    local.environment(0, 3)
  assert local.environment(0, 3, devices_per_process=1)['JAX_PLATFORMS'] == (
    'cpu'
  )
  monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
  assert local.environment(0, 3) == {}


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    (['--num_processes=0'], '--num_processes=0 is not at least 1.'),
    (['--num_processes=1', '--devices_per_process=0'],
     '--devices_per_process=0 is not at least 1.'),
    ([], 'required: --num_processes'),
  ],
)  # fmt: skip
def test_mistakes(capsys, args, message):
  with pytest.raises(SystemExit) as error:
    local.main(args)
  assert error.value.code == 2
  assert message in capsys.readouterr().err


def run(*codes, patience=5):
  """Runs small programs; returns the exit code, the output, the seconds."""
  begin = time.monotonic()
  done = subprocess.run(
    launcher(*codes, patience=patience),
    stdout=subprocess.PIPE,
    timeout=50,
    check=False,
  )
  return done.returncode, done.stdout, time.monotonic() - begin


def test_output_is_marked():
  code = 'import os; print(os.environ["NUMBER"], "no end", sep="\\n", end="")'
  exit_code, out, _ = run(code, code)
  assert exit_code == 0
  assert sorted(out.splitlines()) == [
    b'[0] 0', b'[0] no end', b'[1] 1', b'[1] no end',
  ]  # fmt: skip


def test_one_that_fails_ends_the_others_with_its_code():
  # The other has time to say why, and no more than that.
  code, _, seconds = run(
    'import sys; sys.exit(3)', 'import time; time.sleep(60)', patience=1
  )
  assert code == 3
  assert 1 <= seconds < 20
  later = 'import sys, time; time.sleep(1); sys.exit(4)'
  assert run('import sys; sys.exit(3)', later)[0] == 3


def test_one_that_is_killed_is_a_failure():
  assert run('import os; os.kill(os.getpid(), 9)', 'pass')[0] == 128 + 9


def test_a_run_that_was_saved_is_to_go_on_unless_one_failed():
  saved = 'import sys; sys.exit(75)'
  assert run(saved, saved)[0] == 75
  failed = 'import sys, time; time.sleep(0.5); sys.exit(1)'
  assert run(saved, failed)[0] == 1


WAITS = """
import signal, sys, time
def stop(number, frame):
  print('stopped by', number, flush=True)
  sys.exit(0)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
print('ready', flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_signals_are_passed_on(number):
  with subprocess.Popen(
    launcher(WAITS, WAITS), stdout=subprocess.PIPE, text=True
  ) as running:
    ready = [running.stdout.readline() for _ in range(2)]
    assert sorted(ready) == ['[0] ready\n', '[1] ready\n']
    running.send_signal(number)
    out, _ = running.communicate(timeout=30)
  assert sorted(out.splitlines()) == [
    f'[{i}] stopped by {int(number)}' for i in range(2)
  ]
  assert running.returncode == 0


# The launcher is told to stop after it has started one of two.
TOLD_EARLY = """
import os, signal, subprocess, time
start = subprocess.Popen
def start_and_stop(*args, **kwargs):
  process = start(*args, **kwargs)
  print('started', flush=True)
  if kwargs['env']['NUMBER'] == '0':
    os.kill(os.getpid(), signal.SIGTERM)
  return process
subprocess.Popen = start_and_stop
"""


def test_a_signal_between_two_starts_reaches_both():
  begin = time.monotonic()
  done = subprocess.run(
    launcher(*['import time; time.sleep(60)'] * 2, before=TOLD_EARLY),
    stdout=subprocess.PIPE,
    text=True,
    timeout=50,
    check=False,
  )
  assert done.stdout.count('started') == 2
  assert done.returncode == 128 + signal.SIGTERM
  assert time.monotonic() - begin < 20


@pytest.mark.skipif(sys.platform != 'linux', reason='Linux ends them.')
def test_processes_do_not_outlive_a_launcher_that_is_killed():
  code = 'import os, time; print(os.getpid(), flush=True); time.sleep(60)'
  with subprocess.Popen(
    launcher(code, code), stdout=subprocess.PIPE, text=True
  ) as running:
    pids = [int(running.stdout.readline().split()[1]) for _ in range(2)]
    running.kill()
  deadline = time.monotonic() + 10
  while any(map(is_alive, pids)):
    assert time.monotonic() < deadline
    time.sleep(0.05)


def is_alive(pid):
  try:
    # The word after the name in brackets; Z is ended, but not yet waited for.
    stat = pathlib.Path(f'/proc/{pid}/stat').read_text()
  except (FileNotFoundError, ProcessLookupError):
    return False
  return stat.rpartition(') ')[2][0] != 'Z'
