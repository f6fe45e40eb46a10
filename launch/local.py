"""Starts several processes of one run on this machine.

  python launch/local.py --num_processes=2 --devices_per_process=4 -- \
      --config=configs/digits.py --workdir=runs/digits

What follows `--` goes to each `python -m vit_jax.main`. On a machine with GPUs
each process gets its share of them; with --devices_per_process they run on the
CPU, with so many fake devices each. SIGTERM and Ctrl-C are passed on, and save
the run; the processes do not outlive this one. The exit code is that of the
process that failed first; 75 if the run was stopped, and saved; else 0.
"""

import argparse
import ctypes
import functools
import glob
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time

_SAVED = 75  # the exit code of vit_jax.main when it was stopped
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def main(argv):
  """Returns the exit code."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--num_processes', type=int, required=True)
  parser.add_argument('--devices_per_process', type=int)
  parser.add_argument(
    '--patience',
    type=float,
    default=90,
    help='seconds that the others have to end after one has failed',
  )
  parser.add_argument(
    '--dry_run', action='store_true', help='print the commands, and end'
  )
  parser.add_argument('args', nargs='*', help='for vit_jax.main, after --')
  options = parser.parse_args(argv)
  num = options.num_processes
  if num < 1:
    parser.error(f'--num_processes={num} is not at least 1.')
  if (
    options.devices_per_process is not None and options.devices_per_process < 1
  ):
    parser.error(
      f'--devices_per_process={options.devices_per_process} is not at least 1.'
    )
  try:
    environments = [
      environment(i, num, options.devices_per_process) for i in range(num)
    ]
  except ValueError as error:
    parser.error(str(error))
  port = free_port()
  commands = [
    [
      sys.executable, '-m', 'vit_jax.main', f'--coordinator=127.0.0.1:{port}',
      f'--num_processes={num}', f'--process_id={i}', *options.args,
    ]
    for i in range(num)
  ]  # fmt: skip
  if options.dry_run:
    for added, command in zip(environments, commands, strict=True):
      words = [f'{name}={value}' for name, value in added.items()] + command
      print(shlex.join(words))
    return 0
  return run(commands, environments, options.patience)


def environment(number, num, devices_per_process=None):
  """Returns what process `number` of `num` has in its environment: dict.

  Raises:
    ValueError: if the GPUs do not divide.
  """
  if devices_per_process:
    flag = f'--xla_force_host_platform_device_count={devices_per_process}'
    flags = f'{os.environ.get("XLA_FLAGS", "")} {flag}'.strip()
    return {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': flags}
  visible = os.environ.get('CUDA_VISIBLE_DEVICES')
  if visible is None:
    gpus = [str(i) for i in range(len(glob.glob('/dev/nvidia[0-9]*')))]
  else:
    gpus = [gpu for gpu in visible.split(',') if gpu]
  if not gpus:
    return {}
  if len(gpus) % num:
    raise ValueError(
      f'--num_processes={num} does not divide the {len(gpus)} GPUs; choose '
      'some of them with CUDA_VISIBLE_DEVICES.'
    )
  share = len(gpus) // num
  mine = gpus[number * share : (number + 1) * share]
  return {'CUDA_VISIBLE_DEVICES': ','.join(mine)}


def run(commands, environments, patience):
  """Runs the commands together; returns the exit code.

  Args:
    commands: lists of words.
    environments: what each has in its environment besides ours.
    patience: seconds that the others have to end after one has failed.
  """

  def pass_on(number, frame):
    del frame
    for process in processes:
      process.send_signal(number)

  # A signal that comes now waits until all are there to get it.
  signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
  for number in _SIGNALS:
    signal.signal(number, pass_on)
  processes = [
    subprocess.Popen(
      command,
      env=os.environ | added,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      # Ctrl-C reaches them through us alone, once.
      start_new_session=True,
      # There are no threads yet, which this would be unsafe with.
      preexec_fn=functools.partial(in_child, os.getpid()),  # noqa: PLW1509
    )
    for command, added in zip(commands, environments, strict=True)
  ]
  signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
  readers = [
    threading.Thread(target=prefix_lines, args=(i, process.stdout))
    for i, process in enumerate(processes)
  ]
  for reader in readers:
    reader.start()
  code = wait(processes, patience)
  for reader in readers:
    reader.join()
  return code


def in_child(parent):
  """Prepares a process: it gets signals, and ends when `parent` is killed."""
  signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
  if sys.platform == 'linux':
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:  # it was killed before that
      os._exit(1)


def wait(processes, patience):
  """Returns when all have ended: the exit code of all together."""
  failed_at, code = None, 0
  while any(process.poll() is None for process in processes):
    code = first_failure(code, processes)
    if failed_at is None and code:
      failed_at = time.monotonic()
    if failed_at and time.monotonic() - failed_at > patience:
      for process in processes:
        process.kill()
    time.sleep(0.05)
  code = first_failure(code, processes)
  return code if code >= 0 else 128 - code  # ended by a signal


def first_failure(code, processes):
  """Returns `code` if that is a failure's, or else what is known now."""
  if code not in (0, _SAVED):
    return code
  codes = [process.poll() or 0 for process in processes]
  failures = [code for code in codes if code not in (0, _SAVED)]
  return failures[0] if failures else max(codes)


def prefix_lines(number, stream):
  """Prints the lines of process `number` as they come."""
  with stream:
    for line in stream:
      text = f'[{number}] '.encode() + line.rstrip(b'\n') + b'\n'
      sys.stdout.buffer.write(text)
      sys.stdout.buffer.flush()


def free_port():
  """Returns a port of 127.0.0.1 that nobody listens on."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    return free.getsockname()[1]


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
