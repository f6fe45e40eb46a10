"""Models as files that need none of this code: StableHLO, weights included.

  export.export('vit.stablehlo', weights.load_checkpoint('ViT-B_16.npz'))
  logits, representation = export.read('vit.stablehlo')(pixels)

With JAX and flatbuffers alone:
`jax.export.deserialize(bytearray(file_bytes)).call(pixels)`.
JAX promises to read such files for six months, see "Compatibility guarantees"
at docs.jax.dev/en/latest/export/export.html. They are programs: read only files
from people whom you would let run code.
"""

import importlib.util
import re

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from vit_jax import models, storage
from vit_jax.weights import describe

PLATFORMS = ('cpu', 'cuda', 'rocm', 'tpu')
# A flatbuffer, which the file is, cannot be larger; the program itself takes
# less than the rest.
_MAX_BYTES = 2**31 - 2**26


def export(path, checkpoint, platforms=('cpu', 'cuda', 'tpu'), overwrite=False):
  """Writes a model with its weights, as one file that JAX can run.

  The file holds a function from pixels, uint8 [B, height, width, 3] in RGB, to
  logits, float32 [B, C] (None without classes), and the representation that
  they are computed from, float32 [B, D]. B is free, the size of images is the
  checkpoint's. Exporting takes memory of about seven times the file's size.

  Args:
    path: where to, local or gs://; any suffix. It is there as a whole or not at
      all.
    checkpoint: a `weights.Checkpoint`.
    platforms: names in PLATFORMS; the file runs on all of these.
    overwrite: whether an existing file may be replaced.

  Raises:
    ValueError: on a platform that does not exist, a model without head, weights
      that are too large, or a path that cannot be written.
  """
  path = storage.path(path)
  _check(path, checkpoint, platforms, overwrite)
  params = stored(checkpoint)
  check_size(path, params)

  def forward(pixels):
    x = models.scale_pixels(pixels)
    logits, features = checkpoint.model.apply({'params': params}, x)
    return logits, features['representation']

  (b,) = jax.export.symbolic_shape('b')
  pixels = jax.ShapeDtypeStruct((b, *checkpoint.image_size, 3), jnp.uint8)
  exported = jax.export.export(jax.jit(forward), platforms=platforms)(pixels)
  _write(path, exported.serialize(), overwrite)


def read(path):
  """Returns a function: pixels -> (logits, representation), as `export` says.

  It is compiled for each number of images B that it is called with.

  Args:
    path: a file that `export` wrote, local or gs://. It is a program, to be
      trusted like one.

  Raises:
    ValueError: if there is no such file, or it is another one or damaged; later
      on, if the function is called with other than pixels of that size.
  """
  path = storage.path(path)
  try:
    exported = jax.export.deserialize(bytearray(path.read_bytes()))
    (aval,) = exported.in_avals
    _, height, width, channels = aval.shape
  except Exception as error:  # a damaged flatbuffer may raise anything
    reason = str(error).partition('\n')[0] or type(error).__name__
    raise ValueError(
      f'{path} is no model that vit_jax has exported ({reason}); write it with '
      'python -m vit_jax.weights export.'
    ) from None
  run = jax.jit(exported.call)

  def call(pixels):
    shape, dtype = np.shape(pixels), getattr(pixels, 'dtype', type(pixels))
    size = height, width, channels
    if (
      dtype != np.uint8 or len(shape) != 4 or shape[1:] != size or not shape[0]
    ):
      raise ValueError(
        f'pixels are {dtype} of shape {shape}, but {path} takes uint8 [B, '
        f'{height}, {width}, {channels}] with B at least 1; resize the images, '
        'or export the model with another image_size.'
      )
    return run(pixels)

  return call


def _check(path, checkpoint, platforms, overwrite):
  unknown = [name for name in platforms if name not in PLATFORMS]
  if unknown or not platforms or len(set(platforms)) != len(platforms):
    raise ValueError(
      f'platforms={",".join(platforms)!r} is not some of '
      f'{", ".join(PLATFORMS)}, each once; name those that are to run it.'
    )
  if getattr(checkpoint.model, 'head', '') == 'none':
    raise ValueError(
      "The model has head='none', so it has no representation to export; load "
      "it with head='gap'."
    )
  if path.exists() and not overwrite:
    raise ValueError(
      f'{path} exists, and is not to be overwritten; choose another name.'
    )
  if importlib.util.find_spec('flatbuffers') is None:
    raise ValueError('jax.export needs flatbuffers; pip install flatbuffers.')


def stored(checkpoint):
  """Returns the parameters as they are written: bfloat16 where that is exact.

  A bfloat16 model rounds the kernels of its matrix products anyway. Those of
  ResNets are standardised before that, in float32.
  """
  if jnp.dtype(checkpoint.model.dtype) == jnp.float32:
    return checkpoint.params
  kernels = re.compile(r'(?!stem/|backbone/).*kernel')
  return describe.unflatten(
    {
      name: array.astype(jnp.bfloat16) if kernels.fullmatch(name) else array
      for name, array in describe.flatten(checkpoint.params).items()
    }
  )


def check_size(path, params):
  """Raises ValueError if parameters do not fit in one file."""
  size = sum(array.nbytes for array in jax.tree.leaves(params))
  if size <= _MAX_BYTES:
    return
  dtypes = {array.dtype for array in jax.tree.leaves(params)}
  advice = 'export a smaller model'
  if jnp.bfloat16 not in dtypes:
    advice = (
      "load it with dtype='bfloat16' (--dtype=bfloat16), which halves them, or "
      f'{advice}'
    )
  raise ValueError(
    f'{path}: the weights take {size:,} bytes, but an exported file can have '
    f'at most {_MAX_BYTES:,}; {advice}.'
  )


def _write(path, data, overwrite):
  try:
    with storage.whole_file(path) as partial:
      partial.write_bytes(data)
  except Exception as error:  # buckets have many kinds
    reason = storage.explain(error, path)
    raise ValueError(
      f'{path} cannot be written: {reason}; mend that, or choose another name.'
    ) from None
