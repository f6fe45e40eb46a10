"""How the processes of a run find each other."""

import contextlib
import functools
import glob
import json
import os
import pathlib
import socket
import sys
import threading

import jax
import numpy as np
from jax.experimental import multihost_utils

from vit_jax.processes import channel, hub

_GOOGLE = '0x1ae0'  # the maker of TPUs, in the numbers of PCI


def is_given(coordinator, num_processes, process_id):
  """Returns whether the three flags are given; raises ValueError if badly."""
  flags = dict(
    coordinator=coordinator, num_processes=num_processes, process_id=process_id
  )
  missing = [f'--{name}' for name, value in flags.items() if value is None]
  if len(missing) == 3:
    return False
  if missing:
    raise ValueError(
      f'{" and ".join(missing)} missing: give --coordinator=HOST:PORT of '
      'process 0, --num_processes and --process_id, or none of them.'
    )
  host, _, port = coordinator.rpartition(':')
  if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
    raise ValueError(
      f'--coordinator={coordinator} is no HOST:PORT, such as 10.0.0.1:8476.'
    )
  if num_processes < 1:
    raise ValueError(f'--num_processes={num_processes} is not at least 1.')
  if not 0 <= process_id < num_processes:
    raise ValueError(
      f'--process_id={process_id} is not one of 0 to {num_processes - 1}, as '
      f'--num_processes={num_processes} has them.'
    )
  return True


def in_cluster():
  """Returns whether other processes may be there, that JAX would find.

  JAX would ask a metadata server to know: that is left to machines with TPUs.
  """
  return _says_so() or _is_tpu_vm()


def _says_so():
  """Returns whether the environment says that there are others."""
  slurm = (
    'SLURM_JOB_ID', 'SLURM_STEP_NODELIST', 'SLURM_PROCID', 'SLURM_LOCALID',
  )  # fmt: skip
  if all(name in os.environ for name in slurm):
    return int(os.environ.get('SLURM_NTASKS', '1')) > 1
  workers = os.environ.get(
    'TPU_PROCESS_ADDRESSES', os.environ.get('TPU_WORKER_HOSTNAMES', '')
  )
  return ',' in workers or int(os.environ.get('MEGASCALE_NUM_SLICES', '1')) > 1


def _is_tpu_vm():
  # JAX sets the variable where it finds no TPU.
  if 'TPU_SKIP_MDS_QUERY' in os.environ:
    return False
  if not glob.glob('/dev/accel[0-9]*') + glob.glob('/dev/vfio/[0-9]*'):
    return False
  # Such nodes are those of any maker: a GPU that a virtual machine has, too.
  for path in glob.glob('/sys/bus/pci/devices/*/vendor'):
    with contextlib.suppress(OSError):
      if pathlib.Path(path).read_text().strip() == _GOOGLE:
        return True
  return False


def join(coordinator, num, number, *, start_timeout, lost_timeout, on_stop):
  """Joins processes that were told where process 0 is.

  The roll is called first, on the line: JAX's own start would end in an abort
  if a process is missing, or take any numbers that happen to fit.

  Args:
    coordinator: 'HOST:PORT'.
    num: number of processes.
    number: which this is.
    start_timeout: see `processes.joined`.
    lost_timeout: likewise.
    on_stop: see `channel.Member`; told also whether this is process 0.

  Returns:
    (Member, Hub or None), or None if the process is alone.
  """
  if num == 1:
    return None
  host, _, port = coordinator.rpartition(':')
  host, center, jax_port = host.strip('[]'), None, None
  if number == 0:
    try:
      server = _listen(host, int(port))
    except OSError as error:
      why = os.strerror(error.errno) if (error.errno or 0) > 0 else error
      raise OSError(
        f'--coordinator={coordinator}: process 0 cannot listen there '
        f'({why}); give an address of the machine that process 0 runs on, and '
        'a port that is free.'
      ) from None
    center = hub.Hub(server, num, lost_timeout)
    jax_port = _free_port(host)
  with _advice(
    f'Check that all {num} processes were started with '
    f'--coordinator={coordinator}, each with an id of its own, that process 0 '
    'runs there, and that no firewall is between.'
  ):
    member, port = _call_the_roll(
      center, [(host, int(port))], number, num, jax_port, start_timeout,
      lost_timeout, on_stop,
    )  # fmt: skip
  address = f'{coordinator.rpartition(":")[0]}:{port}'
  with ends_after(
    start_timeout,
    f'JAX did not start at {address} within {start_timeout:g} s; this port of '
    'process 0 was free, and has to be open to the others.',
  ):
    _initialize(
      lost_timeout,
      coordinator_address=address,
      num_processes=num,
      process_id=number,
      cluster_detection_method='deactivate',
      initialization_timeout=int(start_timeout) + 60,
      coordinator_bind_address=f'{host}:{port}' if _is_local(host) else None,
    )
  return member, center


def join_cluster(*, start_timeout, lost_timeout, on_stop):
  """Joins processes that JAX finds; see `join`.

  A machine with TPUs where JAX finds none, and whose environment says nothing
  of others, is taken for one that is alone.
  """
  with ends_after(
    start_timeout,
    f'The processes of this cluster did not find each other within '
    f'{start_timeout:g} s. Check that the program was started on all machines.',
  ):
    try:
      _initialize(lost_timeout, initialization_timeout=int(start_timeout) + 60)
    except (ValueError, OSError) as error:  # OSError: no metadata server
      if not _says_so():
        print(
          'This machine has TPUs, but JAX finds no other processes '
          f'({_first_line(error)}): this one trains alone. If that is wrong, '
          'give --coordinator, --num_processes and --process_id.',
          file=sys.stderr,
        )
        return None
      raise ValueError(
        'The environment is that of a TPU pod, Slurm or GKE, but JAX does not '
        f'find its processes ({error}); give --coordinator, --num_processes '
        'and --process_id.'
      ) from None
    num, number = jax.process_count(), jax.process_index()
    if num == 1:
      return None
    owners = [device.process_index for device in jax.devices()]
    counts = [owners.count(i) for i in range(num)]
    if len(set(counts)) > 1:
      raise ValueError(
        f'Processes 0 to {num - 1} have {", ".join(map(str, counts))} devices; '
        'give each the same number.'
      )
    center, port, addresses = None, None, []
    if number == 0:
      server = _listen('', 0)
      port = server.getsockname()[1]
      center = hub.Hub(server, num, lost_timeout)
      addresses = [(host, port) for host in _own_hosts()]
    text = np.zeros(1024, np.uint8)
    encoded = np.frombuffer(json.dumps(addresses).encode(), np.uint8)
    text[: encoded.size] = encoded
    text = multihost_utils.broadcast_one_to_all(text)
    addresses = json.loads(text.tobytes().rstrip(b'\0'))
  with _advice('Check that no firewall is between the machines of this job.'):
    member, _ = _call_the_roll(
      center, [tuple(a) for a in addresses], number, num, port, start_timeout,
      lost_timeout, on_stop,
    )  # fmt: skip
  return member, center


def _call_the_roll(
  center, addresses, number, num, port, start_timeout, lost_timeout, on_stop
):
  """Returns this process's end of the line, and the `port` of process 0."""
  host = socket.gethostname()
  member = channel.Member(
    addresses, number, num, host, start_timeout, lost_timeout,
    functools.partial(on_stop, center is not None),
  )  # fmt: skip
  mine = dict(host=host, port=port)
  return member, member.gather('start', mine, start_timeout)[0]['port']


def _initialize(lost_timeout, **where):
  # JAX ends a process by an abort in C++: ours comes first.
  jax.distributed.initialize(
    heartbeat_timeout_seconds=max(100, int(2 * lost_timeout)),
    shutdown_timeout_seconds=30,
    **where,
  )


@contextlib.contextmanager
def ends_after(seconds, text, code=1):
  """Ends the process if what is in the context takes longer: C++ may wait."""

  def end():
    if text:
      os.write(2, f'Error: {text}\n'.encode())
    os._exit(code)

  timer = threading.Timer(seconds, end)
  timer.daemon = True
  timer.start()
  try:
    yield
  finally:
    timer.cancel()


def _first_line(error):
  return ' '.join(str(error).split())[:200].rstrip('.')


@contextlib.contextmanager
def _advice(text):
  """Adds to an error of the line what to check."""
  try:
    yield
  except (ConnectionError, TimeoutError) as error:
    raise OSError(f'{error} {text}') from None


def _is_local(host):
  return host == 'localhost' or host.startswith('127.')


def _listen(host, port):
  """Returns a socket that listens on all of this machine's addresses.

  On its own one only, if that is what was given: such a run is nobody else's.
  """
  if _is_local(host):
    return socket.create_server((host, port), backlog=1024)
  if socket.has_dualstack_ipv6():
    return socket.create_server(
      ('', port), family=socket.AF_INET6, backlog=1024, dualstack_ipv6=True
    )
  return socket.create_server(('', port), backlog=1024)


def _free_port(host):
  with _listen(host, 0) as server:
    return server.getsockname()[1]


def _own_hosts():
  """Returns names and addresses under which others may know this machine."""
  hosts = []
  with (
    contextlib.suppress(OSError),
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe,
  ):
    # No packet is sent: this asks the system for its address towards others.
    probe.connect(('10.255.255.255', 1))
    hosts.append(probe.getsockname()[0])
  return [*hosts, socket.gethostname()]
