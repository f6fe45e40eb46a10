"""Real processes that agree, fail, and die."""

import shutil
import socket
import time

import process_runner
import pytest

from vit_jax import processes

HOST = socket.gethostname()
TINY_RUN = ['--config=configs/digits.py', '--config.total_steps=2']


def test_processes_that_do_not_agree_say_in_what(tmp_path):
  other = tmp_path / 'other'  # a copy of the code, a line longer
  for folder in ('vit_jax', 'configs'):
    shutil.copytree(process_runner.ROOT / folder, other / folder)
  with (other / 'vit_jax' / 'flops.py').open('a') as file:
    file.write('# Changed.\n')
  workdir = f'--workdir={tmp_path}/run'
  commands = process_runner.commands(3, *TINY_RUN, workdir)
  commands[2].append('--config.seed=7')
  cwds = [process_runner.ROOT, other, process_runner.ROOT]
  with process_runner.started(commands, cwds=cwds) as running:
    codes, _, errors = process_runner.finish(running)
  assert codes == [1] * 3
  for error in errors:
    assert 'Error: The 3 processes do not agree:\n' in error
    assert '\n  code of vit_jax: "' in error
    assert f'" on process 1 ({HOST}), "' in error
    assert (
      f'\n  config.seed: 7 on process 2 ({HOST}), 0 on process 0 ({HOST}) and '
      'others\nStart all with the same command, code, packages, variables and '
      'devices.'
    ) in error
    assert 'devices' not in error.partition('\nStart')[0]
    assert 'variable' not in error.partition('\nStart')[0]
    assert 'Traceback' not in error
  assert not (tmp_path / 'run').exists()


# What process 1 does, after all have computed something together. Then all go
# on to do so.
MEMBER = """
import os, signal, sys, time
address, num, number, what = sys.argv[1:]
from vit_jax import command_line, processes
with command_line.one_line_errors(), processes.joined(
    address, int(num), int(number), start_timeout=60, lost_timeout=4):
  import jax, numpy as np
  from jax.experimental import multihost_utils
  def together():
    return multihost_utils.process_allgather(np.ones(3))
  assert together().shape == (2, 3)
  print('together', flush=True)
  if number == what[-1] or 'both' in what:
    exec(what[:-2])
  if 'alone' in what:
    time.sleep(600)
  while 'end' not in what:
    together()
    time.sleep(0.1)
print('end')
"""


def run_members(what):
  """Returns what `finish` does, and the seconds that all took to end."""
  address = process_runner.free_address()
  commands = [['-c', MEMBER, address, 2, i, what] for i in range(2)]
  with process_runner.started(commands) as running:
    for process in running:
      while 'together' not in process.stdout.readline():
        assert process.poll() is None, process.communicate()
    begin = time.monotonic()
    frozen = [running[int(what[-1])]] if 'SIGSTOP' in what else []
    rest = [process for process in running if process not in frozen]
    result = process_runner.finish(rest, timeout=60)
    return *result, time.monotonic() - begin


def kill(name):
  return f'os.kill(os.getpid(), signal.{name})'


GO_ON = 'This process stops too; the same command continues from the last '
GO_ON += 'checkpoint.'


@pytest.mark.parametrize(
  ('what', 'cause'),
  [
    # The other waits for it on the devices, and in Python.
    (f'{kill("SIGKILL")} 1', f'process 1 ({HOST}) ended without a word '
     '(killed, or out of memory).'),
    (f'{kill("SIGKILL")} #alone 1', f'process 1 ({HOST}) ended without a word '
     '(killed, or out of memory).'),
    # It is the one that all others hear of each other from.
    (f'{kill("SIGKILL")} 0', f'process 0 ({HOST}) ended without a word '
     '(killed, or out of memory).'),
    (f'{kill("SIGSTOP")} 1', f'process 1 ({HOST}) has not been heard of for '
     '4 s.'),
    ('raise KeyError("x y") 1', f'process 1 ({HOST}) stopped: KeyError: '
     "'x y'."),
  ],
)  # fmt: skip
def test_a_lost_process_stops_the_other_with_a_reason(what, cause):
  codes, outs, errors, seconds = run_members(what)
  survivor = 1 - int(what[-1]) if len(codes) == 2 else 0
  assert codes[survivor] == 1
  assert process_runner.last_line(errors[survivor]) == f'Error: {cause} {GO_ON}'
  assert 'Traceback' not in errors[survivor]
  assert 'end' not in ''.join(outs)
  assert seconds < (15 if 'SIGSTOP' in what else 10)
  if 'KeyError' in what:
    assert codes == [1, 1]
    assert "KeyError: 'x y'\n" in errors[1]
    assert process_runner.last_line(errors[1]) == (
      f'Error: process 1 ({HOST}) stopped, for what is said above; all others '
      'stop too.'
    )


def test_an_error_of_all_is_said_by_each():
  what = 'time.sleep(2 * int(number)); sys.exit("Error: One\\n  two.") #both 1'
  codes, _, errors, _ = run_members(what)
  assert codes == [1, 1]
  assert errors[0].endswith('Error: One\n  two.\n')
  assert errors[1].endswith('Error: One\n  two.\n')


def test_the_processes_end_together():
  codes, outs, errors, _ = run_members('time.sleep(2) #end 1')
  assert codes == [0, 0], errors
  assert all(out.endswith('end\n') for out in outs)


# JAX hangs at its end, as it may when another process is gone by then.
HANGS = """
import sys, time, types
import jax
from vit_jax import processes
from vit_jax.processes import joining
member = types.SimpleNamespace(gather=lambda *args, **kwargs: None)
joining.join = lambda *args, **kwargs: (member, None)
jax.distributed.shutdown = lambda: time.sleep(60)
processes._SHUTDOWN_SECONDS = 0.2
with processes.joined('h:1', 2, 1) as ending:
  print('Stopped.')
  ending.status = 75
"""


def test_the_exit_code_outlives_a_jax_that_hangs():
  with process_runner.started([['-c', HANGS]]) as running:
    codes, outs, _ = process_runner.finish(running, timeout=50)
  assert codes == [75]
  assert outs[0] == 'Stopped.\n'


def test_one_process_needs_nothing_of_this():
  with processes.joined():
    assert not processes.several()
    assert processes.gather('x', 3) == [3]
    processes.barrier('x')
  with processes.joined('127.0.0.1:1', 1, 0):
    assert not processes.several()
  with pytest.raises(KeyError), processes.joined():
    raise KeyError


def test_seconds_are_checked():
  with (
    pytest.raises(ValueError, match=r'--lost_timeout=0 is not above 0\.'),
    processes.joined(lost_timeout=0),
  ):
    pass
