"""How far a long command is: a line that refreshes, or one now and then."""

import shutil
import sys
import time

_REFRESH = 0.5  # seconds, on a terminal
_PRINT = 30  # seconds, into a file
_SHOWN = 10  # bad ones


class Line:
  """The progress of `total` images, on stderr.

  Args:
    title: what they are.
    total: how many, or None if that is not known.
  """

  def __init__(self, title, total=None):
    self._title, self._total = title, total
    self._refreshes = sys.stderr.isatty()
    self._done = self._bad = self._new = self._width = 0
    self._start = self._shown = time.monotonic()

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    if self._width:
      print(file=sys.stderr)

  def add(self, count=1):
    """Says that some more are done."""
    self._done += count
    self._new += count
    now = time.monotonic()
    if now > self._shown + (_REFRESH if self._refreshes else _PRINT):
      self._shown = now
      self._show(now)

  def at(self, done):
    """Says how many are done, some of them perhaps by an earlier run."""
    self._done = max(self._done, done)

  def bad(self, text):
    """Shows a bad one; of many, only the first."""
    self._bad += 1
    if self._bad > _SHOWN:
      return
    if self._width:
      print('\r' + ' ' * self._width + '\r', end='', file=sys.stderr)
    print(f'bad: {text}', file=sys.stderr, flush=True)

  def _show(self, now):
    rate = self._new / (now - self._start)
    of = f' of {self._total:,}' if self._total else ''
    text = f'{self._title}: {self._done:,}{of}, {rate:,.0f} images/s'
    if self._total:
      left = max(self._total - self._done, 0) / rate
      text += f', {left / 60:,.0f} min left'
    if self._bad:
      text += f', {self._bad:,} bad'
    if not self._refreshes:
      print(text, file=sys.stderr, flush=True)
      return
    text = text[: shutil.get_terminal_size().columns - 1]
    print('\r' + text.ljust(self._width), end='', file=sys.stderr, flush=True)
    self._width = len(text)
