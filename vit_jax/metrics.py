"""What a run says: the terminal, metrics.jsonl, TensorBoard.

`metrics.jsonl` has one JSON object a line: 'step', and numbers named
'section/name'. Only process 0 writes. What cannot be written, as on a full
disk, is kept in memory and written later. At gs:// the files are copied every
30 seconds, as a checkpoint is saved, and at the end, in the background: the
metrics of a run that is killed before the store took them may lack the lines
since the last copy.
"""

import contextlib
import json
import math
import shutil
import sys
import time

import jax

from vit_jax import mirror


class Writer:
  """Writes scalars; a context that leaves the files closed and whole.

  Attributes:
    goodput: what was written of it last, at the step that the run goes on
      from; None if nothing was.
  """

  def __init__(
    self, workdir, batch_size, total_steps, first_step, peak_seconds=None
  ):
    """Opens the files.

    Args:
      workdir: the run's folder, an `epath.Path`.
      batch_size: B, for images per second.
      total_steps: number of updates of the whole run.
      first_step: number of updates done so far. What metrics.jsonl says of
        later ones, and of evaluations at that step, is dropped: it is done
        again.
      peak_seconds: how long a step would take at the devices' peak, if that is
        known, for the model FLOP/s utilisation (MFU).
    """
    self._peak_seconds = peak_seconds
    self._batch_size, self._total_steps = batch_size, total_steps
    self._latest = {}  # section -> its last scalars
    self._finite_step = self._first_step = self._mark_step = first_step
    self._start = self._mark = time.perf_counter()
    self._is_writer = jax.process_index() == 0
    self._terminal, self.goodput = _Terminal(), None
    if not self._is_writer:
      return
    self._mirror = mirror.Mirror(workdir)
    self._mirror.fetch('metrics.jsonl')
    path = self._mirror.folder / 'metrics.jsonl'
    self.goodput = _drop_what_is_redone(path, first_step)
    self._lines = mirror.Outlasting(mirror.Lines(path))
    self._tensorboard = mirror.Outlasting(
      _TensorBoard(self._mirror.folder / 'tensorboard'), retry_seconds=60
    )

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    if not self._is_writer:
      return
    self._terminal.end_line()
    if failure := self._tensorboard.close():
      self.say(f'Warning: {failure}')
    failures = []
    if failure := self._lines.close():
      lost = len(self._lines.waiting)
      failures.append(f'{failure} The last {lost:,} of its lines are lost.')
    try:
      self._mirror.close()
    except OSError as error:
      failures.append(str(error))
    if failures and exception == (None, None, None):
      raise OSError(' '.join(failures))
    for failure in failures:  # what ended the run matters more
      self.say(f'Warning: {failure}')

  def start_clock(self, step):
    """Starts to count images per second; call it when compilation is over."""
    self._start = self._mark = time.perf_counter()
    self._first_step = self._mark_step = step

  def scalars(self, step, section, values):
    """Writes scalars of one section.

    Args:
      step: number of updates done.
      section: 'train', or an evaluation's name.
      values: dict of scalars, on device or host. To 'train' is added
        'images_per_second', not counting the time of evaluations, and 'mfu'
        where the devices' peak is known.

    Raises:
      FloatingPointError: if a value is nan or infinite.
    """
    values = {k: float(v) for k, v in jax.device_get(values).items()}
    bad = [
      f'{section}/{name} is {value}'
      for name, value in values.items()
      if not math.isfinite(value)
    ]
    if bad:
      raise FloatingPointError(
        f'At step {step:,} {", ".join(bad)}; all metrics were finite at step '
        f'{self._finite_step:,}. Lower config.optimizer.lr, lengthen '
        'config.optimizer.warmup_steps, or set config.optimizer.clip_norm=1.0. '
        'Checkpoints that were saved so far are kept.'
      )
    now = time.perf_counter()
    if section == 'train':
      self._finite_step = step
      if step > self._mark_step:
        rate = (step - self._mark_step) * self._batch_size / (now - self._mark)
        values['images_per_second'] = rate
        if self._peak_seconds:
          values['mfu'] = self._peak_seconds * rate / self._batch_size
    self._mark, self._mark_step = now, step
    self._latest[section] = values
    if self._is_writer:
      flat = {f'{section}/{name}': value for name, value in values.items()}
      self._show(step, section, values)
      self._warn(self._lines.add(json.dumps({'step': step} | flat) + '\n'))
      self._warn(self._tensorboard.add((step, flat)))
      self._warn(self._mirror.copy_soon())

  def flush(self):
    """Starts to bring what was written to where it outlives this process.

    When a checkpoint is saved: a run that goes on from there has the lines up
    to it if the store takes them before this process is killed.
    """
    if self._is_writer:
      self._warn(self._mirror.copy_soon(now=True))

  def say(self, *lines):
    """Prints lines."""
    if self._is_writer:
      for line in lines:
        self._terminal.line(line)

  def results(self):
    """Returns the last evaluations in words: 'test accuracy 98.3%, ...'."""
    return '; '.join(
      f'{section} {_in_words(values)}'
      for section, values in self._latest.items()
      if section not in ('train', 'goodput')
    )

  def _warn(self, failure):
    if failure:
      self.say(f'Warning: {failure} Training goes on, and tries it again.')

  def _show(self, step, section, values):
    if section == 'goodput':
      return  # said at the end
    if section != 'train':
      self.say(f'step {step:>6,}  {section}: {_in_words(values)}')
      return
    parts = [
      f'step {step:>6,}/{self._total_steps:,}',
      f'{step / self._total_steps:4.0%}',
      _in_words({k: values[k] for k in ('loss', 'accuracy') if k in values}),
    ]
    if 'images_per_second' in values:
      parts.append(f'{values["images_per_second"]:,.0f} images/s')
    if 'mfu' in values:
      parts.append(f'{values["mfu"]:.0%} MFU')
    if step > self._first_step:
      elapsed = time.perf_counter() - self._start
      rest = (self._total_steps - step) / (step - self._first_step)
      parts.append(f'ETA {duration(elapsed * rest)}')
    self._terminal.refresh('  '.join(parts))


class _TensorBoard:
  """Scalars in TensorBoard's files."""

  def __init__(self, path):
    # clu and TensorFlow are slow to import, and only this needs them.
    from clu.metric_writers import SummaryWriter

    self.path, self._open, self._writer = path, SummaryWriter, None

  def write(self, entries):
    try:
      if self._writer is None:
        self._writer = self._open(str(self.path))
      for step, scalars in entries:
        self._writer.write_scalars(step, scalars)
      self._writer.flush()
    except Exception as error:  # TensorFlow's are many, and no OSError
      self.close()  # it ends within a record: what comes next gets a file
      reason = (str(error).splitlines() or [type(error).__name__])[0]
      raise OSError(0, reason.rpartition('; ')[2]) from None

  def close(self):
    with contextlib.suppress(Exception):  # all was flushed, or is written again
      if self._writer is not None:
        self._writer.close()
    self._writer = None


class _Terminal:
  """One line that refreshes on a terminal, plain lines into a pipe."""

  def __init__(self):
    self._refreshes = sys.stdout.isatty()
    self._width = 0  # of the unfinished line

  def refresh(self, text):
    if not self._refreshes:
      print(text, flush=True)
      return
    text = text[: shutil.get_terminal_size().columns - 1]
    print('\r' + text.ljust(self._width), end='', flush=True)
    self._width = len(text)

  def line(self, text):
    self.end_line(erase=True)
    print(text, flush=True)

  def end_line(self, erase=False):
    if self._width:
      print('\r' + ' ' * self._width + '\r' if erase else '\n', end='')
    self._width = 0


def duration(seconds):
  """Returns seconds as text: '1:02:03' or '2:03'."""
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f'{hours:,}:{minutes:02}:{seconds:02}'
  return f'{minutes}:{seconds:02}'


def _in_words(values):
  return ', '.join(
    f'{name} {value:.2%}' if name == 'accuracy' else f'{name} {value:.4f}'
    for name, value in values.items()
  )


def _drop_what_is_redone(path, first_step):
  """Rewrites a metrics file up to what a run does after `first_step`.

  Returns:
    The last scalars of goodput at that step, or None.
  """
  if not path.exists():
    return None
  text = path.read_text()
  lines = [(line, _parse(line)) for line in text.splitlines()]
  goodput = None
  for _, values in lines:
    if values and values['step'] == first_step and 'goodput/step' in values:
      goodput = values
  kept = ''.join(
    line + '\n'
    for line, values in lines
    if _is_kept(values, first_step, goodput)
  )
  if kept != text:
    partial = path.with_name('metrics.jsonl.partial')
    partial.write_text(kept)
    partial.replace(path)
  if goodput is None:
    return None
  return {
    name.removeprefix('goodput/'): value for name, value in goodput.items()
  } | {'step': goodput['goodput/step']}


def _parse(line):
  """Returns the dict of a line, or None if it is damaged."""
  try:
    values = json.loads(line)
    values['step'] + 0
  except (ValueError, TypeError, KeyError):  # killed while it wrote the line
    return None
  return values


def _is_kept(values, first_step, goodput):
  if values is None or values['step'] > first_step:
    return False
  # Evaluations of that step are done again. Its last goodput has all that those
  # before it had.
  is_of_loop = 'train/loss' in values or values is goodput
  return values['step'] < first_step or is_of_loop
