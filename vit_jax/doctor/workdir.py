"""The folder of the run: whether it can be written, and has room."""

from vit_jax.doctor.finding import FAIL, OK, WARN, Finding

DEFAULT = 'runs'  # `vit_jax.main` makes runs/NAME-OF-THE-CONFIG
STORE_UNCHECKED = Finding(
  'gcs',
  OK,
  'access to Google Cloud Storage was not checked; --workdir=gs://BUCKET/run '
  'checks it',
)

_GB = 1e9


def judge(workdir, result, timeout=120):
  """Returns a Finding on what `workdir_probe` has printed.

  Args:
    workdir: the folder of the run.
    result: what it printed, as `Probe.result` returns it.
    timeout: seconds after which the probe was ended.
  """
  remote = '://' in workdir
  if result is None:
    return Finding(
      'workdir',
      FAIL,
      f'{workdir} did not answer within {timeout} s',
      'there is no network, no credentials (gcloud auth application-default '
      'login), or the file system hangs.',
    )
  if 'error' in result:
    # `storage.explain` ends with what to do.
    reason, _, remedy = result['error'].partition('; ')
    if not remote:
      remedy = 'make the folder writable, or use another --workdir.'
    return Finding('workdir', FAIL, f'{workdir}: {reason}', remedy)
  found = f'{workdir} can be written'
  if result['seconds'] is not None:
    found += f', read and deleted in ({result["seconds"]:.1f} s)'
  if remote:
    return Finding('workdir', OK, found)
  free = result['free']
  found += f', {free / _GB:,.0f} GB are free'
  if free >= 25 * _GB:
    return Finding('workdir', OK, found)
  return Finding(
    'workdir',
    WARN if free >= _GB else FAIL,
    found,
    'while one is written there are three checkpoints: 23 GB with ViT-H/14 '
    'and Adam, 3 GB with B/16. Free some space, or use another --workdir.',
  )
