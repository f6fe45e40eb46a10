"""Trains and evaluates what a config says.

  python -m vit_jax.main --config=configs/digits.py --workdir=runs/digits

Every field of the config is a flag, such as --config.optimizer.lr=1e-3;
configs/common.py lists them all. Run the same command again to continue a run
that was stopped.

Several processes train as one if each is started with the same command, but for
its id; launch/local.py does so on one machine. On TPU pods, under Slurm and on
GKE they find each other by themselves.

  ... --coordinator=HOST:PORT --num_processes=2 --process_id=0  (and 1)
"""

import os
import pathlib
import sys

from absl import app, flags
from ml_collections import config_flags

from vit_jax import command_line

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, command_line.CONFIG_HELP
)
_WORKDIR = flags.DEFINE_string(
  'workdir',
  None,
  'Folder of the run: checkpoints, metrics, TensorBoard. By default '
  'runs/NAME-OF-THE-CONFIG.',
)
_PRINT_LAYOUT = flags.DEFINE_bool(
  'print_layout',
  False,
  'Print where each array of the state lives and what a step takes, and end.',
)
_COORDINATOR = flags.DEFINE_string(
  'coordinator', None, 'HOST:PORT of process 0, of several processes.'
)
_NUM_PROCESSES = flags.DEFINE_integer(
  'num_processes', None, 'How many processes there are.'
)
_PROCESS_ID = flags.DEFINE_integer(
  'process_id', None, 'Which of them this one is, from 0.'
)
_START_TIMEOUT = flags.DEFINE_float(
  'start_timeout', 300, 'Seconds for all processes to come.'
)
_LOST_TIMEOUT = flags.DEFINE_float(
  'lost_timeout', 60, 'Seconds of silence after which a process is lost.'
)


def main(argv):
  """Runs `train.train`; ends with what to do next, or what was wrong."""
  command_line.only_flags(argv)
  command_line.be_brief()
  # Flags are read by now: no use waiting for JAX to learn of a typo.
  from vit_jax import processes

  config_file = command_line.config_file()
  name = pathlib.Path(config_file.partition(':')[0]).stem
  workdir = (_WORKDIR.value or f'runs/{name}').rstrip('/')
  with (
    command_line.one_line_errors(),
    processes.joined(
      _COORDINATOR.value,
      _NUM_PROCESSES.value,
      _PROCESS_ID.value,
      _START_TIMEOUT.value,
      _LOST_TIMEOUT.value,
    ) as ending,
  ):
    ending.status = _train(config_file, workdir)
  return ending.status


def _train(config_file, workdir):
  import jax

  from vit_jax.processes import agreement

  with command_line.one_line_errors():
    agreement.check_same(agreement.facts(_CONFIG.value.to_dict(), workdir))
  from vit_jax import checkpoint, train

  if _PRINT_LAYOUT.value:
    with command_line.one_line_errors():
      text = train.dry_run(_CONFIG.value)
    print(text if jax.process_index() == 0 else '', end='')
    return 0
  try:
    with command_line.one_line_errors():
      train.train(_CONFIG.value, workdir)
  except checkpoint.Preempted as message:
    if jax.process_index() == 0:
      print(message)
    # EX_TEMPFAIL of sysexits.h: launchers start the same command again.
    return 75
  if jax.process_index():
    return 0
  # As they work in this shell, whether the environment is active or not.
  python = os.path.relpath(sys.executable)
  print(
    f'Next:\n  {os.path.dirname(python)}/tensorboard --logdir={workdir}\n'
    f'  {python} -m vit_jax.main --config={config_file} --workdir={workdir}-2 '
    f'--config.optimizer.lr={_CONFIG.value.optimizer.lr / 2:g}'
  )
  return 0


if __name__ == '__main__':
  flags.mark_flag_as_required('config')
  app.run(main, flags_parser=command_line.parse_flags)
