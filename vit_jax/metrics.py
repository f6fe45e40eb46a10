"""What a run says: the terminal, metrics.jsonl, TensorBoard.

`metrics.jsonl` has one JSON object a line: 'step', and numbers named
'section/name'. Only process 0 writes.
"""

import json
import math
import shutil
import sys
import time

import jax


class Writer:
  """Writes scalars; a context that leaves the files closed and whole."""

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
    self._terminal = _Terminal()
    if not self._is_writer:
      return
    self._path = workdir / 'metrics.jsonl'
    _drop_what_is_redone(self._path, first_step)
    self._file = self._path.open('a')
    # clu and TensorFlow are slow to import, and only this needs them.
    from clu.metric_writers import AsyncWriter, SummaryWriter

    self._tensorboard = AsyncWriter(SummaryWriter(str(workdir / 'tensorboard')))

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    if self._is_writer:
      self._terminal.end_line()
      self._file.close()
      self._tensorboard.close()

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
      self._file.write(json.dumps({'step': step} | flat) + '\n')
      self._file.flush()
      self._tensorboard.write_scalars(step, flat)
      self._show(step, section, values)

  def say(self, text):
    """Prints a line."""
    if self._is_writer:
      self._terminal.line(text)

  def results(self):
    """Returns the last evaluations in words: 'test accuracy 98.3%, ...'."""
    return '; '.join(
      f'{section} {_in_words(values)}'
      for section, values in self._latest.items()
      if section != 'train'
    )

  def _show(self, step, section, values):
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
  """Rewrites a metrics file up to what a run does after `first_step`."""
  if not path.exists():
    return
  text = path.read_text()
  kept = ''.join(
    line + '\n' for line in text.splitlines() if _is_kept(line, first_step)
  )
  if kept != text:
    partial = path.with_name('metrics.jsonl.partial')
    partial.write_text(kept)
    partial.replace(path)


def _is_kept(line, first_step):
  try:
    values = json.loads(line)
    step = values['step']
  except (ValueError, TypeError, KeyError):  # killed while it wrote the line
    return False
  return step < first_step or (step == first_step and 'train/loss' in values)
