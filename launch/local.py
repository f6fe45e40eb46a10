"""Starts several processes of one run on this machine.

  python launch/local.py --num_processes=2 --devices_per_process=4 -- \
      --config=configs/digits.py --workdir=runs/digits

What follows `--` goes to each `python -m vit_jax.main`. On a machine with GPUs
each process gets its share of them; with --devices_per_process they run on the
CPU, with so many fake devices each. SIGTERM and Ctrl-C are passed on, and save
the run. The exit code is that of the process that failed first, or 0.
"""

import argparse
import glob
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time


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
  processes = [
    subprocess.Popen(
      command,
      env=os.environ | added,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      # Ctrl-C reaches them through us alone, once.
      start_new_session=True,
    )
    for command, added in zip(commands, environments, strict=True)
  ]

  def pass_on(number, frame):
    del frame
    for process in processes:
      process.send_signal(number)

  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, pass_on)
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


def wait(processes, patience):
  """Returns when all have ended: 0, or the exit code of the first failure."""
  failed_at = code = None
  while any(process.poll() is None for process in processes):
    codes = [process.poll() for process in processes]
    if failed_at is None and any(codes):
      failed_at = time.monotonic()
      code = next(filter(None, codes))
    if failed_at and time.monotonic() - failed_at > patience:
      for process in processes:
        process.kill()
    time.sleep(0.05)
  code = code or next(filter(None, (p.returncode for p in processes)), 0)
  return code if code >= 0 else 128 - code  # ended by a signal


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
