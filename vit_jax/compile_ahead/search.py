"""The cheapest recomputation, and the largest batch, that fit in memory."""

from vit_jax.models import layers

# Of the memory: what is left is for what the compiler cannot know.
MOST_SHARE = 0.9
_MOST_TRIES = 8


def search(make, config, say):
  """Returns {'remat', 'batch_per_core', 'tries'}, with few compilations.

  First the remat policies, from the cheapest, at the config's batch size, until
  one takes less than MOST_SHARE of the memory; then, with this policy (or the
  last), the largest batch that fits, to within a sixteenth. Memory grows nearly
  linearly with the batch, so that each try is aimed by those before.

  Args:
    make: config -> `forecast.Forecast`.
    config: ConfigDict with the fields of `configs/common.py`.
    say: takes a line of text on each try.
  """
  tries = []

  def try_out(remat, batch_per_core):
    changed = config.copy_and_resolve_references()
    changed.model.remat = remat
    # Large batches would leave no steps after the warm-up.
    changed.total_steps, changed.total_epochs = 10**9, None
    if batch_per_core:
      changed.train.batch_size = batch_per_core * count
    ahead = make(changed)
    memory = ahead.train_memory()
    result = {
      'remat': remat,
      'batch_per_core': changed.train.batch_size // ahead.mesh.size,
      **memory,
    }
    tries.append(result)
    verdict = 'fits' if memory['fits'] else 'does not fit'
    say(
      f'remat {remat:4}  batch {result["batch_per_core"]:6,} a core  '
      f'{memory["hbm_share"]:6.1%} of the memory  {verdict}'
    )
    return result, ahead.mesh.size

  for policy in layers.REMAT_POLICIES:
    first, count = try_out(policy, None)
    if first['fits'] and first['hbm_share'] < MOST_SHARE:
      break
  else:
    policy = None
  remat = policy or first['remat']
  A = config.step.accum_steps
  batch, share = first['batch_per_core'] // A, first['hbm_share']
  largest = A * _largest(
    lambda batch: try_out(remat, A * batch)[0], batch, share, first['fits']
  )
  say(
    f'The cheapest remat under {MOST_SHARE:.0%} at batch '
    f'{config.train.batch_size:,} is {policy or "none of them"}; with remat '
    f'{remat}, at most {largest:,} images a core fit.'
  )
  return {'remat': policy, 'batch_per_core': largest, 'tries': tries}


def _largest(try_out, batch, share, first_fits):
  """Returns the largest batch that fits, 0 if none was found.

  Args:
    try_out: batch -> dict with 'hbm_share' and 'fits'.
    batch: the one that was tried first.
    share: of the memory that it takes.
    first_fits: whether it fits.
  """
  tries, fits = {0: 0.0, batch: share}, {0: True, batch: first_fits}
  for _ in range(_MOST_TRIES):
    most = max(batch for batch in fits if fits[batch])
    least_bad = min((b for b in fits if not fits[b]), default=None)
    batch = _next(tries, most, least_bad)
    if batch is None:
      break
    result = try_out(batch)
    tries[batch], fits[batch] = result['hbm_share'], result['fits']
  return max(batch for batch in fits if fits[batch])


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
  (a, low), (b, high) = sorted(shares.items())[-2:]
  slope = (high - low) / (b - a)
  aim = int(b + (1 - high) / slope) if slope > 0 else 2 * b
  aim = aim // step * step
  if aim <= most:
    aim = most + step
  if least_bad is not None and aim >= least_bad:
    aim = max(most + 1, least_bad - step)
  return aim
