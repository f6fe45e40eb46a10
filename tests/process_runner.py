"""Starts real processes, as a user or a launcher does, for the tests."""

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent
# With these, JAX describes TPUs to a machine that has none.
FOR_TPUS = {
  'JAX_PLATFORMS': 'cpu',
  'TPU_SKIP_MDS_QUERY': '1',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}


def free_address():
  """Returns an address of this machine that nobody listens at."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    return f'127.0.0.1:{free.getsockname()[1]}'


def tiny_run(steps):
  """Returns the flags of a run of `vit_jax.main` whose steps take no time."""
  return [
    '--config=configs/digits.py',
    '--config.total_epochs=None',
    f'--config.total_steps={steps}',
    '--config.model.hidden_size=16',
    '--config.model.mlp_dim=32',
    '--config.model.depth=2',
    '--config.model.dropout=0.1',
    '--config.step.ema_decay=0.9',
    '--config.optimizer.warmup_steps=10',
  ]


def environment(devices=None, **variables):
  """Returns the environment of a user, not that of the tests.

  Args:
    devices: number of fake devices, by default those that there are.
    **variables: to set; None unsets one.
  """
  flag = f'--xla_force_host_platform_device_count={devices}'
  variables['XLA_FLAGS'] = flag if devices else None
  env = os.environ | variables
  return {name: value for name, value in env.items() if value is not None}


def run(*args, timeout=300, **variables):
  """Returns the `subprocess.CompletedProcess` of `python ARGS...`."""
  return subprocess.run(
    [sys.executable, *map(str, args)],
    cwd=ROOT,
    env=environment(**variables),
    capture_output=True,
    text=True,
    check=False,
    timeout=timeout,
  )


@contextlib.contextmanager
def started(commands, devices=None, cwds=None):
  """Starts commands of Python together, and yields the processes.

  Args:
    commands: what follows `python`, a list for each process.
    devices: how many fake devices each has, by default those that there are.
    cwds: the folder each runs in, by default the repository's root.
  """
  processes = [
    subprocess.Popen(
      [sys.executable, *map(str, command)],
      cwd=cwd,
      env=environment(devices, PYTHONPATH=str(cwd)),
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


@contextlib.contextmanager
def training(*args):
  """Starts `vit_jax.main` alone, and yields the process."""
  with started([['-m', 'vit_jax.main', *args]]) as (process,):
    yield process


def commands(num, *args):
  """Returns the commands of `vit_jax.main` in `num` processes."""
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


def finish(processes, timeout=240):
  """Returns (exit codes, standard outputs, standard errors) when all end."""
  texts = [process.communicate(timeout=timeout) for process in processes]
  return [process.returncode for process in processes], *zip(
    *texts, strict=True
  )


def results(processes, timeout=240):
  """Returns the last line, as JSON, of each; asserts that none has failed."""
  codes, outs, errors = finish(processes, timeout)
  assert not any(codes), errors
  return [json.loads(last_line(out)) for out in outs]


def last_line(text):
  return text.strip().splitlines()[-1]
