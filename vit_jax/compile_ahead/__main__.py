r"""Compiles a run for TPUs that are not here, and says what it will take.

  python -m vit_jax.compile_ahead --config=configs/vit_h14_jft.py \
    --topology=v3:4x8
  python -m vit_jax.compile_ahead --config=... --topology=v5e:4x4 \
    --config.model.remat=dots --out=ahead.json
  python -m vit_jax.compile_ahead --config=... --topology=v3:2x2 --search

The TPU compiler itself (libtpu) compiles the train step of the config on any
CPU, and says how much memory it takes, or that it does not fit. No TPU and no
data are needed. A topology is a version and the chips along each axis, such as
v3:4x8 (64 cores), v4:2x2x4, v5e:4x8, v5p:2x2x4, v6e:4x4. docs/scaling.md
explains every number.
"""

import json
import pathlib

import jax
from absl import app, flags
from ml_collections import config_flags

from vit_jax import command_line
from vit_jax.compile_ahead import forecast, search

_GIB = 2**30


def lines(result):
  """Returns lines of text for people.

  Args:
    result: of `forecast.Forecast.train_step`.
  """
  r = result
  unit = 'core' if r['device_kind'] in ('TPU v2', 'TPU v3') else 'chip'
  slices = f'{r["num_slices"]} x ' if r['num_slices'] > 1 else ''
  rows = [
    ('', f'{"fits" if r["fits"] else "DOES NOT FIT"}'),
    (f'batch, a {unit}', f'{r["batch_size"]:,}, {r["batch_per_core"]:,.6g}'),
    ('remat, layout', f'{r["remat"]}, {r["params"]}'),
    *_memory_rows(r),
    (
      f'FLOPs of a step, a {unit}',
      f'{r["flops_per_core"]:.4g} of {r["flops"]:.4g} in all; of the model '
      f'{r["model_flops_per_core"]:.4g}, computed again '
      f'{r["recomputed_share"]:.0%}',
    ),
  ]
  if r['fits']:
    rows += [*_traffic_rows(r), *_time_rows(r, unit)]
  rows.append(('compiled in', f'{r["compile_seconds"]:.0f} s'))
  title = (
    f'{r["model"]} on {slices}{r["topology"]}: {r["num_devices"]} x '
    f'{r["device_kind"]}'
  )
  width = max(len(name) for name, _ in rows)
  return [title, *(f'  {name:{width}}  {value}' for name, value in rows)]


def _memory_rows(r):
  rows = []
  for name, key in (
    ('arguments', 'argument_bytes'),
    ('temporaries', 'temporary_bytes'),
    ('rest of the state', 'resident_bytes'),
    ('laid out in all', 'allocated_bytes'),
  ):
    if key in r:
      rows.append((name, f'{r[key] / _GIB:.2f} GiB'))
  available = f'{r["hbm_bytes"] / _GIB:.2f} GiB'
  if r['peak_bytes'] is None:
    return [*rows, ('peak', f'more than {available}')]
  text = f'{r["peak_bytes"] / _GIB:.2f} of {available}'
  at_least = '' if r['fits'] or 'argument_bytes' in r else 'at least '
  return [*rows, ('peak', f'{at_least}{text}, {r["hbm_share"]:.1%}')]


def _traffic_rows(r):
  kinds = r['collective_bytes'].items()
  exchanged = ', '.join(f'{kind} {size / 1e6:,.4g}' for kind, size in kinds)
  ratio = r['sent_ratio']
  return [
    ('exchanged, MB', exchanged or 'nothing'),
    (
      'sent, MB',
      f'{r["sent_bytes"] / 1e6:,.4g}'
      + (f', {ratio:.2f} of what the layout needs' if ratio else ''),
    ),
    ('HBM traffic', f'{r["memory_bytes"] / 1e9:,.4g} GB'),
    *(
      [('unknown loops', f'{r["unknown_loops"]}, counted once')]
      if r['unknown_loops']
      else []
    ),
  ]


def _time_rows(r, unit):
  parts = ', '.join(
    f'{name} {r[f"{name}_seconds_bound"]:.3g}'
    for name in ('flops', 'memory', 'links', 'network')
  )
  rows = [('bounds, s', parts)]
  for kind in ('bound', 'estimate'):
    seconds = r[f'step_seconds_{kind}']
    if seconds:
      name = 'at the bound' if kind == 'bound' else "compiler's estimate"
      rows.append(
        (
          name,
          f'{seconds:.3f} s a step, '
          f'{r[f"images_per_second_{kind}"]:,.0f} images/s, '
          f'{r[f"mfu_{kind}"]:.0%} MFU, '
          f'{r[f"core_days_{kind}"]:,.4g} {unit}-days for '
          f'{r["total_steps"]:,} steps',
        )
      )
  if r['paper_core_days']:
    rows.append(('paper', f'{r["paper_core_days"]:,} TPUv3-core-days'))
  return rows


def run(
  config,
  topology,
  num_slices=1,
  evaluate=True,
  find=False,
  say=print,
  save=lambda result: None,
):
  """Returns the dict that --out writes, and prints tables on the way.

  Args:
    config: ConfigDict with the fields of `configs/common.py`.
    topology: see `topology.devices`, as `num_slices`.
    num_slices: likewise.
    evaluate: whether to compile the steps of evaluations, too.
    find: whether to search for the cheapest remat and the largest batch.
    say: takes lines of text.
    save: takes the dict whenever there is more in it.

  Raises:
    ValueError: if the config cannot be run, or there is no such topology.
  """

  def make(config):
    return forecast.Forecast(config, topology, num_slices)

  if find:
    result = search.search(make, config, say, save=save)
    save(result)
    return result
  ahead = make(config)
  result = ahead.train_step()
  say('\n'.join(lines(result)))
  save(result)
  if evaluate:
    result['eval'] = ahead.eval_steps()
    for name, memory in result['eval'].items():
      verdict = 'fits' if memory['fits'] else 'DOES NOT FIT'
      say(f'  evaluation {name} of {memory["batch_size"]:,} {verdict}')
      for row in _memory_rows(memory):
        say('    {}  {}'.format(*row))
    save(result)
  return result


def main(argv):
  """Prints what the flags ask for."""
  command_line.only_flags(argv)
  command_line.be_brief()
  given = flags.FLAGS
  command_line.config_file()
  # Nothing runs, so no accelerator of this machine is taken.
  jax.config.update('jax_platforms', 'cpu')

  def save(result):
    if given.out:
      pathlib.Path(given.out).write_text(json.dumps(result, indent=2) + '\n')

  with command_line.one_line_errors():
    _check_out(given.out)
    run(
      given.config,
      given.topology,
      given.num_slices,
      given.eval,
      given.search,
      save=save,
    )


def _check_out(name):
  """Raises ValueError if --out cannot be written: not after minutes of work."""
  if not name:
    return
  path = pathlib.Path(name)
  try:
    is_new = not path.exists()
    path.open('a').close()
  except OSError as error:
    raise ValueError(
      f'--out={name}: {error.strerror}; give a file in a folder that exists '
      'and can be written.'
    ) from None
  if is_new:
    path.unlink(missing_ok=True)


if __name__ == '__main__':
  config_flags.DEFINE_config_file('config', None, command_line.CONFIG_HELP)
  flags.DEFINE_string(
    'topology', None, 'Version and chips along each axis, such as v3:4x8.'
  )
  flags.DEFINE_integer(
    'num_slices', 1, 'How many such slices, linked by a network.'
  )
  flags.DEFINE_bool('eval', True, 'Also compiles the steps of evaluations.')
  flags.DEFINE_bool(
    'search', False,
    'Finds the cheapest remat policy that takes less than 90% of the memory, '
    'and the largest batch per core that fits.',
  )  # fmt: skip
  flags.DEFINE_string('out', None, 'JSON file to write the numbers to.')
  flags.mark_flags_as_required(['config', 'topology'])
  app.run(main, flags_parser=command_line.parse_flags)
