"""A copy of a state on its devices, to be saved while the state trains on.

Orbax reads arrays that lie in the host's memory where they are; were those of
the state given away to the next step meanwhile, XLA would copy them first, into
fresh memory and beside the threads that write: seconds a gigabyte. A copy into
memory that is there already takes 0.1.
"""

import jax
import jax.numpy as jnp

from vit_jax.checkpoint import preemption

# So many times the copy's size has to be free of an accelerator's memory.
_MARGIN = 1.5


class Snapshot:
  """Makes the copies; on CPUs, all in one place that is reserved at the start.

  On accelerators a copy is made if memory has room for it beside all that the
  steps so far have used, and is gone when it is saved.
  """

  def __init__(self):
    self._spare = self._fits = self._copy = None

  def prepare(self, target):
    """Reserves memory, and compiles; once, and where it is of use.

    Args:
      target: tree of `jax.ShapeDtypeStruct` with shardings, or of arrays.
    """
    if self._spare is not None or not _is_on_cpu(target):
      return

    def zeros():
      return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), target)

    shardings = jax.tree.map(lambda x: x.sharding, target)
    self._spare = jax.jit(zeros, out_shardings=shardings)()
    copy = jax.jit(
      lambda state, spare: jax.tree.map(jnp.copy, state),
      donate_argnums=1,
      keep_unused=True,
    )
    self._copy = copy.lower(self._spare, self._spare).compile()

  def take(self, state):
    """Returns (a copy of a state, True), or (the state, False) without room.

    The copy before must not be needed any more; all processes do the same.
    """
    if _is_on_cpu(state):
      if not _is_alike(state, self._spare):
        self._spare = None
        self.prepare(state)
      self._spare = self._copy(state, self._spare)
      return self._spare, True
    if self._fits is not False:
      # Peaks grow, as evaluations come; one copy is in them after the first.
      times = _MARGIN - (self._fits is True)
      self._fits = min(preemption.exchange(int(_fits(state, times)))) == 1
    if not self._fits:
      return state, False
    return jax.tree.map(jnp.copy, state), True


def is_gone(state):
  """Returns whether a state was donated, so that it cannot be saved again."""
  return any(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def _is_on_cpu(tree):
  devices = jax.tree.leaves(tree)[0].sharding.device_set
  return next(iter(devices)).platform == 'cpu'


def _is_alike(state, spare):
  def same(x, y):
    return (x.shape, x.dtype) == (
      y.shape, y.dtype
    ) and x.sharding.is_equivalent_to(y.sharding, x.ndim)  # fmt: skip

  leaves, others = jax.tree.leaves(state), jax.tree.leaves(spare)
  return len(leaves) == len(others) and all(map(same, leaves, others))


def _fits(state, times):
  """Returns whether this process's devices have room for `times` their part."""
  sizes = {}
  for leaf in jax.tree.leaves(state):
    for shard in leaf.addressable_shards:
      size = sizes.get(shard.device, 0)
      sizes[shard.device] = size + shard.data.nbytes
  for device, size in sizes.items():
    memory = device.memory_stats() or {}
    free = memory.get('bytes_limit', 0) - memory.get('peak_bytes_in_use', 0)
    if free < times * size:
      return False
  return True
