"""One order of examples, whatever happens: computed, never stored.

Example k of epoch e is permutation(seed, e) at k. Nothing depends on the number
of processes or threads, on restarts, or on the version of a library.
"""

import numpy as np

# Six rounds of a Feistel network pass for random; four are the theory's least.
_ROUNDS = 6


def permutation(positions, seed, epoch, num_examples):
  """Returns where each position of an epoch points: int64, as positions.

  A Feistel network permutes the next power of four; results beyond the last
  example are permuted again until they are inside (cycle walking). A value
  costs the same for 10 examples and for 300 million.

  Args:
    positions: int array, each in [0, num_examples).
    seed: int >= 0.
    epoch: int >= 0.
    num_examples: how many are permuted.
  """
  half_bits = np.uint64(max((int(num_examples - 1).bit_length() + 1) // 2, 1))
  half_mask = np.uint64((1 << int(half_bits)) - 1)
  keys = np.random.SeedSequence([seed, epoch]).generate_state(
    _ROUNDS, np.uint64
  )

  def permute(x):
    left, right = x >> half_bits, x & half_mask
    for key in keys:
      left, right = right, left ^ (_mix(right + key) & half_mask)
    return (left << half_bits) | right

  x = permute(np.asarray(positions).astype(np.uint64))
  while (outside := x >= num_examples).any():
    x[outside] = permute(x[outside])
  return x.astype(np.int64)


def shuffled(positions, seed, num_examples):
  """Returns the examples at positions of the endless training order.

  Args:
    positions: int array, counted from the start of epoch 0.
    seed: int >= 0.
    num_examples: the length of an epoch.

  Returns:
    indices: int64 array, the examples.
    seeds: int32 [len(positions), 2], the randomness of each at its epoch.
  """
  epochs, offsets = np.divmod(np.asarray(positions, np.int64), num_examples)
  indices = np.empty_like(offsets)
  for epoch in np.unique(epochs):
    of_epoch = epochs == epoch
    indices[of_epoch] = permutation(
      offsets[of_epoch], seed, epoch, num_examples
    )
  stream = _mix(np.uint64(seed) + _mix(epochs.astype(np.uint64)))
  seeds = _mix(stream + _mix(indices.astype(np.uint64)))
  return indices, seeds[:, None].view(np.int32)


def _mix(x):
  """Scrambles uint64 (the output function of SplitMix64, 10.1145/2714064)."""
  with np.errstate(over='ignore'):
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))
