"""How processes find each other, and what they say if they do not."""

import os
import socket
import time

import jax
import process_runner
import pytest

from vit_jax import processes
from vit_jax.processes import joining

HOST = socket.gethostname()
JOIN = """
import sys
address, num, number, seconds = sys.argv[1:]
from vit_jax import command_line, processes
with command_line.one_line_errors(), processes.joined(
    address, int(num), int(number), float(seconds), lost_timeout=5):
  print('joined')
"""


def join(address, *members, seconds=2):
  """Returns (exit codes, errors, seconds) of processes (num, number)."""
  commands = [
    ['-c', JOIN, address, num, number, seconds] for num, number in members
  ]
  begin = time.monotonic()
  with process_runner.started(commands) as running:
    codes, outs, errors = process_runner.finish(running, timeout=60)
  assert not any('joined' in out for out in outs)
  assert not any('Traceback' in error for error in errors)
  return codes, errors, time.monotonic() - begin


def test_process_0_is_not_there():
  address = process_runner.free_address()
  codes, (error,), seconds = join(address, (2, 1))
  assert codes == [1]
  assert seconds < 20  # most of it is the start of Python
  assert error == (
    f'Error: process 0 does not answer at {address} (Connection refused) after '
    '2 s. Check that all 2 processes were started with '
    f'--coordinator={address}, each with an id of its own, that process 0 runs '
    'there, and that no firewall is between.\n'
  )


def test_a_process_does_not_come():
  address = process_runner.free_address()
  codes, errors, _ = join(address, (3, 0), (3, 2), seconds=8)
  assert codes == [1, 1]
  for error in errors:
    assert error.startswith(
      "Error: Process 1 did not come to 'start' within 8 s. Check that all 3 "
      f'processes were started with --coordinator={address}'
    )


def test_an_id_is_given_twice():
  address = process_runner.free_address()
  codes, errors, seconds = join(address, (3, 0), (3, 1), (3, 1), seconds=60)
  assert codes == [1] * 3
  assert seconds < 30  # at once
  for error in errors:
    assert error == (
      f'Error: --process_id=1 was given twice, to a process on {HOST} and one '
      f'on {HOST}; give each its own id from 0 to 2.\n'
    )


def test_the_numbers_of_processes_differ():
  address = process_runner.free_address()
  codes, errors, seconds = join(address, (2, 0), (3, 1), seconds=60)
  assert codes == [1, 1]
  assert seconds < 30
  for error in errors:
    assert error == (
      f'Error: a process on {HOST} was started with --num_processes=3 '
      '--process_id=1, but process 0 with --num_processes=2; give all the same '
      'number, and each its own id from 0 to 1.\n'
    )


def test_the_port_is_taken():
  with socket.create_server(('127.0.0.1', 0)) as server:
    address = f'127.0.0.1:{server.getsockname()[1]}'
    codes, (error,), _ = join(address, (2, 0))
  assert codes == [1]
  assert error == (
    f'Error: --coordinator={address}: process 0 cannot listen there (Address '
    'already in use); give an address of the machine that process 0 runs on, '
    'and a port that is free.\n'
  )


@pytest.mark.parametrize(
  ('coordinator', 'num', 'number', 'message'),
  [
    ('h:1', None, None, '--num_processes and --process_id missing: give'),
    (None, 2, 1, '--coordinator missing: give --coordinator=HOST:PORT of'),
    ('h', 2, 1, '--coordinator=h is no HOST:PORT, such as 10.0.0.1:8476.'),
    ('h:99999', 2, 1, '--coordinator=h:99999 is no HOST:PORT'),
    ('h:1', 0, 0, '--num_processes=0 is not at least 1.'),
    ('h:1', 2, 2, '--process_id=2 is not one of 0 to 1, as --num_processes=2'),
    ('h:1', 2, -1, '--process_id=-1 is not one of 0 to 1'),
  ],
)
def test_flags_that_do_not_fit(coordinator, num, number, message):
  with pytest.raises(ValueError) as error:
    joining.is_given(coordinator, num, number)
  assert message in str(error.value)


def test_flags_that_fit():
  assert not joining.is_given(None, None, None)
  assert joining.is_given('[::1]:8476', 4, 3)


SLURM = dict(
  SLURM_JOB_ID='77',
  SLURM_STEP_NODELIST='localhost',
  SLURM_NTASKS='2',
  SLURM_PROCID='0',
  SLURM_LOCALID='0',
)


GOOGLE, NVIDIA, INTEL = '0x1ae0', '0x10de', '0x8086'  # as PCI numbers them


@pytest.fixture
def machine(monkeypatch, tmp_path):
  """Returns a function that makes this machine another one."""

  def change(variables=(), devices=(), makers=(INTEL, GOOGLE)):
    for name in list(os.environ):
      if name.startswith(('SLURM_', 'TPU_', 'MEGASCALE_')):
        monkeypatch.delenv(name)
    for name, value in dict(variables).items():
      monkeypatch.setenv(name, value)
    vendors = []
    for i, maker in enumerate(makers):
      vendors.append(tmp_path / f'vendor{i}')
      vendors[i].write_text(f'{maker}\n')

    def glob(pattern):
      if pattern == '/sys/bus/pci/devices/*/vendor':
        return list(map(str, vendors))
      return [d for d in devices if d.startswith(pattern[:8])]

    monkeypatch.setattr(joining.glob, 'glob', glob)

  return change


@pytest.mark.parametrize(
  ('variables', 'devices', 'expected'),
  [
    ({}, [], False),  # a laptop
    ({'TPU_SKIP_MDS_QUERY': '1'}, ['/dev/vfio/0'], False),  # another's device
    (SLURM, [], True),
    (SLURM | {'SLURM_NTASKS': '1'}, [], False),  # srun --pty bash
    ({'SLURM_JOB_ID': '77', 'SLURM_NTASKS': '2'}, [], False),  # salloc
    ({'TPU_WORKER_HOSTNAMES': 'a,b', 'TPU_WORKER_ID': '0'}, [], True),  # GKE
    ({'TPU_WORKER_HOSTNAMES': 'localhost'}, [], False),
    ({'MEGASCALE_NUM_SLICES': '2'}, [], True),
    ({}, ['/dev/accel0'], True),  # a TPU VM
    ({}, ['/dev/vfio/0'], True),
  ],
)
def test_a_cluster_is_known_by_its_environment(
  machine, variables, devices, expected
):
  machine(variables, devices)
  assert joining.in_cluster() == expected


def refuse(error):
  def initialize(**kwargs):
    raise error

  return initialize


@pytest.mark.parametrize('makers', [(), (INTEL, NVIDIA)])
def test_the_devices_of_others_hint_at_no_cluster(machine, monkeypatch, makers):
  machine({}, ['/dev/vfio/17'], makers)
  monkeypatch.setattr(jax.distributed, 'initialize', refuse(AssertionError()))
  with processes.joined():
    assert not processes.several()


@pytest.mark.parametrize(
  'error',
  [
    ValueError('coordinator_address should be defined.'),
    ConnectionError('metadata.google.internal is not known.'),
  ],
)
def test_tpus_without_a_cluster_train_alone(
  machine, monkeypatch, capsys, error
):
  monkeypatch.setattr(jax.distributed, 'initialize', refuse(error))
  machine({}, ['/dev/accel0'])
  with processes.joined():
    assert not processes.several()
  why = str(error).removesuffix('.')
  assert capsys.readouterr().err == (
    f'This machine has TPUs, but JAX finds no other processes ({why}): this '
    'one trains alone. If that is wrong, give --coordinator, --num_processes '
    'and --process_id.\n'
  )

  machine({'TPU_WORKER_HOSTNAMES': 'a,b'}, ['/dev/accel0'])
  with pytest.raises(ValueError, match='The environment is that of a TPU pod'):
    processes.joined().__enter__()


ALONE = """
import os
from vit_jax import processes
from vit_jax.processes import joining
os.environ.pop('TPU_SKIP_MDS_QUERY', None)  # JAX has set it: no TPU is here
joining._is_tpu_vm = lambda: True
with processes.joined():
  import jax
  print(processes.several(), jax.device_count())
"""


def test_jax_itself_goes_on_where_it_found_no_cluster():
  with process_runner.started([['-c', ALONE]], devices=3) as running:
    codes, outs, errors = process_runner.finish(running, timeout=60)
  assert codes == [0], errors
  assert outs[0] == 'False 3\n'
  assert 'this one trains alone' in errors[0]


SLURM_TASK = """
import os, sys
os.environ |= dict(
  SLURM_JOB_ID=sys.argv[1], SLURM_STEP_NODELIST='localhost', SLURM_NTASKS='2',
  SLURM_PROCID=sys.argv[2], SLURM_LOCALID=sys.argv[2])
from vit_jax import processes
with processes.joined(start_timeout=60):
  import jax
  print(jax.process_count(), processes.gather('x', jax.process_index()))
"""


def test_tasks_of_slurm_find_each_other():
  # JAX takes the port from the job's number.
  port = next(filter(is_free, range(61440, 65536)))
  commands = [['-c', SLURM_TASK, port - 61440, i] for i in range(2)]
  with process_runner.started(commands) as running:
    codes, outs, errors = process_runner.finish(running, timeout=100)
  assert codes == [0, 0], errors
  assert all(out.endswith('2 [0, 1]\n') for out in outs)


def is_free(port):
  with socket.socket() as probe:
    return probe.connect_ex(('127.0.0.1', port)) != 0
