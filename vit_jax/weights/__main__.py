"""Looks into weights, converts them, and exports models.

  python -m vit_jax.weights list
  python -m vit_jax.weights inspect ViT-B_16.npz
  python -m vit_jax.weights convert ViT-B_16.npz vit_b16.safetensors
  python -m vit_jax.weights export runs/digits digits.stablehlo

SRC is a .npz or .safetensors file, a folder with model.safetensors, a run of
this project, one checkpoint of it, or a public name as `list` shows them. SRC
and DST may be at gs://. Exit code: 0, or 1 after 'Error: ...' on stderr.
"""

import argparse
import os
import re
import sys

from etils import epath

from vit_jax import command_line, storage, weights
from vit_jax.models import layers
from vit_jax.weights import (
  adapt,
  export,
  inspection,
  public,
  report,
  writing,
)
from vit_jax.weights import source as sources

_PROGRAM = 'python -m vit_jax.weights'
_MAX_SIZE = 10_000  # a slip of the finger is not to fill the memory


def main(argv):
  """Does what the words of a command line say, and prints what was done.

  Args:
    argv: list of str, such as ['convert', 'a.npz', 'b.safetensors'].

  Raises:
    SystemExit: with 'Error: ...', if something is wrong.
  """
  for stream in (sys.stdout, sys.stderr):
    stream.reconfigure(errors='backslashreplace')  # names may be any letters
  args = vars(_parser().parse_args(argv))
  command = args.pop('command')
  given = {name: value for name, value in args.items() if value is not None}
  with command_line.one_line_errors():
    try:
      for text in COMMANDS[command](**given):
        print(text, flush=True)
    except BrokenPipeError:  # `... | head` has seen enough
      os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
      sys.exit(1)


def _convert(src, dst, to=None, overwrite=False, **options):
  checkpoint = weights.load_checkpoint(src, **options)
  weights.save(
    dst,
    checkpoint.model,
    checkpoint.params,
    checkpoint.image_size,
    to,
    overwrite,
    checkpoint.labels,
    checkpoint.preprocess,
  )
  yield report.table(checkpoint.report)
  yield f'\n{src}: {report.counts(checkpoint.report)}'
  to = to or writing.SUFFIXES[epath.Path(dst).suffix]
  if advice := writing.advice(to, checkpoint.model):
    yield advice
  yield _written(dst)


def _export(src, dst, to, platforms, overwrite, **options):
  del to  # there is one kind
  checkpoint = weights.load_checkpoint(src, **options)
  export.export(dst, checkpoint, platforms, overwrite)
  height, width = checkpoint.image_size
  yield _written(dst)
  yield f'runs on  {", ".join(platforms)}'
  yield f'takes    uint8 [B, {height}, {width}, 3], RGB'
  yield 'returns  logits and representation, float32 [B, C] and [B, D]'


def _list():
  yield public.table()


COMMANDS = {
  'convert': _convert,
  'export': _export,
  'inspect': inspection.inspect,
  'list': _list,
}


def _written(path):
  path = storage.path(path)
  return f'wrote {path}, {_size(path):,} bytes'


def _size(path):
  """Returns the bytes of a file, or of all files in a folder."""
  if path.is_dir():
    return sum(map(_size, path.iterdir()))
  return path.stat().length


class _Parser(argparse.ArgumentParser):
  """A parser whose errors are one line, as those of all commands."""

  def error(self, message):
    """Exits with what is wrong, and where to read more."""
    sys.exit(f'Error: {message}; see {self.prog} --help.')


def _parser():
  """Returns the parser of all commands."""
  options = dict(
    allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser = _Parser(prog=_PROGRAM, description=__doc__, **options)
  commands = parser.add_subparsers(
    dest='command', required=True, metavar='COMMAND'
  )
  for name, (summary, details, add_arguments) in _ARGUMENTS.items():
    command = commands.add_parser(
      name, help=summary, description=f'{summary}\n\n{details}', **options
    )
    add_arguments(command)
  return parser


def _add_inspect(command):
  _add_source(command)


def _add_convert(command):
  _add_source(command)
  command.add_argument('dst', metavar='DST', help='file or folder to write')
  command.add_argument(
    '--to',
    choices=(*sources.LAYOUTS, 'orbax'),
    help='layout of DST; by default .npz is npz, .safetensors is timm, and no '
    'suffix is orbax',
  )
  _add_image_size(command)
  command.add_argument(
    '--num_classes',
    type=_count,
    metavar='N',
    help='give the model a new head for N classes, which starts at 0; 0 for '
    'no head',
  )
  command.add_argument(
    '--head',
    choices=('token', 'gap', 'map'),
    help='what represents an image, if it is not to be as in SRC',
  )
  _add_overwrite(command)


def _add_export(command):
  _add_source(command)
  command.add_argument('dst', metavar='DST', help='file to write')
  command.add_argument(
    '--to', choices=('stablehlo',), default='stablehlo', help='the default'
  )
  command.add_argument(
    '--platforms',
    type=lambda text: tuple(text.split(',')),
    default=('cpu', 'cuda', 'tpu'),
    metavar='NAMES',
    help=f'some of {",".join(export.PLATFORMS)}; by default cpu,cuda,tpu',
  )
  command.add_argument(
    '--dtype',
    choices=tuple(layers.DTYPES),
    help='of the matrix products; bfloat16 halves the file',
  )
  _add_image_size(command)
  _add_overwrite(command)


def _add_source(command):
  command.add_argument('src', metavar='SRC', help='the weights')
  command.add_argument(
    '--grid',
    type=_pair,
    metavar='RxC',
    help="rows and columns of SRC's patches, if they are no square",
  )
  command.add_argument(
    '--num_heads',
    type=_count,
    metavar='N',
    help='attention heads, which files of timm do not show',
  )


def _add_image_size(command):
  command.add_argument(
    '--image_size',
    type=_pair,
    metavar='N or HxW',
    help='pixels of the images that the model is to take; position embeddings '
    'are resized',
  )
  command.add_argument(
    '--resize',
    choices=tuple(adapt.RESIZES),
    help='how: linear (the default; corner-aligned, as the published '
    'fine-tunings did) or cubic (antialiased)',
  )


def _add_overwrite(command):
  command.add_argument(
    '--overwrite', action='store_true', help='replace DST if it exists'
  )


# Name -> summary, details, function that adds the arguments.
_ARGUMENTS = {
  'inspect': (
    'Shows all arrays of SRC, and the model that they make.',
    'Statistics are of the finite elements. What does not load is shown as\n'
    'well, with the reason, and is no error here.',
    _add_inspect,
  ),
  'convert': (
    'Writes SRC as DST: other layout, image size or head.',
    'Bit for bit, where nothing is asked to change. What became of each array\n'
    f'is printed.\n\n  {_PROGRAM} convert ViT-B_16.npz vit --to=huggingface\n'
    f'  {_PROGRAM} convert runs/digits digits.npz\n'
    f'  {_PROGRAM} convert ViT-B_16.npz b.npz --image_size=384',
    _add_convert,
  ),
  'export': (
    'Writes SRC as a program, weights included: StableHLO.',
    'DST needs JAX and flatbuffers alone, and takes any number of images:\n\n'
    "  model = jax.export.deserialize(bytearray(open(DST, 'rb').read()))\n"
    '  logits, representation = model.call(pixels)  # uint8',
    _add_export,
  ),
  'list': (
    'Shows the public weights, by name.',
    'They are downloaded when they are first used, to $VIT_JAX_CACHE or\n'
    '~/.cache/vit_jax.',
    lambda command: None,
  ),
}


def _pair(text):
  """Returns (rows, columns) of '224' or '224x160'."""
  match = re.fullmatch(r'(\d{1,5})(?:x(\d{1,5}))?', text)
  pair = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
  if not all(0 < size <= _MAX_SIZE for size in pair):
    raise argparse.ArgumentTypeError(
      f'{text!r} is no size; write 224 or 224x160, at most {_MAX_SIZE}'
    )
  return pair


def _count(text):
  """Returns an int of at least 0."""
  if not re.fullmatch(r'\d{1,7}', text):
    raise argparse.ArgumentTypeError(
      f'{text!r} is no number; write one from 0 to 9999999'
    )
  return int(text)


if __name__ == '__main__':
  main(sys.argv[1:])
