"""Checks the machine a run is to go on, and says what to do.

  python -m vit_jax.doctor
  python -m vit_jax.doctor --require=tpu --num_devices=8 --workdir=gs://b/run

One line a check: ok, warn (a run may go on), FAIL (it cannot, or not as it
should), and what to do. Nothing is changed but for one small file in --workdir,
which is written, read and deleted. Without --workdir that is runs/, where runs
go by default. It ends even if the devices or the object store do not answer.

Exit code: 0 if nothing FAILed, else 1.
"""

import argparse
import json
import pathlib
import sys
import textwrap

from vit_jax.doctor import devices, installation, machine, workdir
from vit_jax.doctor.finding import FAIL, WARN
from vit_jax.doctor.probe import Probe

# Seconds. A store that is not reached, `storage` gives up after 95, and it may
# look for credentials for 15; one that is silent would take it four minutes.
_STORE_TIMEOUT = 150


def main(argv=None):
  """Prints the report; returns the exit code."""
  args = _parse(argv)
  if args.json:
    _check_json(args.json)
  findings = []
  for finding in examine(
    args.require, args.num_devices, args.workdir, args.timeout
  ):
    print(_line(finding), flush=True)
    findings.append(finding)
  if args.json:
    with open(args.json, 'w', encoding='utf-8') as file:
      json.dump([finding._asdict() for finding in findings], file, indent=2)
  failed, warned = (
    sum(finding.status == status for finding in findings)
    for status in (FAIL, WARN)
  )
  print(f'{failed} FAIL, {warned} warn, {len(findings)} lines in all.')
  return 1 if failed else 0


def examine(require='', num_devices=None, folder='', timeout=120):
  """Yields Findings, each when it is known.

  Args:
    require: 'tpu', 'gpu', 'cpu': where the run has to be; '' anywhere.
    num_devices: number of devices there should be, or None.
    folder: the folder of the run; '' is the one of runs by default.
    timeout: seconds that the devices may take to start.
  """
  folder = folder or workdir.DEFAULT
  held = machine.check_tpu(require)  # before our own probe holds it
  nvidia = machine.check_nvidia(require)
  # What takes seconds begins first.
  # It gives up on other machines before it is ended, and then can say so.
  device_probe = Probe('vit_jax.doctor.device_probe', str(timeout / 2))
  folder_probe = Probe('vit_jax.doctor.workdir_probe', folder)
  yield from installation.check(remote='://' in folder)
  yield from held
  yield from nvidia
  result, log = device_probe.result(timeout)
  yield from devices.judge(result, log, require, num_devices, timeout)
  accelerated = result and result.get('backend') in ('tpu', 'gpu')
  yield machine.check_cores(result['local'] if accelerated else 0)
  yield machine.check_memory()
  yield machine.check_open_files()
  result, _ = folder_probe.result(_STORE_TIMEOUT)
  yield workdir.judge(folder, result, _STORE_TIMEOUT)
  if not folder.startswith('gs://'):
    yield workdir.STORE_UNCHECKED


def _parse(argv):
  parser = argparse.ArgumentParser(
    prog='python -m vit_jax.doctor',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument(
    '--require',
    choices=sorted(devices.PLATFORMS),
    default='',
    help='FAIL unless JAX runs there. Without it, JAX takes what there is, '
    'and runs on the CPU if an accelerator does not start.',
  )
  parser.add_argument(
    '--num_devices',
    type=int,
    help='FAIL unless JAX sees so many; of a TPU slice, all its devices.',
  )
  parser.add_argument(
    '--workdir',
    default='',
    help='The folder of the run, such as gs://b/run. By default runs/.',
  )
  parser.add_argument(
    '--timeout',
    type=float,
    default=120,
    help='Seconds that the devices may take to start (120).',
  )
  parser.add_argument(
    '--json', default='', help='A file for the report, as a list of objects.'
  )
  return parser.parse_args(argv)


def _check_json(name):
  """Ends the program if --json cannot be written: not after the checks."""
  path = pathlib.Path(name)
  try:
    is_new = not path.exists()
    path.open('a').close()
  except OSError as error:
    sys.exit(
      f'Error: --json={name}: {error.strerror}; give a file in a folder that '
      'exists and can be written.'
    )
  if is_new:
    path.unlink(missing_ok=True)


def _line(finding):
  head = f'{finding.status:<5} {finding.name:<12}'
  indent = ' ' * (len(head) + 1)
  lines = textwrap.wrap(
    f'{head} {finding.text}',
    width=100,
    subsequent_indent=indent,
    break_long_words=False,
    break_on_hyphens=False,
  )
  if finding.remedy:
    lines += textwrap.wrap(
      f'-> {finding.remedy}',
      width=100,
      initial_indent=indent,
      subsequent_indent=indent + '   ',
      break_long_words=False,
      break_on_hyphens=False,
    )
  return '\n'.join(lines)


if __name__ == '__main__':
  sys.exit(main())
