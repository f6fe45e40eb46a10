"""What the tests against timm and transformers need: see `make parity`."""

import functools
import os

# Before Hugging Face's libraries are imported: nothing may ask the network.
os.environ['HF_HUB_OFFLINE'] = '1'

import pytest

TOLERANCE = 1e-4
_OPERATOR = '(Tensor dets, Tensor scores, float iou_threshold) -> Tensor'


def pytest_ignore_collect(config):
  """Spares all but `make parity` the import of torch."""
  if config.getoption('markexpr') != 'parity':
    return True
  _make_timm_importable()
  return None


@functools.cache
def _make_timm_importable():
  """Imports torchvision, whose operators timm's models do not use.

  From PyPI it is built for CUDA. Beside a CPU build of torch its operators do
  not load, and the import fails unless some of them are declared.

  Returns:
    What declares them, as long as it lives.
  """
  import torch

  torch.set_num_threads(1)  # the other core is the other worker's
  library = torch.library.Library('torchvision', 'FRAGMENT')
  try:
    import torchvision
  except RuntimeError:
    for name in ('nms', 'qnms'):
      library.define(name + _OPERATOR)
    import torchvision  # noqa: F401
  return library


@pytest.fixture
def agree(record_property):
  """Returns a function that compares outputs, and notes their differences."""

  def check(ours, theirs, what):
    """Raises AssertionError if outputs differ by more than the tolerance.

    Args:
      ours: dict from name to array.
      theirs: dict from name to array.
      what: (format, direction), for the summary.
    """
    from parity.both import differences

    found = differences(ours, theirs)
    record_property('parity', [*what, found])
    assert all(value < TOLERANCE for value in found.values()), found

  return check


def pytest_terminal_summary(terminalreporter):
  """Prints the largest difference of each format and direction."""
  largest, counts = {}, {}
  for reports in terminalreporter.stats.values():
    for report in reports:
      for name, value in getattr(report, 'user_properties', ()):
        if name != 'parity' or report.when != 'call':
          continue
        *what, found = value
        row = largest.setdefault(tuple(what), {})
        counts[tuple(what)] = counts.get(tuple(what), 0) + 1
        for output, difference in found.items():
          row[output] = max(row.get(output, 0.0), difference)
  if not largest:
    return
  terminalreporter.section('largest absolute differences')
  for what, row in sorted(largest.items()):
    cells = ', '.join(f'{name} {value:.1e}' for name, value in row.items())
    label = f'{what[0]:17} {what[1]:14} {counts[what]:2} cases'
    terminalreporter.write_line(f'{label}  {cells}')
