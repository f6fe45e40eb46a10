"""The cheapest recomputation, and the largest batch, that fit in memory."""

from vit_jax import sharding
from vit_jax.models import layers

# Of the memory: what is left is for what the compiler cannot know.
MOST_SHARE = 0.9


def search(make, config, say, most_tries=8, save=lambda result: None):
  """Returns {'remat', 'batch_size', 'batch_per_core', 'tries'}.

  First the remat policies, from the cheapest, at the config's batch size, until
  one takes less than MOST_SHARE of the memory; then, with this policy (or the
  last), the largest batch that fits, to within a sixteenth. Each try is aimed
  along the line through those before, although memory is no line: near the
  limit the compiler saves more. Batches are multiples of the least that every
  part of the mesh takes, in all accumulation steps.

  Args:
    make: config -> `forecast.Forecast`.
    config: ConfigDict with the fields of `configs/common.py`.
    say: takes a line of text on each try.
    most_tries: compilations to find the largest batch, beside the first.
    save: takes {'tries'} after each try, which may be minutes of work.
  """
  tries = []

  def try_out(remat, batch_size):
    changed = config.copy_and_resolve_references()
    changed.model.remat, changed.train.batch_size = remat, batch_size
    # Large batches would leave no steps after the warm-up.
    changed.total_steps, changed.total_epochs = 10**9, None
    ahead = make(changed)
    memory, count = ahead.train_memory(), ahead.mesh.size
    tries.append(
      {
        'remat': remat,
        'batch_size': batch_size,
        'batch_per_core': batch_size / count,
        **memory,
      }
    )
    save({'tries': tries})
    share = memory['hbm_share']
    say(
      f'remat {remat:4}  batch {batch_size:7,}, {batch_size / count:8,.5g} a '
      f'core  {"" if share is None else f"{share:6.1%} of the memory  "}'
      f'{"fits" if memory["fits"] else "does not fit"}'
    )
    return memory, ahead.mesh

  for policy in layers.REMAT_POLICIES:
    first, mesh = try_out(policy, config.train.batch_size)
    if first['fits'] and first['hbm_share'] < MOST_SHARE:
      break
  else:
    policy = None
  remat = policy or list(layers.REMAT_POLICIES)[-1]
  unit = sharding.num_batch_parts(mesh) * config.step.accum_steps
  largest = unit * _largest(
    lambda batch: try_out(remat, unit * batch)[0],
    config.train.batch_size // unit,
    first,
    most_tries,
  )
  say(
    f'The cheapest remat under {MOST_SHARE:.0%} at batch '
    f'{config.train.batch_size:,} is {policy or "none of them"}; with remat '
    f'{remat}, batches up to {largest:,} fit, {largest / mesh.size:,.5g} a '
    'core.'
  )
  return {
    'remat': policy,
    'batch_size': largest,
    'batch_per_core': largest / mesh.size,
    'tries': tries,
  }


def _largest(try_out, batch, first, most_tries):
  """Returns the largest batch that fits, 0 if none was found.

  Args:
    try_out: batch -> dict with 'hbm_share', None if not known, and 'fits'.
    batch: the one that was tried first.
    first: what came out.
    most_tries: how often to try another.
  """
  shares, fits = {0: 0.0}, {0: True}
  result = first
  for tries_left in reversed(range(most_tries + 1)):
    fits[batch] = result['fits']
    if result['hbm_share'] is not None:
      shares[batch] = result['hbm_share']
    most = max(batch for batch in fits if fits[batch])
    least_bad = min((b for b in fits if not fits[b]), default=None)
    batch = _next(shares, most, least_bad)
    if batch is None or not tries_left:
      break
    result = try_out(batch)
  return most


def _next(shares, most, least_bad):
  """Returns the batch to try, or None if the last two are close enough.

  Args:
    shares: {batch: share of the memory} of those that were tried.
    most: the largest of them that fits.
    least_bad: the smallest that does not, or None.
  """
  step = max(1, most // 16)
  if least_bad is not None and least_bad - most <= step:
    return None
  # The line through the two largest tries; at first it starts at 0 and is too
  # steep, since parameters take memory as well, so that it aims too low.
  if len(shares) < 2:  # the compiler did not say how much is missing
    return (most + least_bad + 1) // 2
  (a, low), (b, high) = sorted(shares.items())[-2:]
  slope = (high - low) / (b - a)
  aim = int(b + (1 - high) / slope) if slope > 0 else 2 * b
  aim = aim // step * step
  if aim <= most:
    aim = most + step
  if least_bad is not None and aim >= least_bad:
    aim = max(most + 1, least_bad - step)
  return aim
