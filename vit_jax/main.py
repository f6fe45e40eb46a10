"""Trains and evaluates what a config says.

  python -m vit_jax.main --config=configs/digits.py --workdir=runs/digits

Every field of the config is a flag, such as --config.optimizer.lr=1e-3;
configs/common.py lists them all. Run the same command again to continue a run
that was stopped.
"""

import os
import pathlib
import re
import sys
import traceback

from absl import app, flags, logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file(
  'config',
  None,
  'File of the config, such as configs/digits.py. Some take an argument: '
  'configs/vit_b_jft.py:B/32.',
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

  config_file = config_flags.get_config_filename(flags.FLAGS['config'])
  path = pathlib.Path(config_file.partition(':')[0])
  if not path.is_file():
    sys.exit(f'Error: --config={path}: no such file; try configs/digits.py.')
  workdir = (_WORKDIR.value or f'runs/{path.stem}').rstrip('/')
  try:
    train.train(_CONFIG.value, workdir)
  except checkpoint.Preempted as message:
    print(message)
    return
  except (ValueError, OSError, FloatingPointError) as error:
    if not _is_ours(error):
      raise
    sys.exit(f'Error: {error}')
  # As they work in this shell, whether the environment is active or not.
  python = os.path.relpath(sys.executable)
  print(
    f'Next:\n  {os.path.dirname(python)}/tensorboard --logdir={workdir}\n'
    f'  {python} -m vit_jax.main --config={config_file} --workdir={workdir}-2 '
    f'--config.optimizer.lr={_CONFIG.value.optimizer.lr / 2:g}'
  )


def _is_ours(error):
  """Returns whether this project raised the error.

  Our errors say what to do, and a stack would bury that. Where a library
  raised, the stack is what is needed.
  """
  here = os.path.dirname(os.path.abspath(__file__))
  return traceback.extract_tb(error.__traceback__)[-1].filename.startswith(here)


def _parse_flags(argv):
  """Parses as absl does, and says in one line what is wrong with a config."""
  try:
    return flags.FLAGS(argv)
  except flags.Error as error:
    # Of the stack of a recipe that fails to load, the last line is the error.
    lines = [line for line in str(error).splitlines() if line.strip()]
    sys.exit(
      f'Error: {lines[0]}\n{lines[-1].strip()}'
      if lines[1:]
      else f'Error: {lines[0]}'
    )
  except (SyntaxError, TypeError) as error:
    sys.exit(f'Error: --config is no recipe that can be loaded: {error}')
  except (AttributeError, KeyError) as error:
    text = error
    while isinstance(text, Exception):  # ml_collections nests them
      text = text.args[0]
    name = text.partition('\n')[0].strip("'")
    flag = next((a for a in argv if name in re.split('[.=]', a)), name)
    guess = re.search(r'Did you mean "(.+?)"', text)
    sys.exit(
      f'Error: {flag}: the config has no field {name!r}'
      + (f' (did you mean {guess[1]!r}?)' if guess else '')
      + '; configs/common.py lists all fields.'
    )


if __name__ == '__main__':
  flags.mark_flag_as_required('config')
  app.run(main, flags_parser=_parse_flags)
