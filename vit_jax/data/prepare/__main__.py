"""Prepares data sets for reading their images in any order.

  python -m vit_jax.data.prepare cifar10
  python -m vit_jax.data.prepare imagenet21k --from=fall11_whole.tar
  python -m vit_jax.data.prepare photos/ --out=gs://bucket/photos
  python -m vit_jax.data.prepare vtab --all

NAME of TFDS, or of this project: downloads it and builds it in array_record
format under TFDS_DATA_DIR (by default ~/tensorflow_datasets); one that is
there as tfrecord is converted. `vtab` shows how far its 19 tasks are.
Training reads a name of TFDS once it has a row in DATASETS of
vit_jax/data/datasets.py.

PATH of a folder of images or of a manifest (.csv, .jsonl): packs it into
shards, in --out, by default PATH_shards. Every image is decoded once; those
that cannot be are listed in bad_examples.jsonl and left out. The path of the
shards is then a data set: --config.train.dataset=photos_shards.

What was killed goes on where it was when it is run again. Exit code: 0, or 1
after 'Error: ...' on stderr.
"""

import sys

from absl import app, flags, logging

from vit_jax import command_line
from vit_jax.data import datasets, prepare
from vit_jax.data.prepare import imagenet21k, packing, vtab_status

_FROM = flags.DEFINE_string(
  'from',
  None,
  'What imagenet21k or jft300m is made of: the tar file of image-net.org, a '
  'folder of the nXXXXXXXX.tar in it, a folder of images, or a manifest.',
)
_OUT = flags.DEFINE_string(
  'out',
  None,
  'Folder of the shards, local or gs://; by default PATH_shards, and for a '
  'name with --from its folder under TFDS_DATA_DIR.',
)
_CHECK = flags.DEFINE_enum(
  'check',
  'full',
  packing.CHECKS,
  'How images are checked: full decodes them, header looks at their size.',
)
_MAX_BAD_SHARE = flags.DEFINE_float(
  'max_bad_share',
  0.01,
  'Fail at the end if more than this share of the images is bad. Three may '
  'always be, unless this is 0.',
  lower_bound=0,
  upper_bound=1,
)
_SHARD_MB = flags.DEFINE_integer(
  'shard_mb', 200, 'Size of a shard in megabytes.', lower_bound=1
)
_RELEASE = flags.DEFINE_enum(
  'release',
  None,
  imagenet21k.RELEASES,
  "Of imagenet21k's tar files; by default winter21 if --from's path says so, "
  'else fall11.',
)
_ALL = flags.DEFINE_bool(
  'all', False, 'With vtab: prepare all that needs no files by hand.'
)


def main(argv):
  """Does what the command line says."""
  command_line.be_brief(logging.ERROR)  # TFDS tells of all it looks at
  command_line.print_any_name()
  if len(argv) != 2:
    sys.exit(
      'Error: name one data set, or the path of one: `python -m '
      'vit_jax.data.prepare NAME`, with NAME any of TFDS or one of '
      f'{", ".join(sorted(datasets.DATASETS))}; see --help.'
    )
  ours = (_FROM, _OUT, _CHECK, _MAX_BAD_SHARE, _SHARD_MB, _RELEASE, _ALL)
  given = [flag.name for flag in ours if flag.present]
  with command_line.one_line_errors():
    prepare.check_flags(argv[1], given)
    if argv[1] == 'vtab':
      vtab_status.prepare_all() if _ALL.value else vtab_status.show()
      return
    prepare.prepare(
      argv[1],
      _FROM.value,
      _OUT.value,
      release=_RELEASE.value,
      check=_CHECK.value,
      max_bad_share=_MAX_BAD_SHARE.value,
      bytes_per_shard=_SHARD_MB.value * 10**6,
    )


if __name__ == '__main__':
  app.run(main, flags_parser=command_line.parse_flags)
