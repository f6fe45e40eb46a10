"""Runs a probe in a process of its own, which can be ended if it hangs."""

import json
import os
import signal
import subprocess
import sys

from vit_jax.doctor.finding import last_line


class Probe:
  """A module that runs in the background and prints one line of JSON."""

  def __init__(self, module, *args):
    self._process = subprocess.Popen(
      [sys.executable, '-m', module, *args],
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      errors='replace',
      start_new_session=True,  # what it starts ends with it
    )

  def result(self, timeout):
    """Returns (what it printed, its log).

    The first is {'error': text} if it ended without printing anything, and
    None if it had to be ended after `timeout` seconds.
    """
    try:
      out, log = self._process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
      os.killpg(self._process.pid, signal.SIGKILL)
      _, log = self._process.communicate()
      return None, log
    try:
      return json.loads(out.strip().splitlines()[-1]), log
    except (IndexError, ValueError):
      code = self._process.returncode
      reason = last_line(log) or 'it said nothing'
      return {'error': f'it ended with exit code {code}: {reason}'}, log
