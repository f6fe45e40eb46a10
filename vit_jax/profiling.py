"""Traces of steps, for TensorBoard's profile plugin."""

import tempfile

import jax
from etils import epath


class Profiler:
  """Traces some steps of process 0; a context that ends what is running.

  The trace is put into `tensorboard/plugins/profile` of the run's folder, where
  TensorBoard shows it if xprof is installed (`pip install xprof`). One that
  cannot be written is told, and the run goes on.
  """

  def __init__(self, workdir, start=10, num_steps=0):
    """Checks what is to be traced.

    Args:
      workdir: the run's folder, an `epath.Path`.
      start: number of steps that this process makes before it traces. The
        first of them fill buffers, and are not typical.
      num_steps: how many it traces; 0 for none.

    Raises:
      ValueError: on negative numbers.
    """
    for name, value in dict(start=start, num_steps=num_steps).items():
      if not isinstance(value, int) or value < 0:
        raise ValueError(
          f'config.profile.{name}={value!r} is no number of steps; use 0 or '
          'more.'
        )
    self._workdir, self._start = workdir, start
    self._num_steps = num_steps if jax.process_index() == 0 else 0
    self._done, self._folder = 0, None

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    if self._folder:
      self._stop()

  def before_step(self, result):
    """Starts or ends the trace where it is time; returns lines to say.

    Args:
      result: of the step before, for which is waited at both ends.
    """
    step, self._done = self._done, self._done + 1
    if self._num_steps and step == self._start:
      jax.block_until_ready(result)
      self._folder = tempfile.TemporaryDirectory(prefix='vit_jax-')
      jax.profiler.start_trace(self._folder.name)
    if self._folder and step == self._start + self._num_steps:
      return self.end(result)
    return []

  def end(self, result=None):
    """Ends the trace if one is running; returns lines to say, as above."""
    if self._folder:
      jax.block_until_ready(result)
      return [self._stop()]
    if self._num_steps and self._done <= self._start:
      return [
        f'No step was traced: this process made {self._done:,}, and '
        f'config.profile.start={self._start:,}.'
      ]
    return []

  def _stop(self):
    folder, self._folder = self._folder, None
    target = self._workdir / 'tensorboard'
    with folder as name:
      try:
        jax.profiler.stop_trace()
        # JAX writes to local folders only.
        for path in epath.Path(name).glob('plugins/profile/*/*'):
          to = target / path.relative_to(name)
          to.parent.mkdir(parents=True, exist_ok=True)
          path.copy(to)
      except Exception as error:  # of the disk, the store or the profiler
        return f'WARNING: the trace of the steps is lost: {error}'
    return (
      f'Traced {self._num_steps} steps; `pip install xprof`, and TensorBoard '
      f'shows them under Profile: {target}'
    )
