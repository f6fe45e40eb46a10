"""Writes the table of docs/scaling.md: four models on five kinds of TPU.

  python -m benchmarks.scaling_table --results=scaling.jsonl
  python -m benchmarks.scaling_table --results=scaling.jsonl --only=v3

Each row is a JSON line of `vit_jax.compile_ahead`, and takes minutes. Rows that
the file has are not compiled again; delete it to measure anew.
"""

import json
import pathlib

import jax
from absl import app, flags, logging

from configs import resnet_jft, vit_b_jft, vit_h14_jft, vit_l16_jft
from vit_jax.compile_ahead import forecast

_RESULTS = flags.DEFINE_string('results', None, 'File of JSON lines.')
_ONLY = flags.DEFINE_string('only', '', "Part of a row's name: v3, H/14.")

DOC = pathlib.Path(__file__).parent.parent / 'docs' / 'scaling.md'
BEGIN, END = '<!-- table: begin -->\n', '<!-- table: end -->\n'
TOPOLOGIES = {
  'B/16': ('v3:2x2', 'v4:2x2x1', 'v5e:2x2', 'v5p:2x2x1', 'v6e:2x2'),
  'L/16': ('v3:4x4', 'v4:2x2x4', 'v5e:4x4', 'v5p:2x2x4', 'v6e:4x4'),
  'H/14': ('v3:4x8', 'v4:2x4x4', 'v5e:4x8', 'v5p:2x4x4', 'v6e:4x8'),
  'R152x2': ('v3:4x4', 'v4:2x2x4', 'v5e:4x4', 'v5p:2x2x4', 'v6e:4x4'),
}
CONFIGS = {
  'B/16': vit_b_jft.get_config,
  'L/16': vit_l16_jft.get_config,
  'H/14': vit_h14_jft.get_config,
  'R152x2': lambda: resnet_jft.get_config('R152x2'),
}
_GIB = 2**30


def rows():
  """Returns [(model, topology)], the kinds of TPU one after the other."""
  return [(m, t) for ts in zip(*TOPOLOGIES.values(), strict=True)
          for m, t in zip(TOPOLOGIES, ts, strict=True)]  # fmt: skip


def table(results):
  """Returns the Markdown table of the results, by (model, topology)."""
  lines = [
    '| model | topology | devices | batch each | remat, layout | peak | of HBM '
    '| FLOPs, 1e12 | again | sent | to ideal | bound, s | by | estimate, s '
    '| images/s | MFU | core-days | paper |',
    '| --- ' * 18 + '|',
  ]
  for model, topology in rows():
    r = results.get((model, topology))
    if r is None:
      lines.append(f'| {model} | {topology} | not compiled yet {"| " * 15}|')
      continue
    start = (
      f'| {r["model"]} | {r["topology"]} | {r["num_devices"]} '
      f'| {r["batch_per_core"]:,.0f} | {r["remat"]}, {r["params"]} '
      f'| {r["peak_bytes"] / _GIB:.2f} GiB | {r["hbm_share"]:.0%} '
      f'| {r["flops_per_core"] / 1e12:.1f} | {r["recomputed_share"]:.0%} '
    )
    if not r['fits']:
      lines.append(f'{start}| does not fit {"| " * 9}|')
      continue
    paper, estimate = r['paper_core_days'], r['step_seconds_estimate']
    lines.append(
      f'{start}| {r["sent_bytes"] / 1e9:.2f} GB | {r["sent_ratio"]:.2f} '
      f'| {r["step_seconds_bound"]:.3f} | {r["bound_by"]} '
      f'| {f"{estimate:.3f}" if estimate else ""} '
      f'| {r["images_per_second_bound"]:,.0f} | {r["mfu_bound"]:.0%} '
      f'| {r["core_days_bound"]:,.0f} | {f"{paper:,}" if paper else ""} |'
    )
  return '\n'.join(lines) + '\n'


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'{argv[1]!r} is not a flag; flags start with --.')
  logging.set_verbosity(logging.WARNING)
  jax.config.update('jax_platforms', 'cpu')
  path = pathlib.Path(_RESULTS.value)
  text = path.read_text() if path.exists() else ''
  done = {}
  for line in text.splitlines():
    result = json.loads(line)
    done[result['model'], result['topology']] = result
  for model, topology in rows():
    if (model, topology) in done or _ONLY.value not in f'{model} {topology}':
      continue
    print(f'{model} on {topology} ...', flush=True)
    result = forecast.Forecast(CONFIGS[model](), topology).train_step()
    done[model, topology] = result
    with path.open('a') as file:
      file.write(json.dumps(result) + '\n')
  if DOC.exists():
    before, _, rest = DOC.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    DOC.write_text(f'{before}{BEGIN}\n{table(done)}\n{END}{after}')


if __name__ == '__main__':
  flags.mark_flag_as_required('results')
  app.run(main)
