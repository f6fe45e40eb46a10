"""Traces of steps, for TensorBoard's profile plugin."""

import tempfile

import jax
from etils import epath


class Profiler:
  """Traces some steps of this process.

  The trace is put into `tensorboard/plugins/profile` of the run's folder, where
  TensorBoard shows it if xprof is installed (`pip install xprof`).
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
    self._workdir = workdir
    self._start, self._num_steps = start, num_steps
    self._done, self._folder = 0, None

  def before_step(self, result):
    """Starts or ends the trace where it is time.

    Args:
      result: of the step before, for which is waited at both ends.

    Returns:
      A list of a line of text if a trace is written, else an empty one.
    """
    step, self._done = self._done, self._done + 1
    if self._num_steps and step == self._start:
      jax.block_until_ready(result)
      self._folder = tempfile.TemporaryDirectory(prefix='vit_jax-')
      jax.profiler.start_trace(self._folder.name)
    if self._folder and step == self._start + self._num_steps:
      return self.stop(result)
    return []

  def stop(self, result=None):
    """Ends the trace if one is running; returns as `before_step`."""
    if not self._folder:
      return []
    jax.block_until_ready(result)
    jax.profiler.stop_trace()
    # JAX writes to local folders only.
    target = self._workdir / 'tensorboard'
    with self._folder as folder:
      for path in epath.Path(folder).glob('plugins/profile/*/*'):
        to = target / path.relative_to(folder)
        to.parent.mkdir(parents=True, exist_ok=True)
        path.copy(to)
    self._folder = None
    return [
      f'Traced {self._num_steps} steps; `pip install xprof`, and TensorBoard '
      f'shows them under Profile: {target}'
    ]
