"""Prepares a data set: `python -m vit_jax.data.prepare cifar10`.

Downloads a TFDS data set and builds it in array_record format, the one that
allows reading examples in any order, under TFDS_DATA_DIR (by default
~/tensorflow_datasets).
"""

import sys

from absl import app

from vit_jax.data import datasets, sources


def prepare(name):
  """Downloads and builds a data set, unless that is done already.

  Args:
    name: a name in `datasets.DATASETS`, or TFDS's own.

  Raises:
    ValueError: if TFDS does not know it.
  """
  row = datasets.DATASETS.get(name)
  if row and not row.tfds_name:
    print(f'{name} is bundled with the project: nothing to prepare.')
    return
  builder = sources.builder(row.tfds_name if row else name)
  if not builder.is_prepared():
    builder.download_and_prepare()
  splits = ', '.join(
    f'{split} {info.num_examples:,}'
    for split, info in builder.info.splits.items()
  )
  print(f'{name} is ready in {builder.data_dir}: {splits} examples.')


def main(argv):
  if len(argv) != 2:
    raise app.UsageError(
      'Name one data set: python -m vit_jax.data.prepare NAME, with NAME any '
      f'of TFDS or one of {", ".join(sorted(datasets.DATASETS))}.'
    )
  try:
    prepare(argv[1])
  except ValueError as error:
    sys.exit(f'Error: {error}')


if __name__ == '__main__':
  app.run(main)
