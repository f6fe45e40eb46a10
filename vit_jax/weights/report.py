"""What became of each array when weights were loaded."""

import re
from typing import NamedTuple

STATUSES = {
  'loaded': 'as it is',
  'renamed': 'under another name',
  'changed': 'computed from arrays of the file',
  'resized': 'interpolated to another grid',
  'reset': 'not taken from the file, as asked for',
  'left out': 'of no part of the model, such as a text tower',
  'missing': 'the model has it, the file has not',
  'extra': 'the file has it, the model has not',
  'misfit': 'their shapes differ',
}
ERRORS = ('missing', 'extra', 'misfit')


class Line(NamedTuple):
  """One array: what became of it.

  Attributes:
    status: a key of STATUSES.
    theirs: its name in the file, or ''.
    ours: its name in the model, or ''.
    note: shape, or what was done.
  """

  status: str
  theirs: str
  ours: str
  note: str


def counts(lines):
  """Returns text such as '150 renamed, 1 resized'."""
  number = {status: 0 for status in STATUSES}
  for line in lines:
    number[line.status] += 1
  return ', '.join(f'{n} {status}' for status, n in number.items() if n)


def table(lines):
  """Returns the lines as an aligned table; layers that agree share a line."""
  groups = {}
  for line in lines:
    theirs = re.sub(r'\d+', '#', line.theirs)
    key = line.status, theirs, line.ours, line.note
    groups.setdefault(key, []).append(line)
  rows = [('', 'in the file', 'in the model', '')]
  for (status, _, ours, note), group in groups.items():
    theirs = _span([line.theirs for line in group])
    rows.append((status, theirs or '-', ours or '-', note))
  widths = [max(len(row[i]) for row in rows) for i in range(3)]
  return '\n'.join(
    '  '.join(
      [*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3]]
    ).rstrip()
    for row in rows
  )


def _span(names):
  """Returns 'block/{0..11}/bias' of names that differ in numbers only."""
  parts = [re.split(r'(\d+)', name) for name in names]
  text = ''
  for values in zip(*parts, strict=True):
    distinct = sorted(set(values), key=lambda v: (len(v), v))
    text += (
      values[0] if len(distinct) == 1 else f'{{{distinct[0]}..{distinct[-1]}}}'
    )
  return text


def check(lines, source):
  """Raises ValueError on arrays that are missing, extra, or do not fit.

  Args:
    lines: list of Line.
    source: what was loaded, for the error.
  """
  wrong = [line for line in lines if line.status in ERRORS]
  if wrong:
    raise ValueError(
      f'{source} does not fit the model ({counts(wrong)}); nothing was '
      f'loaded.\n{table(wrong)}'
    )
