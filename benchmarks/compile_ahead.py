"""How long does it take to compile a train step for TPUs that are not here?

  python -m benchmarks.compile_ahead --config=configs/vit_h14_jft.py \
    --topology=v3:4x8

Measured are the parts of `python -m vit_jax.compile_ahead`: to build the step
(`build_seconds`), to trace and compile it (`compile_seconds`, what should stay
under 180 for ViT-H/14 on two cores), and to read and count what came out
(`read_seconds`). What it says is in the line, too.
"""

import json
import os
import time

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from vit_jax import command_line
from vit_jax.compile_ahead import forecast

_CONFIG = config_flags.DEFINE_config_file(
  'config', 'configs/vit_h14_jft.py', command_line.CONFIG_HELP
)
_TOPOLOGY = flags.DEFINE_string('topology', 'v3:4x8', 'TPUs to compile for.')


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'{argv[1]!r} is not a flag; flags start with --.')
  logging.set_verbosity(logging.WARNING)
  jax.config.update('jax_platforms', 'cpu')
  start = time.perf_counter()
  ahead = forecast.Forecast(_CONFIG.value, _TOPOLOGY.value)
  built = time.perf_counter()
  result = ahead.train_step()
  end = time.perf_counter()
  measured = {
    'build_seconds': round(built - start, 1),
    'compile_seconds': result.pop('compile_seconds'),
    'read_seconds': None,
    'cpu_count': os.cpu_count(),
    'load': round(os.getloadavg()[0], 1),
  }
  measured['read_seconds'] = round(end - built - measured['compile_seconds'], 1)
  print(json.dumps(measured | result))


if __name__ == '__main__':
  app.run(main)
