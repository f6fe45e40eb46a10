"""Prepares data sets; `python -m vit_jax.data.prepare --help` says how."""

import os

from etils import epath

from vit_jax.data import datasets, labels, manifest, sources
from vit_jax.data.prepare import (
  file_packing,
  imagenet21k,
  packing,
  tfds_building,
)

# What is there, or comes by other ways.
_NOTHING_TO_DO = {
  'digits': 'digits is bundled with scikit-learn: nothing to prepare.',
  'objectnet': 'objectnet is read from its unpacked folder: nothing to '
  'prepare; using it says where it is to be.',
}


def prepare(name, from_path=None, out=None, **options):
  """Makes a data set ready, unless it is.

  Args:
    name: a name in `datasets.DATASETS`, one of TFDS, or a path.
    from_path: what a name is packed from, if TFDS does not build it.
    out: folder of shards; by default PATH_shards, and for a name the folder of
      that name under TFDS_DATA_DIR.
    **options: of `packing.pack`, and `release` of `imagenet21k.inputs`.

  Raises:
    ValueError: if there is no such data set, or it cannot be prepared.
  """
  release = options.pop('release', None)
  if name in _NOTHING_TO_DO:
    print(_NOTHING_TO_DO[name])
    return
  row = datasets.DATASETS.get(name)
  if row and not row.tfds_name:
    found = _inputs_of_name(name, from_path, release)
    if out is None:
      # Other classes, so that it is another data set.
      other = '_winter21' if ' winter21 ' in found.source else ''
      out = os.path.join(sources.data_dir(), name + other)
  elif from_path:
    raise ValueError(
      f'--from is for imagenet21k and jft300m, which {name!r} is not; give '
      'the path alone.'
    )
  elif not row and _is_path(name):
    found = file_packing.inputs(name)
    out = out or file_packing.default_out(name)
  else:
    _prepare_tfds(name, row)
    return
  packing.pack(found, epath.Path(out).expanduser(), **options)


def _is_path(name):
  return (
    os.path.exists(os.path.expanduser(name))
    or name.startswith(('/', './', '../', '~'))
    or name.endswith((*manifest.EXTENSIONS, '/'))
    or '://' in name
  )


def _inputs_of_name(name, from_path, release):
  """Returns the packing.Inputs of a data set that TFDS does not build."""
  if not from_path:
    raise ValueError(
      f'{name} needs --from: '
      + (
        'fall11_whole.tar or winter21_whole.tar.gz of https://image-net.org, '
        'a folder of the nXXXXXXXX.tar in it, or the unpacked images.'
        if name == 'imagenet21k'
        else 'a folder of images, or a manifest (.csv, .jsonl).'
      )
    )
  path = epath.Path(from_path).expanduser()
  if not path.exists():
    raise ValueError(f'--from={from_path} does not exist.')
  if name != 'imagenet21k':
    return file_packing.inputs(from_path)
  if imagenet21k.is_tars(path):
    return imagenet21k.inputs(path, release)
  return file_packing.inputs(from_path, labels.synsets(name))


def _prepare_tfds(name, row):
  builder = tfds_building.prepare(row.tfds_name if row else name)
  splits = ', '.join(
    f'{split} {info.num_examples:,}'
    for split, info in builder.info.splits.items()
  )
  print(f'{name} is ready in {builder.data_dir}: {splits} examples.')
