"""Data sets, their order and their preprocessing."""

import contextlib
import functools
import os
import sys
import tempfile


class _Tensorflow:
  """The tensorflow module, imported when its first attribute is needed.

  The import takes seconds, and models and train steps do without it.
  """

  def __getattr__(self, name):
    return getattr(_load_tensorflow(), name)


tf = _Tensorflow()


@functools.cache
def _load_tensorflow():
  with _quiet_stderr():
    import tensorflow

    # Left alone, it claims the GPU memory that JAX is about to use.
    tensorflow.config.set_visible_devices([], 'GPU')
    tensorflow.constant(0)  # looks for devices, and says so
  return tensorflow


@contextlib.contextmanager
def _quiet_stderr():
  """Keeps what native code writes to stderr back, unless there is an error.

  Starting TensorFlow prints complaints about absent GPUs that no environment
  variable turns off, and that make users look for a fault of their own.
  """
  sys.stderr.flush()
  stderr = os.dup(2)
  with tempfile.TemporaryFile() as held_back:
    os.dup2(held_back.fileno(), 2)
    try:
      yield
    except BaseException:
      held_back.seek(0)
      os.write(stderr, held_back.read())
      raise
    finally:
      os.dup2(stderr, 2)
      os.close(stderr)
