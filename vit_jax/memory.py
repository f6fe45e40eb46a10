"""Memory of a train step: an estimate before it starts, advice if it fails.

The state is known exactly. What a step needs besides is estimated from its
trace: what of it is alive at once, if each operation were done in the order of
the program and nothing were fused.
"""

import contextlib
import math
import re
from typing import NamedTuple

import jax
from jax.extend import core

from vit_jax import chips, experiment, layouts, sharding
from vit_jax.models import layers

_FSDP = {'replicate': 'fsdp', 'tensor': 'fsdp_tensor'}
_LEAST_SAVING = 0.02  # of all, to be worth a line
# What runs short of other things, such as a store's quota, has the same code.
_OF_MEMORY = re.compile(r'memory|hbm|allocat', re.IGNORECASE)


class OutOfMemoryError(MemoryError):
  """A step does not fit; the message says what would help."""


class Estimate(NamedTuple):
  """What a train step takes, in bytes per device.

  Attributes:
    state: parameters, optimizer state, average: exact.
    batch: images and labels: exact.
    gradients: exact; twice if they are summed over accumulation steps.
    activations: what is stored for the backward pass, and what one layer takes
      while it is computed.
  """

  state: int
  batch: int
  gradients: int
  activations: int

  @property
  def total(self):
    return sum(self)

  def __str__(self):
    unit, name = (1e9, 'GB') if self.total > 1e8 else (1e6, 'MB')
    parts = ', '.join(
      f'{part} {size / unit:.2f}'
      for part, size in zip(self._fields, self, strict=True)
    )
    return f'{self.total / unit:.2f} {name} per device: {parts}'


def describe(estimate, device_kind):
  """Returns a text: an estimate, and the memory of a device if it is known.

  Args:
    estimate: an Estimate.
    device_kind: as `jax.Device.device_kind` has it.
  """
  chip = chips.find(device_kind)
  if not (chip and chip.hbm_bytes):
    return f'Estimated memory: {estimate}.'
  total, parts = str(estimate).split(' per device', 1)
  text = (
    f'Estimated memory: {total} of {chip.hbm_bytes / 1e9:.1f} GB '
    f'per device{parts}.'
  )
  if estimate.total > chip.hbm_bytes:
    text += (
      ' Warning: that is more than there is. If the step does not fit, the '
      'error lists what would help.'
    )
  return text


def estimate(parts, mesh, accum_steps=1):
  """Returns the Estimate of a train step; nothing is compiled.

  For TPU v3 the compiler allots 10% to 30% more, for padding.
  Activations that tensor parallelism splits are counted whole.

  Args:
    parts: the run's `experiment.Parts`.
    mesh: the device mesh.
    accum_steps: see `train_step.make_train_step`.
  """
  params = parts.shapes.params
  held = layouts.bytes_per_device(params, parts.layout.params)
  whole = sum(_size(x) for x in jax.tree.leaves(params))
  # Two batches tell what grows with the batch from what does not: the latter
  # is made of parameters (gradients, casts), and split as they are.
  count = sharding.num_batch_parts(mesh) * accum_steps
  once, twice = (_step_bytes(parts, count, times) for times in (1, 2))
  growing = twice - once
  casts = max(once - growing - whole, 0) * held / whole
  return Estimate(
    state=layouts.bytes_per_device(parts.shapes, parts.layout),
    batch=sum(
      math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
      for x in jax.tree.leaves(parts.batch)
    ),
    gradients=held * (2 if accum_steps > 1 else 1),
    activations=growing + int(casts),
  )


def _step_bytes(parts, count, times):
  """Returns what the gradient takes of `times` 1/count of the batch."""
  batch = {
    name: jax.ShapeDtypeStruct(
      (max(x.shape[0] // count, 1) * times, *x.shape[1:]), x.dtype
    )
    for name, x in parts.batch.items()
  }
  rng = jax.eval_shape(lambda: jax.random.key(0))
  gradient = jax.grad(parts.objective.loss, has_aux=True)
  return peak_bytes(
    jax.make_jaxpr(gradient)(parts.shapes.params, batch, rng).jaxpr
  )


def peak_bytes(jaxpr):
  """Returns the most bytes that are alive at once in a jaxpr, its inputs aside.

  Args:
    jaxpr: a `jax.extend.core.Jaxpr`, run in its order, without fusion.
  """
  uses = [*(equation.invars for equation in jaxpr.eqns), jaxpr.outvars]
  last_use = {
    variable: number
    for number, variables in enumerate(uses)
    for variable in _variables(variables)
  }
  made, alive, peak = {}, 0, 0
  for number, equation in enumerate(jaxpr.eqns):
    within = max(
      map(peak_bytes, core.jaxprs_in_params(equation.params)), default=0
    )
    # What a loop collects is there besides its body; of other calls the results
    # are what the body has made.
    outputs = {v: _size(v.aval) for v in equation.outvars}
    is_loop = equation.primitive.name in ('scan', 'while')
    during = within + is_loop * sum(outputs.values())
    peak = max(peak, alive + max(during, sum(outputs.values())))
    made |= outputs
    alive += sum(outputs.values())
    for variable in {*_variables(equation.invars), *outputs} & made.keys():
      if last_use.get(variable, number) <= number:
        alive -= made.pop(variable)
  return peak


def _variables(atoms):
  return [atom for atom in atoms if isinstance(atom, core.Var)]


def _size(x):
  return math.prod(x.shape) * x.dtype.itemsize


@contextlib.contextmanager
def explain_exhaustion(config, data, devices=None, evaluation=''):
  """Within it, running out of memory is an OutOfMemoryError with advice.

  Other errors pass, those of a store's quota too. The innermost one counts.

  Args:
    config: the run's config, see `experiment.build`.
    data: its training set, or the description of it.
    devices: of its mesh; all by default.
    evaluation: name of the evaluation that runs within; '' is the train step.

  Raises:
    OutOfMemoryError: in place of JAX's RESOURCE_EXHAUSTED.
  """
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    text = str(error)
    if 'RESOURCE_EXHAUSTED' not in text or not _OF_MEMORY.search(text):
      raise
    if evaluation:
      field = f'config.evals.{evaluation}.batch_size'
      size = config.evals[evaluation].get('batch_size')
      what, remedy = (
        f'Evaluation {evaluation!r}',
        f'Lower {field}={size}; the results stay the same.',
      )
    else:
      what, remedy = 'Training', advice(config, data, devices)
    raise OutOfMemoryError(
      f'{what} does not fit into memory. {_summary(error)}\n{remedy}'
    ) from error


def advice(config, data, devices=None):
  """Returns a text: what would save memory, cheapest first, and how much.

  What the run already does, cannot do, or would not profit from is left out.

  Args:
    config: the run's config, see `experiment.build`.
    data: its training set, or the description of it.
    devices: of its mesh; all by default.
  """

  def estimated(config):
    mesh = sharding.make_mesh(**config.mesh, devices=devices)
    parts = experiment.build(config, mesh, data)
    return estimate(parts, mesh, config.step.accum_steps)

  now = estimated(config.copy_and_resolve_references())
  lines = []
  for changes, remark in _changes(config):
    changed = config.copy_and_resolve_references()
    try:
      changed.update_from_flattened_dict(changes)
      saved = now.total - estimated(changed).total
    except ValueError:  # it does not divide, say
      continue
    fields = ' '.join(f'--config.{k}={v}' for k, v in changes.items())
    lines.append((fields, saved, remark))
  halved = (now.activations + now.batch) // 2
  if config.sharding.params in _FSDP.values():
    halved += (now.state + now.gradients) // 2
  lines.append(('twice as many devices', halved, ''))
  return '\n'.join(
    [
      f'Estimated: {now}. What would help, cheapest first, each by itself:',
      *(
        f'  {fields}: saves {saved / 1e9:.2f} GB{remark}'
        for fields, saved, remark in lines
        if saved > _LEAST_SAVING * now.total
      ),
    ]
  )


def _changes(config):
  """Yields (changed fields, remark), cheapest first."""
  remat = config.model.get('remat', 'full')
  policies = list(layers.REMAT_POLICIES)
  for policy in policies[policies.index(remat) + 1 :]:
    yield {'model.remat': policy}, '; computes more'
  for factor in (2, 4):
    steps = config.step.accum_steps * factor
    yield {'step.accum_steps': steps}, '; the same update, smaller parts'
  params = config.sharding.params
  split = _FSDP.get(params) if isinstance(params, str) else None
  if split:
    yield {'sharding.params': split}, '; more communication'
  smaller = {'train.batch_size': config.train.batch_size // 2}
  yield smaller, '; another run: adapt lr and steps'
  tensor = {'replicate': 'tensor', 'fsdp': 'fsdp_tensor'}
  if isinstance(params, str):
    model = {
      'mesh.model': config.mesh.model * 2,
      'sharding.params': tensor.get(params, params),
    }
    yield model, '; more communication'
  if config.step.ema_decay:
    yield {'step.ema_decay': 0.0}, '; without the average'


def _summary(error):
  """Returns the sentence of a long error that says how much was missing."""
  text = ' '.join(str(error).split())
  found = re.search(r'(Used|Out of memory|Exceeded|Ran out)[^;]{0,150}', text)
  return (found[0] if found else text[:150]).rstrip(' .') + '.'
