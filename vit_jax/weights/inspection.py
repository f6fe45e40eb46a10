"""What is in weights: all arrays as they are in the file, and their model.

`python -m vit_jax.weights inspect` prints this, also of files that do not load.
"""

import contextlib
from typing import NamedTuple

import numpy as np

from vit_jax import models, storage
from vit_jax.weights import files, public, report
from vit_jax.weights import source as sources


class Array(NamedTuple):
  """What is said of an array.

  Attributes:
    name: as it is in the file.
    shape: tuple of int.
    dtype: as it is in the file.
    num_bytes: in memory.
    statistics: (min, max, mean, standard deviation) of its finite elements,
      floats; () if there are none.
    num_bad: number of elements that are nan or inf.
  """

  name: str
  shape: tuple
  dtype: np.dtype
  num_bytes: int
  statistics: tuple
  num_bad: int


def inspect(src, **options):
  """Yields lines of text: the arrays of a file or run, and their model.

  What cannot be loaded as a model is shown as well, with the reason.

  Args:
    src: see `weights.load_checkpoint`.
    **options: arguments of `source.read`.

  Raises:
    ValueError: if the arrays cannot be read.
  """
  arrays, layout = raw(src)
  lines = [statistics(name, array) for name, array in arrays.items()]
  del arrays  # loading needs the memory
  yield table(lines)
  num_bytes = sum(line.num_bytes for line in lines)
  yield f'\n{len(lines):,} arrays, {num_bytes:,} bytes, {layout}'
  bad = [line for line in lines if line.num_bad]
  if bad:
    some = ', '.join(_printable(line.name) for line in bad[:5])
    yield (
      f'WARNING: {sum(line.num_bad for line in bad):,} x nan or inf, in '
      f'{some}{", ..." if bad[5:] else ""}'
    )
  try:
    source = sources.read(src, **options)
  except ValueError as error:
    reason = '\n'.join(map(_printable, str(error).split('\n')))
    yield f'not loaded  {reason}'
    return
  height, width = source.image_size
  yield f'model       {_call(source.arguments)}'
  yield f'image size  {height} x {width}'
  yield f'parameters  {sum(x.size for x in source.params.values()):,}'
  yield f'loading     {report.counts(source.report)}'


def raw(src):
  """Returns a file's arrays as they are, dict by name, and what layout it is.

  Args:
    src: see `weights.load_checkpoint`. Of a run, its parameters, or their
      average if it kept one.

  Raises:
    ValueError: if there is nothing, or it is damaged.
  """
  is_public = str(src) in public.WEIGHTS
  path = storage.path(public.fetch(src) if is_public else src)
  if path.is_dir():
    from vit_jax.weights import orbax

    found = orbax.find(path)
    if found is not None:
      return orbax.load(found)[0], f"this project's checkpoint {found}"
    path /= 'model.safetensors'
  if not path.exists():
    sources.read(src)  # raises, and says what there could be
  arrays = files.read(path)
  kinds = [k for k, kind in sources.LAYOUTS.items() if kind.matches(arrays)]
  layout = f'layout {kinds[0]}' if kinds else 'of no known layout'
  if sources.METADATA in files.metadata(path):
    layout += ', written by vit_jax'
  return arrays, layout


def statistics(name, array):
  """Returns the Array of an array; sums are taken in float64."""
  finite = array.ravel()
  if array.dtype.kind not in 'biu':
    # 16 bits overflow, and numpy does not compute with bfloat16 everywhere.
    finite = finite.astype(np.promote_types(array.dtype, np.float32))
    finite = finite[np.isfinite(finite)]
  values = ()
  if finite.size:
    values = (
      finite.min(),
      finite.max(),
      finite.mean(dtype=np.float64),
      finite.std(dtype=np.float64),
    )
  return Array(
    name=name,
    shape=array.shape,
    dtype=array.dtype,
    num_bytes=array.nbytes,
    statistics=tuple(map(float, values)),
    num_bad=array.size - finite.size,
  )


def table(lines):
  """Returns aligned text: a heading, and a line for each Array."""
  rows = [('name', 'shape', 'dtype', 'min', 'max', 'mean', 'std', '')]
  for line in lines:
    numbers = [f'{x:.4g}' for x in line.statistics] or ['-'] * 4
    bad = f'<-- {line.num_bad:,} NAN OR INF' if line.num_bad else ''
    shape = str(line.shape)
    rows.append((_printable(line.name), shape, str(line.dtype), *numbers, bad))
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return '\n'.join(
    '  '.join(
      # Numbers to the right, so that their signs line up.
      cell.rjust(width) if 3 <= i < 7 else cell.ljust(width)
      for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ).rstrip()
    for row in rows
  )


def _call(arguments):
  """Returns the call that builds a model, without what is the default."""
  model, kept = models.build(**arguments), dict(arguments)
  for name in arguments:
    if name in ('name', 'variant', 'num_classes'):
      continue
    fewer = {k: v for k, v in kept.items() if k != name}
    with contextlib.suppress(ValueError):  # the rest may not go together
      if models.build(**fewer) == model:
        kept = fewer
  return f'build({", ".join(f"{k}={v!r}" for k, v in kept.items())})'


def _printable(text):
  # A hostile file's names could otherwise command the terminal.
  return ''.join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
