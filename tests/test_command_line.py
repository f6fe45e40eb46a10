import math

import pytest

from vit_jax import command_line, names


def test_our_errors_end_the_program_in_one_line():
  message = "^Error: x='a' is unknown"
  with pytest.raises(SystemExit, match=message), command_line.one_line_errors():
    names.lookup({'b': 1}, 'a', 'x')


def test_the_errors_of_others_keep_their_stack():
  message = 'math domain error|nonnegative'
  with pytest.raises(ValueError, match=message), command_line.one_line_errors():
    math.sqrt(-1)
