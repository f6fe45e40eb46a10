"""Trains and evaluates what a config says.

  python -m vit_jax.main --config=configs/digits.py --workdir=runs/digits

Every field of the config is a flag, such as --config.optimizer.lr=1e-3;
configs/common.py lists them all. Run the same command again to continue a run
that was stopped.
"""

import os
import pathlib
import sys

from absl import app, flags, logging
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


def main(argv):
  """Runs `train.train`; ends with what to do next, or what was wrong."""
  if len(argv) > 1:
    raise app.UsageError(f'{argv[1]!r} is not a flag; flags start with --.')
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.WARNING)
  # Flags are read by now: no use waiting for JAX to learn of a typo.
  from vit_jax import checkpoint, train

  config_file = command_line.config_file()
  name = pathlib.Path(config_file.partition(':')[0]).stem
  workdir = (_WORKDIR.value or f'runs/{name}').rstrip('/')
  try:
    with command_line.one_line_errors():
      train.train(_CONFIG.value, workdir)
  except checkpoint.Preempted as message:
    print(message)
    return
  # As they work in this shell, whether the environment is active or not.
  python = os.path.relpath(sys.executable)
  print(
    f'Next:\n  {os.path.dirname(python)}/tensorboard --logdir={workdir}\n'
    f'  {python} -m vit_jax.main --config={config_file} --workdir={workdir}-2 '
    f'--config.optimizer.lr={_CONFIG.value.optimizer.lr / 2:g}'
  )


if __name__ == '__main__':
  flags.mark_flag_as_required('config')
  app.run(main, flags_parser=command_line.parse_flags)
