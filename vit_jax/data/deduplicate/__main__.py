r"""Finds copies of test images in a training set, and lists them to drop.

  python -m vit_jax.data.deduplicate --train=imagenet21k \
      --against=cifar10,cifar100,imagenet2012:validation --out=duplicates
  python -m vit_jax.data.deduplicate --train=photos/:train \
      --against=own_test/:all --out=duplicates
  python -m vit_jax.data.deduplicate --evaluate --photos=photos/

A data set is NAME or PATH, as of --config.train.dataset, and maybe :SPLIT.
OUT gets drop.txt for --config.train.drop, matches.jsonl, matches.png (look at
it: the least certain matches come first), bad.jsonl and report.json.

It runs on all cores of this machine; elsewhere with options of Apache Beam
after ' -- ', such as -- --runner=DataflowRunner --project=P --region=R
--temp_location=gs://B/tmp --setup_file=./setup.py; OUT and the training set
are at gs:// then. Exit code: 0, or 1 after 'Error: ...' on stderr.
"""

import argparse
import re
import sys

import numpy as np

from vit_jax import command_line, storage
from vit_jax.data import deduplicate
from vit_jax.data.deduplicate import evaluation, sheet

_PART = r'\w+(?:\[[-\d%:]*\])?'
_DATA = re.compile(rf'(.+?)(?::({_PART}(?:\+{_PART})*))?')


class _Parser(argparse.ArgumentParser):
  """A parser whose errors are one line, as those of all commands."""

  def error(self, message):
    """Exits with what is wrong, and where to read more."""
    sys.exit(
      f'Error: {message}; see --help. Options of Apache Beam come after --.'
    )


def main(argv):
  """Does what a command line says.

  Args:
    argv: list of str, such as ['--evaluate'].

  Raises:
    SystemExit: with 'Error: ...', if something is wrong.
  """
  for stream in (sys.stdout, sys.stderr):
    stream.reconfigure(errors='backslashreplace')  # names may be any bytes
  at = argv.index('--') if '--' in argv else len(argv)
  parser = _parser()
  args = parser.parse_args(argv[:at])
  with command_line.one_line_errors():
    if args.evaluate:
      _evaluate(args)
      return
    for name in ('train', 'against', 'out'):
      if not getattr(args, name):
        parser.error(f'--{name} is missing')
    report = deduplicate.deduplicate(
      parse_data(args.train, 'train'),
      [
        parse_data(text, 'test')
        for texts in args.against
        for text in texts.split(',')
      ],
      args.out,
      args.max_distance,
      args.batch,
      args.skip_bad,
      args.overwrite,
      argv[at + 1 :],
    )
    deduplicate.show(report, args.out)


def parse_data(text, split):
  """Returns (dataset, split) of 'dataset' or 'dataset:split'.

  Args:
    text: of the command line.
    split: if it names none.

  Raises:
    ValueError: if there is nothing.
  """
  match = _DATA.fullmatch(text)
  if match is None:
    raise ValueError(
      f'{text!r} is no data set; write NAME, PATH, or either with :SPLIT.'
    )
  return match[1], match[2] or split


def _evaluate(args):
  wrong = []
  print(f'{"alteration":34} recall  not plain  precision')
  for name, score in evaluation.evaluate(args.photos, args.max_distance):
    if name == 'tiles':
      print(f'{score} tiles, of which every other one is a test image')
      continue
    print(
      f'{name:34} {score.recall:6.1%}  {score.recall_detailed:9.1%}  '
      f'{score.precision:9.1%}',
      flush=True,
    )
    wrong += [(name, *of) for of in score.wrong]
  if args.out:
    tiles = evaluation.tiles(args.photos)
    pairs = [
      (
        np.asarray(tiles[number]),
        np.asarray(tiles[test]),
        f'{distance:.3f}  {name}\ntiles {number}, {test}',
      )
      for name, number, test, distance in sorted(wrong, key=lambda x: x[3])
    ]
    path = storage.path(args.out) / 'wrong.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.write(path, pairs[: sheet.MOST])
    print(f'wrote {path}: {len(pairs)} wrong matches')


def _parser():
  parser = _Parser(
    prog='python -m vit_jax.data.deduplicate',
    description=__doc__,
    allow_abbrev=False,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add('--train', metavar='DATA', help="training set; its split is 'train'")
  add(
    '--against',
    metavar='DATA,...',
    action='append',
    help="test sets; their split is 'test'",
  )
  add('--out', metavar='FOLDER', help='local or gs://')
  add(
    '--max_distance',
    type=float,
    default=deduplicate.MAX_DISTANCE,
    metavar='D',
    help='how far apart copies may be; larger finds more, also what is no '
    'copy (%(default)s)',
  )
  add(
    '--batch',
    type=_count,
    default=deduplicate.BATCH,
    metavar='N',
    help='images that a worker takes at once (%(default)s)',
  )
  add(
    '--skip_bad',
    action='store_true',
    help='leave out test images that cannot be read; otherwise they are an '
    'error',
  )
  add('--overwrite', action='store_true', help="replace an earlier run's files")
  add(
    '--evaluate',
    action='store_true',
    help='show precision and recall on copies made of photos; with --out, a '
    'sheet of what is wrong',
  )
  add('--photos', metavar='FOLDER', help='of --evaluate; by default two photos')
  return parser


def _count(text):
  """Returns an int of at least 1."""
  if not re.fullmatch(r'[1-9]\d{0,5}', text):
    raise argparse.ArgumentTypeError(
      f'{text!r} is no number; write one from 1 to 999999'
    )
  return int(text)


if __name__ == '__main__':
  main(sys.argv[1:])
