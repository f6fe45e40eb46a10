"""Trains and evaluates what a config says.

  python -m vit_jax.main --config=configs/digits.py --workdir=runs/digits

Every field of the config is a flag: --config.optimizer.lr=1e-3. Run the same
command again to continue a run that was stopped.
"""

import os
import pathlib
import sys
import traceback

from absl import app, flags
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file(
  'config',
  None,
  'File of the config, such as configs/digits.py; some take an argument: '
  'configs/vit_b_jft.py:B/32.',
)
_WORKDIR = flags.DEFINE_string(
  'workdir',
  None,
  'Folder of the run: checkpoints, metrics, TensorBoard. By default '
  'runs/NAME-OF-THE-CONFIG.',
)


def main(argv):
  from vit_jax import checkpoint, train

  if len(argv) > 1:
    raise app.UsageError(f'{argv[1]!r} is no flag; flags start with --.')
  path = pathlib.Path(config_flags.get_config_filename(flags.FLAGS['config']))
  workdir = _WORKDIR.value or os.path.join('runs', path.stem)
  try:
    train.train(_CONFIG.value, workdir)
  except checkpoint.Preempted as message:
    print(message)
    return
  except (ValueError, OSError, FloatingPointError) as error:
    sys.exit(_explain(error))
  print(
    'Next:\n'
    f'  tensorboard --logdir={workdir}\n'
    f'  python -m vit_jax.main --config={path} --workdir={workdir}-lr '
    f'--config.optimizer.lr={_CONFIG.value.optimizer.lr / 2:g}'
  )


def _explain(error):
  """Returns the message of an error of this project; raises any other.

  Our errors say what to do, and a stack would bury that. Where another library
  raised, the stack is what is needed.
  """
  frames = traceback.extract_tb(error.__traceback__)
  here = os.path.dirname(os.path.abspath(__file__))
  if not frames[-1].filename.startswith(here):
    raise error
  return f'Error: {error}'


def run():
  """Parses the flags and runs; an unknown config field ends in one line."""
  try:
    app.run(main, flags_parser=_parse_flags)
  except (AttributeError, KeyError, ValueError) as error:
    raise error
