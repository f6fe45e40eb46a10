"""What the commands share: every mistake of a user ends in one line."""

import contextlib
import os
import pathlib
import re
import sys
import traceback

from absl import app, flags, logging
from ml_collections import config_flags

CONFIG_HELP = (
  'File of the config, such as configs/digits.py. Some take an argument: '
  'configs/vit_b_jft.py:B/32.'
)


def parse_flags(argv):
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


def only_flags(argv):
  """Raises `app.UsageError` if there are words that are no flags."""
  if len(argv) > 1:
    raise app.UsageError(f'{argv[1]!r} is not a flag; flags start with --.')


def be_brief(level=logging.WARNING):
  """Logs nothing below an absl level, unless --verbosity was given."""
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(level)


def print_any_name():
  """Lets names of files be printed that are no text: they may be any bytes."""
  for stream in (sys.stdout, sys.stderr):
    stream.reconfigure(errors='backslashreplace')


def config_file():
  """Returns --config as it was given; exits if there is no such file."""
  name = config_flags.get_config_filename(flags.FLAGS['config'])
  path = name.partition(':')[0]
  if not pathlib.Path(path).is_file():
    sys.exit(f'Error: --config={path}: no such file; try configs/digits.py.')
  return name


@contextlib.contextmanager
def one_line_errors():
  """Makes errors that this project raised end the program in one line."""
  try:
    yield
  except (ValueError, OSError, FloatingPointError, MemoryError) as error:
    if not _is_ours(error):
      raise
    sys.exit(f'Error: {error}')


def _is_ours(error):
  """Returns whether this project raised the error.

  Our errors say what to do, and a stack would bury that. Where a library
  raised, the stack is what is needed.
  """
  here = os.path.dirname(os.path.abspath(__file__))
  return traceback.extract_tb(error.__traceback__)[-1].filename.startswith(here)
