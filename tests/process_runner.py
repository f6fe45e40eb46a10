"""Starts several real processes, as a launcher does, for the tests."""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent


def free_address():
  """Returns an address of this machine that nobody listens at."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    return f'127.0.0.1:{free.getsockname()[1]}'


@contextlib.contextmanager
def started(commands, devices=1, cwds=None):
  """Starts commands of Python together, and yields the processes.

  Args:
    commands: what follows `python`, a list for each process.
    devices: how many fake devices each has.
    cwds: the folder each runs in, by default the repository's root.
  """
  flag = f'--xla_force_host_platform_device_count={devices}'
  processes = [
    subprocess.Popen(
      [sys.executable, *map(str, command)],
      cwd=cwd,
      env=os.environ | {'XLA_FLAGS': flag, 'PYTHONPATH': str(cwd)},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for command, cwd in zip(
      commands, cwds or [ROOT] * len(commands), strict=True
    )
  ]
  try:
    yield processes
  finally:
    for process in processes:
      process.kill()
      process.communicate()


def finish(processes, timeout=240):
  """Returns (exit codes, standard outputs, standard errors) when all end."""
  texts = [process.communicate(timeout=timeout) for process in processes]
  return [process.returncode for process in processes], *zip(
    *texts, strict=True
  )


def training(num, *args):
  """Returns the commands of vit_jax.main in `num` processes."""
  if num == 1:
    return [['-m', 'vit_jax.main', *args]]
  address = free_address()
  return [
    [
      '-m', 'vit_jax.main', *args, f'--coordinator={address}',
      f'--num_processes={num}', f'--process_id={i}',
    ]
    for i in range(num)
  ]  # fmt: skip


def last_line(text):
  return text.strip().splitlines()[-1]
