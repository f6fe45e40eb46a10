"""Prepares data sets; `python -m vit_jax.data.prepare --help` says how."""

import os

from vit_jax import storage
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


# Flags, and the kinds of NAME, see `_kind`, that they are of.
_FLAGS = {
  'from': ('imagenet21k', 'jft300m'),
  'release': ('imagenet21k',),
  'all': ('vtab',),
  **dict.fromkeys(
    ('out', 'check', 'max_bad_share', 'shard_mb'),
    ('imagenet21k', 'jft300m', 'PATH'),
  ),
}


def check_flags(name, flags):
  """Raises ValueError if one of the flags given does nothing for a name."""
  kind = _kind(name)
  for flag in flags:
    if kind not in _FLAGS[flag]:
      where = ' and '.join(_FLAGS[flag])
      text = f'--{flag} is for {where}, which {name!r} is not; leave it out'
      if kind == 'TFDS' and flag == 'out':
        text += ', and set TFDS_DATA_DIR to say where TFDS builds it'
      if kind == 'PATH' and flag == 'from':
        text += ': the path alone is packed'
      raise ValueError(f'{text}.')


def _kind(name):
  if name == 'vtab' or name in _NOTHING_TO_DO:
    return name
  if name in datasets.DATASETS:
    return 'TFDS' if datasets.DATASETS[name].tfds_name else name
  return 'PATH' if _is_path(name) else 'TFDS'


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
  kind = _kind(name)
  if kind == 'TFDS':
    _prepare_tfds(name)
    return
  if kind == 'PATH':
    found = file_packing.inputs(name)
    out = out or file_packing.default_out(name)
  else:
    found = _inputs_of_name(name, from_path, release)
    if out is None:
      # Other classes, so that it is another data set.
      other = '_winter21' if ' winter21 ' in found.source else ''
      out = os.path.join(sources.data_dir(), name + other)
  _check_beside(from_path or name, out)
  packing.pack(found, storage.path(out), **options)


def _check_beside(path, out):
  """Raises ValueError if shards would be written into what is packed."""
  if '://' in os.fspath(out) or '://' in path:
    return
  folder, out = (os.path.realpath(os.path.expanduser(p)) for p in (path, out))
  if os.path.commonpath([folder, out]) == folder:
    raise ValueError(
      f'--out={out} is inside of {folder}, which is packed; give a folder '
      'elsewhere.'
    )


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
  path = storage.path(from_path)
  if not path.exists():
    raise ValueError(f'--from={from_path} does not exist.')
  if name != 'imagenet21k':
    found = file_packing.inputs(from_path)
    _check_classes(name, found, from_path)
    return found
  if imagenet21k.is_tars(path):
    return imagenet21k.inputs(path, release)
  if release:
    raise ValueError(
      f'--release is for tar files, which --from={from_path} is not; leave it '
      'out: unpacked images have the 21,843 classes.'
    )
  synsets = labels.synsets(name)
  found = file_packing.inputs(from_path, synsets, one_split='train')
  return found._replace(class_names=imagenet21k.class_names(synsets))


def _check_classes(name, found, path):
  wanted = datasets.DATASETS[name].num_classes
  if found.num_classes != wanted:
    raise ValueError(
      f'--from={path} has {found.num_classes:,} classes, but {name} has '
      f'{wanted:,}; pack the path itself, `python -m vit_jax.data.prepare '
      f'{path}`, and train on the folder that it makes: '
      f'--config.train.dataset={file_packing.default_out(path)}.'
    )


def _prepare_tfds(name):
  row = datasets.DATASETS.get(name)
  # A version, or a task of VTAB, may be what a row has.
  known = {
    (other.tfds_name or '').partition(':')[0]
    for other in datasets.DATASETS.values()
  }
  if not row and name.partition(':')[0] not in known:
    print(
      f'{name} is none of DATASETS in vit_jax/data/datasets.py: training reads '
      'it once it has a row there.'
    )
  builder = tfds_building.prepare(row.tfds_name if row else name)
  splits = ', '.join(
    f'{split} {info.num_examples:,}'
    for split, info in builder.info.splits.items()
  )
  print(f'{name} is ready in {builder.data_dir}: {splits} examples.')
