"""What the steps of a config take on machines that are not here."""

import time

import jax

from vit_jax import chips, experiment, flops, sharding
from vit_jax.compile_ahead import roofline, topology, traffic
from vit_jax.data import described

_SECONDS_A_DAY = 86_400
# TPUv3-core-days of pre-training, by model and data (paper, Table 2).
PAPER_CORE_DAYS = {
  ('H/14', 'jft300m'): 2500,
  ('L/16', 'jft300m'): 680,
  ('L/16', 'imagenet21k'): 230,
}


class Forecast:
  """A config on a topology: what its steps take there."""

  def __init__(self, config, topology_name, num_slices=1):
    """Describes the run; nothing is compiled yet.

    Args:
      config: ConfigDict with the fields of `configs/common.py`.
      topology_name: see `topology.devices`.
      num_slices: likewise.

    Raises:
      ValueError: if the config cannot be run, or there is no such topology.
    """
    self.config = experiment.checked(config)
    self._topology, self._num_slices = topology_name, num_slices
    self.mesh = experiment.call(
      sharding.make_mesh,
      self.config,
      'mesh',
      devices=topology.devices(topology_name, num_slices),
    )
    self._kind = self.mesh.devices.flat[0].device_kind
    self.chip = chips.find(self._kind)
    if self.chip is None:
      raise ValueError(
        f'{self._kind!r} has no row in vit_jax/chips.py; add it.'
      )
    self._data = self._describe()
    self.parts = experiment.build(self.config, self.mesh, self._data)

  def _describe(self, **changes):
    section = {**self.config.train, **changes}
    return described.describe(self.mesh, self.config.seed, **section)

  def train_step(self):
    """Returns what the train step takes, in a dict; see docs/scaling.md."""
    config, count = self.config, self.mesh.size
    result = {
      'topology': self._topology,
      'num_slices': self._num_slices,
      'device_kind': self._kind,
      'num_devices': count,
      'model': config.model.variant,
      'batch_size': config.train.batch_size,
      'batch_per_core': config.train.batch_size / count,
      'remat': config.model.remat,
      'unroll': config.model.unroll,
      'params': str(config.sharding.params),
      'jax': jax.__version__,
    }
    memory, compiled = self._compile(lambda: self.parts.lower(self.mesh))
    result |= memory
    result |= self._compute()
    if compiled is not None:
      result |= self._times(compiled, result)
    return result

  def train_memory(self):
    """Returns what memory alone the train step takes, a part of the same."""
    return self._compile(lambda: self.parts.lower(self.mesh))[0]

  def eval_step(self):
    """Returns a dict of what the forward pass of an evaluation takes."""
    row = next(iter(self.config.evals.values()), {})
    batch_size = row.get('batch_size', 1024)
    recipe = row.get('preprocess') or self.config.train.preprocess
    shape = self._describe(preprocess=recipe).image_shape
    sharding.check_batch_size(batch_size, self.mesh, 'an evaluation.batch_size')
    images = jax.ShapeDtypeStruct(
      (batch_size, *shape),
      'uint8',
      sharding=sharding.batch_sharding(self.mesh),
    )
    params = jax.tree.map(
      lambda shape, place: jax.ShapeDtypeStruct(
        shape.shape, shape.dtype, sharding=place
      ),
      self.parts.shapes.params,
      self.parts.layout.params,
    )

    def lower():
      with sharding.activations(self.mesh):
        predict = jax.jit(lambda *args: self.parts.objective.predict(*args)[0])
        return predict.lower(params, images)

    return {'batch_size': batch_size, **self._compile(lower)[0]}

  def _compile(self, lower):
    """Returns what memory a step takes, and the compiled step or None."""
    hbm, start = self.chip.hbm_bytes, time.perf_counter()
    try:
      compiled = chips.compiled(lower(), self._kind)
    except jax.errors.JaxRuntimeError as error:
      needed = topology.needed_bytes(str(error))
      if needed is None:
        raise
      compiled, memory = None, {'fits': False, 'peak_bytes': needed}
    else:
      memory = _memory(compiled)
    seconds = time.perf_counter() - start
    return {
      **memory,
      'hbm_bytes': hbm,
      'hbm_share': memory['peak_bytes'] / hbm,
      'compile_seconds': round(seconds, 1),
    }, compiled

  def _compute(self):
    """Returns the FLOPs of a step, one device's part of them."""
    rng = jax.eval_shape(lambda: jax.random.key(0))
    shapes, batch = self.parts.shapes, self.parts.batch
    step = flops.count(self.parts.train_step, shapes, batch, rng)
    forward = flops.count(
      self.parts.objective.predict, shapes.params, batch['image']
    )
    model = 3 * forward.flops
    return {
      'flops_per_core': step.flops / self.mesh.size,
      'padding_flops_per_core': step.padding_flops / self.mesh.size,
      'model_flops_per_core': model / self.mesh.size,
      'recomputed_share': max(0.0, step.flops / model - 1),
    }

  def _times(self, compiled, result):
    """Returns what a step moves, and how long it may take."""
    moved = traffic.read(compiled.as_text(), self.mesh.size)
    by_kind, sent = {}, 0
    for each in moved.collectives:
      by_kind[each.kind] = by_kind.get(each.kind, 0) + each.times * each.size
      sent += each.times * each.sent()
    ideal = roofline.ideal_sent(
      self.parts.shapes.params, self.parts.layout.params
    )
    bound = roofline.bound(
      self.chip,
      result['flops_per_core'] - result['padding_flops_per_core'],
      moved.memory_bytes,
      moved.collectives,
      self.mesh,
    )
    once = (compiled.cost_analysis() or {}).get('optimal_seconds', 0)
    estimate = None
    if once > 0 and moved.cycles_once:
      # The compiler counts the body of a loop once; its cycles say how much
      # of the time that is.
      estimate = max(once * moved.cycles / moved.cycles_once, bound.seconds)
    return {
      'collective_bytes': by_kind,
      'sent_bytes': sent,
      'ideal_sent_bytes': ideal,
      'sent_ratio': sent / ideal if ideal else None,
      'memory_bytes': moved.memory_bytes,
      'unknown_loops': moved.unknown_loops,
      **{f'{k}_seconds_bound': v for k, v in bound._asdict().items()},
      'step_seconds_bound': bound.seconds,
      'bound_by': bound.by,
      'step_seconds_estimate': estimate,
      **self._rates(bound.seconds, result, 'bound'),
      **self._rates(estimate, result, 'estimate'),
      'total_steps': self.parts.total_steps,
      'paper_core_days': PAPER_CORE_DAYS.get(
        (self.config.model.variant, self.config.train.dataset)
      ),
    }

  def _rates(self, seconds, result, kind):
    if not seconds:
      return {}
    days = seconds * self.parts.total_steps * self.mesh.size / _SECONDS_A_DAY
    peak = self.chip.peak_flops
    return {
      f'images_per_second_{kind}': result['batch_size'] / seconds,
      f'mfu_{kind}': result['model_flops_per_core'] / seconds / peak,
      f'core_days_{kind}': days,
    }


def _memory(compiled):
  """Returns the bytes that a compiled step takes on a device."""
  memory = compiled.memory_analysis()
  arguments = memory.argument_size_in_bytes
  # The most that lives at once, the arguments included, and the program.
  peak = memory.peak_memory_in_bytes + memory.generated_code_size_in_bytes
  return {
    'fits': True,
    'argument_bytes': arguments,
    'temporary_bytes': peak - arguments,
    'peak_bytes': peak,
  }
