"""What a check has found."""

import subprocess
from typing import NamedTuple

OK, WARN, FAIL = 'ok', 'warn', 'FAIL'


class Finding(NamedTuple):
  """One line of the doctor's report.

  Attributes:
    name: what was checked.
    status: OK; WARN, a run may go on; FAIL, it cannot, or not as it should.
    text: what was found.
    remedy: what to do about it; '' if it is ok.
  """

  name: str
  status: str
  text: str
  remedy: str = ''


def last_line(text):
  """Returns the last line that says something, of a stack for example."""
  lines = [line.strip() for line in text.splitlines() if line.strip()]
  return lines[-1] if lines else ''


def output_of(*command, timeout=20):
  """Returns what a program prints, or None if it is missing or fails."""
  try:
    result = subprocess.run(
      command, capture_output=True, text=True, timeout=timeout, check=True
    )
  except (OSError, subprocess.SubprocessError):
    return None
  return result.stdout.strip()
