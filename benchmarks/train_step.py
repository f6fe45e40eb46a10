"""How fast is a compiled train step, and what does the loop around it add?

  python -m benchmarks.train_step --variant=B/16 --image_size=224

The step is built as `train.train` builds it. Then `train.train` itself runs on
a data set in memory; windows of its steps alternate with windows of the bare
step: the compiled function, called again and again on one batch that is on the
device already. Windows start and end with an idle device. What the loop adds is
all that it does around a step: get a batch, copy it to the device, ask whether
a checkpoint or an evaluation is due (none is), and fetch, check and write
metrics every `--log_every` steps, by default 20 times as often as
configs/common.py. Each loop window is divided by the mean of the bare ones
before and after it, so that what else the machine does falls on both. Reported
are the median minus 1, and the quartiles:

  loop_overhead             batches made beforehand: the loop's own cost.
  loop_overhead_with_input  batches of uint8 arrays from `pipeline.TrainData`.
                            Where the device is the CPU, the input takes cores
                            from the step, so this is the input's cost too.

  loop_cost                 a turn of the loop around a step of no work, as a
                            share of the real step: what the noise of the two
                            above hides.

Model FLOPs are 3 times the forward pass's, 2 for a multiply-add, counted by
`vit_jax.flops`; what `--remat` computes again does not count.
"""

import contextlib
import itertools
import json
import os
import statistics
import tempfile
import time
from unittest import mock

import jax
import numpy as np
from absl import app, flags, logging

from configs import common
from vit_jax import chips, experiment, flops, sharding, train
from vit_jax.data import datasets, described, pipeline, sources
from vit_jax.models import layers

_VARIANT = flags.DEFINE_string('variant', 'Ti/16', 'Model, such as B/16.')
_IMAGE_SIZE = flags.DEFINE_integer('image_size', 64, 'Side, in pixels.')
_BATCH_SIZE = flags.DEFINE_integer('batch_size', 8, 'Over all devices.')
_DTYPE = flags.DEFINE_enum(
  'dtype', 'float32', list(layers.DTYPES), 'Of the matrix products.'
)
_UNROLL = flags.DEFINE_integer(
  'unroll', 1, 'Blocks in one turn of the scan over depth.'
)
_REMAT = flags.DEFINE_enum(
  'remat', 'none', list(layers.REMAT_POLICIES), 'What is computed again.'
)
_PARAMS = flags.DEFINE_enum(
  'params', 'replicate', list(sharding.LAYOUTS), 'Layout of the parameters.'
)
_STEPS = flags.DEFINE_integer('steps', 5, 'Steps in one window.')
_REPEATS = flags.DEFINE_integer(
  'repeats',
  6,
  'Windows of each kind. 0 leaves out the loop, which needs TensorFlow, and '
  'memory for a second state.',
)
_LOG_EVERY = flags.DEFINE_integer(
  'log_every', 5, 'Steps between two lines of metrics; it divides --steps.'
)


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'{argv[1]!r} is not a flag; flags start with --.')
  if _STEPS.value % _LOG_EVERY.value:
    raise app.UsageError('--log_every does not divide --steps.')
  logging.set_verbosity(logging.WARNING)
  config = _config()
  mesh = sharding.make_mesh(**config.mesh)
  with sharding.activations(mesh):
    result, time_steps = measure_step(config, mesh)
  if _REPEATS.value:
    result |= measure_loop(config, mesh, time_steps)
    seconds = measure_loop_cost(config, mesh)
    result['loop_cost_milliseconds'] = round(seconds * 1e3, 3)
    share = seconds * 1e3 / result['step_milliseconds']
    result['loop_cost'] = round(share, 5)
  print(json.dumps(result))


def _config():
  """Returns the config of the run that is measured."""
  config = common.base()
  config.total_steps = 100_000  # the measured run stops long before
  config.log_every = _LOG_EVERY.value
  config.model.num_classes = 1000
  config.model.variant = _VARIANT.value
  config.model.dtype = _DTYPE.value
  config.model.unroll = _UNROLL.value
  config.model.remat = _REMAT.value
  config.train.dataset = 'in_memory'
  config.train.batch_size = _BATCH_SIZE.value
  config.train.preprocess = f'inception_crop({_IMAGE_SIZE.value})|flip_lr'
  config.optimizer.weight_decay = 0.1
  config.optimizer.clip_norm = 1.0
  config.sharding.params = _PARAMS.value
  config.checkpoint.every = config.total_steps
  config.checkpoint.keep = 1
  return config


def examples(count):
  """Returns random uint8 images and their labels."""
  rng = np.random.default_rng(0)
  shape = (count, _IMAGE_SIZE.value, _IMAGE_SIZE.value, 3)
  return {
    'image': rng.integers(0, 256, shape, np.uint8),
    'label': rng.integers(0, 1000, count, np.int32),
  }


def measure_step(config, mesh):
  """Returns the step's results, and a function that times so many steps."""
  rng = jax.random.key(config.seed)
  image_shape = (_IMAGE_SIZE.value, _IMAGE_SIZE.value, 3)
  data = described.Description(1000, 1000, None, image_shape, False)
  parts = experiment.build(config, mesh, data)
  state = jax.jit(parts.init, out_shardings=parts.layout)(rng)
  rows = sharding.local_rows(mesh, config.train.batch_size)
  batch = sharding.global_batch(examples(len(rows)), mesh)
  start = time.perf_counter()
  compiled = parts.compile(mesh)
  compile_seconds = time.perf_counter() - start

  def time_steps(count):
    nonlocal state
    start = time.perf_counter()
    for _ in range(count):
      state, stats = compiled(state, batch, rng)
    jax.block_until_ready((state, stats))
    return time.perf_counter() - start

  time_steps(_STEPS.value)
  windows = [time_steps(_STEPS.value) for _ in range(3)]
  seconds = statistics.median(windows) / _STEPS.value
  device = mesh.devices.flat[0]
  images = jax.ShapeDtypeStruct((_BATCH_SIZE.value, *image_shape), np.uint8)
  forward = flops.count(parts.objective.predict, state.params, images).flops
  flops_per_second = 3 * forward / seconds
  chip = chips.find(device.device_kind)
  peak = chip and chip.peak_flops
  memory = compiled.memory_analysis()
  result = {
    'model': f'ViT-{_VARIANT.value}',
    'batch_size': _BATCH_SIZE.value,
    'image_size': _IMAGE_SIZE.value,
    'devices': mesh.size,
    'device_kind': device.device_kind,
    'dtype': _DTYPE.value,
    'unroll': _UNROLL.value,
    'remat': _REMAT.value,
    'params': _PARAMS.value,
    'images_per_second': round(_BATCH_SIZE.value / seconds, 1),
    'step_milliseconds': round(seconds * 1e3, 2),
    'model_flops_per_second': round(flops_per_second),
    'mfu': peak and round(flops_per_second / (peak * mesh.size), 4),
    'allocated_bytes': memory.argument_size_in_bytes
    + memory.temp_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes,
    'device_peak_memory_bytes': (device.memory_stats() or {}).get(
      'peak_bytes_in_use'
    ),
    'compile_seconds': round(compile_seconds, 2),
  }
  return result, time_steps


def measure_loop(config, mesh, time_bare_steps):
  """Returns by how much the loop of `train.train` is slower than its step."""
  arrays = examples(max(1024, config.train.batch_size))
  datasets.DATASETS['in_memory'] = datasets.Dataset(
    1000, lambda split: sources.ArraySource(arrays)
  )
  rows = sharding.local_rows(mesh, config.train.batch_size)
  made = {name: array[: len(rows)] for name, array in arrays.items()}
  pipeline_batches = pipeline.TrainData.batches
  ratios = {'loop_overhead': [], 'loop_overhead_with_input': []}

  def batches(data, start_step):
    """Yields the batches of both kinds of window, and times both."""
    kinds = (
      (sharding.global_batch(made, mesh) for _ in itertools.repeat(None)),
      pipeline_batches(data, start_step),
    )
    for source, of_kind in zip(kinds, ratios.values(), strict=True):
      bare = None
      for _ in range(_REPEATS.value + 1):
        # Not timed: what fills or drains the input's buffers.
        yield from itertools.islice(source, _LOG_EVERY.value)
        start = time.perf_counter()
        yield from itertools.islice(source, _STEPS.value)
        # The loop asks for more when it has logged: nothing runs now.
        seconds = time.perf_counter() - start
        time_bare_steps(_LOG_EVERY.value)
        bare, bare_before = time_bare_steps(_STEPS.value), bare
        if bare_before:
          of_kind.append(2 * seconds / (bare + bare_before) - 1)

  run_loop(config, batches)
  result = {}
  for name, values in ratios.items():
    low, median, high = statistics.quantiles(values, n=4, method='inclusive')
    result[name] = round(median, 4)
    result[f'{name}_quartiles'] = [round(low, 4), round(high, 4)]
  return result


def measure_loop_cost(config, mesh):
  """Returns the seconds of a turn of the loop around a step of no work.

  Measured so, the cost does not drown in the noise of a real step. It includes
  handing the state over to the device, which the bare step needs as well.
  """
  rows = sharding.local_rows(mesh, config.train.batch_size)
  made, turns, times = examples(len(rows)), 400, []

  def batches(data, start_step):
    for _ in range(turns + 1):
      times.append(time.perf_counter())
      yield sharding.global_batch(made, mesh)

  def make_no_work_step(objective, tx, accum_steps, ema_decay):
    names = ('loss', 'accuracy', 'gradient_norm', 'update_norm')

    def step(state, batch, rng):
      stats = dict.fromkeys(names, batch['label'][0].astype('float32'))
      return state._replace(step=state.step + 1), stats

    return step

  with mock.patch.object(experiment, 'make_train_step', make_no_work_step):
    run_loop(config, batches)
  return (times[-1] - times[turns // 2]) / (turns - turns // 2)


def run_loop(config, batches):
  """Runs `train.train` on batches until they end."""
  with (
    tempfile.TemporaryDirectory() as workdir,
    open(os.devnull, 'w') as devnull,
    contextlib.redirect_stdout(devnull),
    mock.patch.object(pipeline.TrainData, 'batches', batches),
    contextlib.suppress(StopIteration),  # the batches end, and the run with it
  ):
    train.train(config, workdir)


if __name__ == '__main__':
  app.run(main)
