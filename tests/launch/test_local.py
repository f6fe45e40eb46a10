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


@pytest.fixture
def restore_signals():
  numbers = (signal.SIGTERM, signal.SIGINT)
  handlers = [signal.getsignal(number) for number in numbers]
  yield
  for number, handler in zip(numbers, handlers, strict=True):
    signal.signal(number, handler)


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
  """Runs small programs together; returns the exit code, and the seconds."""
  begin = time.monotonic()
  commands = [[sys.executable, '-c', code] for code in codes]
  environments = [{'NUMBER': str(i)} for i in range(len(codes))]
  return local.run(commands, environments, patience), time.monotonic() - begin


def test_output_is_marked(capfdbinary, restore_signals):
  code = 'import os; print(os.environ["NUMBER"], "no end", sep="\\n", end="")'
  assert run(code, code)[0] == 0
  lines = capfdbinary.readouterr().out.splitlines()
  assert sorted(lines) == [
    b'[0] 0', b'[0] no end', b'[1] 1', b'[1] no end',
  ]  # fmt: skip


def test_one_that_fails_ends_the_others_with_its_code(restore_signals):
  # The other has time to say why, and no more than that.
  code, seconds = run('import sys; sys.exit(3)', 'import time; time.sleep(60)',
                      patience=1)  # fmt: skip
  assert code == 3
  assert 1 <= seconds < 20
  code, _ = run('import sys; sys.exit(3)',
                'import sys, time; time.sleep(1); sys.exit(4)')  # fmt: skip
  assert code == 3


def test_one_that_is_killed_is_a_failure(restore_signals):
  code, _ = run('import os; os.kill(os.getpid(), 9)', 'pass')
  assert code == 128 + 9


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
  program = (
    'import sys; sys.path.insert(0, "launch"); import local; '
    f'command = [sys.executable, "-c", {WAITS!r}]; '
    'sys.exit(local.run([command] * 2, [{}, {}], 5))'
  )
  with subprocess.Popen(
    [sys.executable, '-c', program], cwd=ROOT, stdout=subprocess.PIPE, text=True
  ) as launcher:
    ready = [launcher.stdout.readline() for _ in range(2)]
    assert sorted(ready) == ['[0] ready\n', '[1] ready\n']
    launcher.send_signal(number)
    out, _ = launcher.communicate(timeout=30)
  assert sorted(out.splitlines()) == [
    f'[{i}] stopped by {int(number)}' for i in range(2)
  ]
  assert launcher.returncode == 0
