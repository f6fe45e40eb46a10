"""How long does a checkpoint hold up the step loop, and how fast is it written?

  python -m benchmarks.checkpoint --gigabytes=1

A chain of matrices trains with Adam; its state has the given size. Steps are
timed one by one, each to its end. Then, in turns: some bare steps; a save, and
steps until it is complete; a save with nothing beside it; and the same bytes
written to one file, and synced. Reported are medians over the turns:

  stall_milliseconds   the call of `save`: the loop stands still.
  next_step_...        by how much the step after it is longer than a bare one.
  slow_down            by how much the steps take longer until the save is
                       complete. Where the device is the CPU, they share its
                       cores with what writes.
  lost_milliseconds    of the loop by one save, all of these together.
  orbax_...            the same of `orbax.checkpoint.CheckpointManager`.

The files are dropped from the page cache before they are restored.
"""

import json
import os
import pathlib
import statistics
import tempfile
import time
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from absl import app, flags, logging

from vit_jax import checkpoint, sharding

_GIGABYTES = flags.DEFINE_float('gigabytes', 1.0, 'Size of the state, in 1e9.')
_WIDTH = flags.DEFINE_integer('width', 2048, 'Rows of a matrix of the model.')
_BATCH_SIZE = flags.DEFINE_integer('batch_size', 4, 'Examples in a step.')
_STEPS = flags.DEFINE_integer('steps', 8, 'Bare steps of a turn.')
_REPEATS = flags.DEFINE_integer('repeats', 5, 'Turns.')
_FOLDER = flags.DEFINE_string(
  'folder', None, 'Where to write; by default, where temporary files go.'
)


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'{argv[1]!r} is not a flag; flags start with --.')
  logging.set_verbosity(logging.ERROR)
  with tempfile.TemporaryDirectory(dir=_FOLDER.value) as folder:
    print(json.dumps(measure(pathlib.Path(folder))))


def measure(folder):
  """Returns the results."""
  loop = Loop()
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(loop.state))
  result = {
    'state_bytes': size,
    'device_kind': jax.devices()[0].device_kind,
    'cpus': len(os.sched_getaffinity(0)),
  }
  raw = [raw_seconds(folder / 'raw', size)]
  ours = measure_saves(loop, folder, Ours, raw)
  theirs = measure_saves(loop, folder, Orbax, raw)
  result['step_milliseconds'] = milliseconds(ours['bare'] + theirs['bare'])
  for prefix, found in (('', ours), ('orbax_', theirs)):
    for name in ('stall', 'next_step', 'lost'):
      result[f'{prefix}{name}_milliseconds'] = milliseconds(found[name])
    slow_down = statistics.median(found['slow_down'])
    result[f'{prefix}slow_down'] = round(slow_down, 3)
  result['stall_milliseconds_max'] = round(max(ours['stall']) * 1e3, 1)
  for name, seconds in (
    ('save', ours['alone']),
    ('save_beside_steps', ours['beside']),
    ('orbax_save', theirs['alone']),
    ('raw_write', raw),
    ('restore', [restore_seconds(loop, folder) for _ in range(3)]),
  ):
    median = statistics.median(seconds)
    result[f'{name}_gigabytes_per_second'] = round(size / 1e9 / median, 3)
  share = statistics.median(raw) / statistics.median(ours['alone'])
  return result | {'share_of_raw_write': round(share, 3)}


class Loop:
  """A loop of donated train steps, like that of `train.train`."""

  def __init__(self):
    matrix_bytes = 3 * 4 * _WIDTH.value**2  # and both moments of Adam
    count = max(1, round(_GIGABYTES.value * 1e9 / matrix_bytes))
    x = jnp.ones((_BATCH_SIZE.value, _WIDTH.value))
    tx = optax.adam(1e-3)

    def loss(params):
      y = x
      for matrix in params.values():
        y = jnp.tanh(y @ matrix)
      return jnp.mean(y**2)

    def init(rng):
      shape = (_WIDTH.value, _WIDTH.value)
      params = {
        f'matrix{i}': jax.random.normal(jax.random.fold_in(rng, i), shape) / 50
        for i in range(count)
      }
      return {'params': params, 'optimizer': tx.init(params)}

    def step(state):
      updates, optimizer = tx.update(
        jax.grad(loss)(state['params']), state['optimizer']
      )
      params = optax.apply_updates(state['params'], updates)
      return {'params': params, 'optimizer': optimizer}

    self.shapes = jax.eval_shape(init, jax.random.key(0))
    mesh = sharding.make_mesh()
    self.layout = sharding.layout(self.shapes, mesh)
    init = jax.jit(init, out_shardings=self.layout)
    self._step = jax.jit(step, donate_argnums=0, out_shardings=self.layout)
    self.state = init(jax.random.key(0))
    for _ in range(3):
      self.seconds()

  def seconds(self):
    """Does a step; returns how long it took."""
    start = time.perf_counter()
    self.state = jax.block_until_ready(self._step(self.state))
    return time.perf_counter() - start


class Ours:
  """The project's checkpoints."""

  def __init__(self, loop, folder):
    self.folder = folder / 'ours'
    self._manager = open_run(loop, folder)
    self._manager.__enter__()
    assert self._manager.restore_latest(loop.layout) is None

  def save(self, step, state):
    self._manager.save(step, state)

  def wait(self):
    self._manager.wait()

  def close(self):
    self._manager.__exit__(None, None, None)


class Orbax:
  """Orbax's own, with its defaults, as one would use it."""

  def __init__(self, loop, folder):
    del loop
    self.folder = folder / 'orbax'
    options = ocp.CheckpointManagerOptions(max_to_keep=1)
    self._manager = ocp.CheckpointManager(
      self.folder / 'checkpoints', options=options
    )

  def save(self, step, state):
    self._manager.save(step, args=ocp.args.StandardSave(state))

  def wait(self):
    self._manager.wait_until_finished()

  def close(self):
    self._manager.close()


def open_run(loop, folder):
  return checkpoint.Manager(
    folder / 'ours', {}, loop.shapes, every=10**9, keep=1
  )


def measure_saves(loop, folder, kind, raw):
  """Returns name -> seconds (slow_down: a ratio), one of each turn."""
  names = (
    'stall', 'next_step', 'lost', 'slow_down', 'bare', 'alone', 'beside',
  )  # fmt: skip
  found = {name: [] for name in names}
  saves = kind(loop, folder)
  saves.save(1, loop.state)  # not measured: the first one compiles
  saves.wait()
  for turn in range(_REPEATS.value):
    bare = statistics.median(loop.seconds() for _ in range(_STEPS.value))
    number = 2 * turn + 2
    target = saves.folder / 'checkpoints' / str(number)
    start = time.perf_counter()
    saves.save(number, loop.state)
    call = time.perf_counter() - start
    steps = [loop.seconds()]
    while not target.exists():
      steps.append(loop.seconds())
    found['beside'].append(time.perf_counter() - start)
    saves.wait()
    found['bare'].append(bare)
    found['stall'].append(call)
    found['next_step'].append(steps[0] - bare)
    found['slow_down'].append(statistics.mean(steps) / bare - 1)
    found['lost'].append(call + sum(steps) - len(steps) * bare)
    start = time.perf_counter()
    saves.save(number + 1, loop.state)
    saves.wait()
    found['alone'].append(time.perf_counter() - start)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(loop.state))
    raw.append(raw_seconds(folder / 'raw', size))
  saves.close()
  return found


def raw_seconds(path, size):
  """Returns how long it takes to write so many bytes to a file, and sync it."""
  block = np.random.default_rng(0).bytes(min(size, 2**24))
  start = time.perf_counter()
  with path.open('wb') as file:
    for begin in range(0, size, len(block)):
      file.write(block[: size - begin])
    file.flush()
    os.fsync(file.fileno())
  seconds = time.perf_counter() - start
  path.unlink()
  return seconds


def restore_seconds(loop, folder):
  """Returns how long it takes to read the last one from disk, and check it."""
  for path in (folder / 'ours' / 'checkpoints').glob('**/*'):
    if path.is_file():
      with path.open('rb') as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
  with (
    # The copy's memory is reserved beforehand: that is no part of reading.
    mock.patch('vit_jax.checkpoint.snapshot.Snapshot.prepare'),
    open_run(loop, folder) as checkpoints,
  ):
    start = time.perf_counter()
    jax.block_until_ready(checkpoints.restore_latest(loop.layout))
    return time.perf_counter() - start


def milliseconds(seconds):
  return round(statistics.median(seconds) * 1e3, 1)


if __name__ == '__main__':
  app.run(main)
