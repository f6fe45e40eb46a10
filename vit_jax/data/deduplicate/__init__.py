"""Copies of test images in a training set, and a list to leave them out.

The paper's pre-training sets are without those of the downstream test sets
(Section 4.1, following BiT, 1912.11370). docs/deduplication.md tells what is
found and what is not.
"""

import collections
import concurrent.futures
import json
import sys

import numpy as np

from vit_jax import storage
from vit_jax.data import datasets, selection
from vit_jax.data.deduplicate import search, sheet
from vit_jax.data.deduplicate.index import NEAR, Index, import_faiss
from vit_jax.data.prepare import progress

MAX_DISTANCE = 0.1
BATCH = 256
_FILES = (
  'drop.txt',
  'matches.jsonl',
  'matches.png',
  'bad.jsonl',
  'report.json',
)


def deduplicate(
  train,
  against,
  out,
  max_distance=MAX_DISTANCE,
  batch=BATCH,
  skip_bad=False,
  overwrite=False,
  beam_options=(),
):
  """Returns the report, a dict, and writes it and all else to `out`.

  Args:
    train: (dataset, split), see `datasets.load`.
    against: list of (dataset, split), the test sets.
    out: folder, local or gs://; all workers must reach it.
    max_distance: of copies that are not exact, see `fingerprints.distances`.
    batch: number of images that a worker takes at once.
    skip_bad: whether test images that cannot be read are left out.
    overwrite: whether to replace an earlier run's files.
    beam_options: list of str; none is this machine.

  Raises:
    ValueError: if something does not exist or cannot be read.
  """
  search.import_beam()
  import_faiss()
  if not 0 <= max_distance < 1:
    raise ValueError(
      f'--max_distance={max_distance} is not in [0, 1); 0.1 is the default.'
    )
  out = storage.path(out)
  _check_out(out, overwrite)
  training = datasets.load(*train, '--train').source
  tests = [datasets.load(*one, '--against').source for one in against]
  index, bad_tests = _index(tests, skip_bad, batch)
  out.mkdir(parents=True, exist_ok=True)
  index.save(out / 'index.npz')
  find = search.Find(
    *train, str(out / 'index.npz'), batch, max_distance, str(out)
  )
  starts = range(0, len(training), batch)
  with progress.Line('comparing', len(training)) as line:
    lines = list(search.run(find, starts, out, list(beam_options), line.add))
  (out / 'index.npz').unlink()
  merged = {
    key: sorted(tuple(row) for line in lines for row in line[key])
    for key in ('matches', 'bad')
  }
  seen = sum(line['images'] for line in lines)
  if seen != len(training):
    raise ValueError(
      f'--out={out}: only {seen:,} of {len(training):,} images were compared; '
      'run it again, and look for errors of the workers.'
    )
  report = {
    'train': ':'.join(train),
    'against': [':'.join(one) for one in against],
    'max_distance': max_distance,
    'images': seen,
    'bad': len(merged['bad']),
    'plain': sum(line['plain'] for line in lines),
    'test_images': [len(source) for source in tests],
    'bad_test_images': bad_tests,
    'plain_test_images': index.num_plain,
  }
  return _write(out, report, merged, training, tests, train, against)


def _check_out(out, overwrite):
  there = [out / name for name in _FILES if (out / name).exists()]
  if there and not overwrite:
    raise ValueError(
      f'--out={out} has {there[0].name} of an earlier run; name another '
      'folder, or add --overwrite.'
    )
  for path in there:
    path.unlink()
  if (out / 'parts').exists():  # of a run that was killed
    (out / 'parts').rmtree()


def _index(tests, skip_bad, batch):
  """Returns the Index of all test images, and how many are bad."""
  found, places, num_bad = [], [], 0
  total = sum(map(len, tests))
  with (
    progress.Line('test images', total) as line,
    concurrent.futures.ThreadPoolExecutor() as threads,
  ):
    for number, source in enumerate(tests):
      reader = search.Reader(source)
      starts = range(0, len(source), batch)
      ranges = [
        np.arange(start, min(start + batch, len(source))) for start in starts
      ]
      results = threads.map(reader.fingerprints, ranges)
      for indices, of_range in zip(ranges, results, strict=True):
        for index, one in zip(indices.tolist(), of_range, strict=True):
          if not isinstance(one, str):
            found.append(one)
            places.append((number, index))
          elif skip_bad:
            num_bad += 1
            line.bad(f'{source.name(index)}: {one}')
          else:
            raise ValueError(
              f'--against: {source.name(index)} cannot be read ({one}), so '
              'that its copies would stay; repair it, or add --skip_bad.'
            )
        line.add(len(indices))
  if not found:
    raise ValueError('--against has no images; name other splits.')
  return Index(found, places), num_bad


def _write(out, report, merged, training, tests, train, against):
  """Returns the report, complete, and writes all files."""
  matches = [
    {
      'train_index': index,
      'train_name': training.name(index),
      'test_set': ':'.join(against[number]),
      'test_index': row,
      'test_name': tests[number].name(row),
      'distance': distance,
      'kind': kind,
    }
    for index, number, row, distance, kind in merged['matches']
  ]
  dropped = sorted({match['train_index'] for match in matches})
  kinds = collections.Counter(match['kind'] for match in matches)
  report |= {
    'dropped': len(dropped),
    'matches': dict(sorted(kinds.items())),
    'matches_by_test_set': [
      sum(number == place for _, place, *_ in merged['matches'])
      for number in range(len(tests))
    ],
  }
  bad = [
    {'index': index, 'name': training.name(index), 'reason': reason}
    for index, reason in merged['bad']
  ]
  _write_lines(out / 'matches.jsonl', matches)
  _write_lines(out / 'bad.jsonl', bad)
  _write_sheet(out / 'matches.png', merged['matches'], training, tests)
  selection.write_drop_list(out / 'drop.txt', dropped, *train, report['images'])
  (out / 'report.json').write_text(json.dumps(report, indent=2) + '\n')
  return report


def _write_lines(path, rows):
  with path.open('w') as file:
    file.writelines(json.dumps(row) + '\n' for row in rows)


def _write_sheet(path, matches, training, tests):
  """Writes the sheet of the least certain pairs, those first."""
  near = [match for match in matches if match[-1] == NEAR]
  exact = [match for match in matches if match[-1] != NEAR]
  first = sorted(near, key=lambda match: (-match[3], match)) + exact
  readers = [search.Reader(source) for source in (training, *tests)]
  pairs = []
  for index, number, row, distance, kind in first[: sheet.MOST]:
    pair = [
      reader.images(np.array([place]))[0]
      for reader, place in ((readers[0], index), (readers[1 + number], row))
    ]
    caption = (
      f'{kind} {distance:.3f}  train {index}, test {row}\n'
      f'{tests[number].name(row)}'
    )
    pairs.append((*pair, caption))
  sheet.write(path, pairs)


def show(report, out):
  """Prints what was found."""
  print(
    f'{report["images"]:,} images compared with '
    f'{sum(report["test_images"]):,} test images: {report["dropped"]:,} to '
    f'drop, {report["bad"]:,} could not be read, {report["plain"]:,} too plain '
    'for anything but equal files.'
  )
  for name, size, count in zip(
    report['against'],
    report['test_images'],
    report['matches_by_test_set'],
    strict=True,
  ):
    print(f'  {name}: {size:,} images, {count:,} matches')
  print(f'Look at {out}/matches.png: the least certain matches come first.')
  print(f'Train without them: --config.train.drop={out}/drop.txt')
  sys.stdout.flush()
