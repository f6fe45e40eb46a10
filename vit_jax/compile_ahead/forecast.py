"""What the steps of a config take on machines that are not here."""

import time

import jax

from vit_jax import chips, experiment, flops, layouts, names, sharding
from vit_jax.compile_ahead import roofline, topology, traffic
from vit_jax.data import described
from vit_jax.evaluators import classification as evaluator
from vit_jax.models import layers
from vit_jax.objectives import classification

_SECONDS_A_DAY = 86_400
# TPUv3-core-days of pre-training, by model, data and epochs (paper, Table 2).
PAPER_CORE_DAYS = {
  ('H/14', 'jft300m', 14): 2500,
  ('L/16', 'jft300m', 14): 680,
  ('L/16', 'imagenet21k', 90): 230,
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
    # What a run would refuse should not be found out after compiling.
    self._evals = {name: self._evaluation(name) for name in self.config.evals}

  def _describe(self, **changes):
    section = {**self.config.train, **changes}
    return described.describe(self.mesh, self.config.seed, **section)

  def _evaluation(self, name):
    """Returns the images that an evaluation takes at once, and its loss."""
    row, field = self.config.evals[name], f'config.evals.{name}'
    size, loss = row.get('batch_size'), row.get('loss', 'softmax')
    sharding.check_batch_size(size, self.mesh, f'{field}.batch_size')
    example_loss = names.lookup(classification.LOSSES, loss, f'{field}.loss')
    recipe = row.get('preprocess') or self.config.train.preprocess
    shape = self._describe(preprocess=recipe).image_shape
    place = sharding.batch_sharding(self.mesh)
    images = jax.ShapeDtypeStruct((size, *shape), 'uint8', sharding=place)
    return images, example_loss

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

  def eval_steps(self):
    """Returns {name: dict of the memory that a step of an evaluation takes}.

    All of the state stays on the devices, though only its weights are used.
    """
    results, known = {}, {}
    for name, (images, loss) in self._evals.items():
      key = images.shape, loss
      if key not in known:
        known[key] = self._eval_step(images, loss)
      results[name] = {'batch_size': images.shape[0], **known[key]}
    return results

  def _eval_step(self, images, example_loss):
    """Returns what memory the sums of `evaluators.classification` take."""
    weights, place = self.parts.shapes.weights, self.parts.layout.weights
    params = sharding.placed(weights, place)
    label, B = self.parts.batch['label'], images.shape[0]
    batch = {
      'image': images,
      'label': label.update(shape=(B, *label.shape[1:])),
      'mask': images.update(shape=(B,), dtype='float32'),
    }

    zeros, add = evaluator.make_sums(
      self.parts.objective.predict, example_loss, self.mesh
    )

    def lower():
      with sharding.activations(self.mesh):
        return add.lower(zeros, params, batch)

    memory = self._compile(lower)[0]
    state, layout = self.parts.shapes, self.parts.layout
    beside = layouts.bytes_per_device(state, layout)
    beside -= layouts.bytes_per_device(weights, place)
    memory['resident_bytes'] = beside
    for name in ('peak', 'allocated'):
      if memory.get(f'{name}_bytes') is not None:
        memory[f'{name}_bytes'] += beside
    if memory['peak_bytes'] is not None:
      memory['hbm_share'] = memory['peak_bytes'] / memory['hbm_bytes']
      memory['fits'] &= memory['hbm_share'] <= 1
    return memory

  def _compile(self, lower):
    """Returns what memory a step takes, and the compiled step or None."""
    hbm, start = self.chip.hbm_bytes, time.perf_counter()
    try:
      compiled = lower().compile()
    except jax.errors.JaxRuntimeError as error:
      if 'RESOURCE_EXHAUSTED' not in str(error):
        raise
      needed = topology.needed_bytes(str(error))
      compiled, memory = None, {'fits': False, 'peak_bytes': needed}
    else:
      memory = _memory(compiled)
    seconds, peak = time.perf_counter() - start, memory['peak_bytes']
    return {
      **memory,
      'hbm_bytes': hbm,
      'hbm_share': peak / hbm if peak is not None else None,
      'compile_seconds': round(seconds, 1),
    }, compiled

  def _compute(self):
    """Returns the FLOPs of a step, one device's part of them."""
    rng = jax.eval_shape(lambda: jax.random.key(0))
    shapes, batch = self.parts.shapes, self.parts.batch
    train_step = self.parts.train_step.__wrapped__  # no jit within a jit
    step = flops.count(train_step, shapes, batch, rng)
    forward = flops.count(
      self.parts.objective.predict, shapes.params, batch['image']
    )
    model = 3 * forward.flops
    return {
      'flops': step.flops,
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
      self.parts.shapes.params,
      self.parts.layout.params,
      layers.DTYPES[self.config.model.dtype].dtype.itemsize,
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
      estimate = once * moved.cycles / moved.cycles_once
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
        (
          self.config.model.variant,
          self.config.train.dataset,
          self.config.total_epochs,
        )
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
    # Were all that is laid out for temporaries reserved, and not what lives.
    'allocated_bytes': arguments
    + memory.output_size_in_bytes
    + memory.temp_size_in_bytes
    - memory.alias_size_in_bytes,
  }
