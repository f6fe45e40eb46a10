"""Reads tar files as a stream of regular files, and nothing else of them.

Nothing is ever extracted: names are only looked at, links and devices are
passed over, and no size is believed that the file itself does not bear out.
Long names of GNU and PAX headers are not put together; ImageNet has none.
Python's tarfile takes damage behind the first member for the end of the file,
so that images would be missing without a word.
"""

import contextlib
import gzip
import zlib
from typing import NamedTuple

_BLOCK = 512
_REGULAR = (b'0', b'\0', b'7')
# What reading a damaged or cut file raises.
ERRORS = (OSError, EOFError, zlib.error)


class Member(NamedTuple):
  """A regular file: its name, where its bytes are, and how many."""

  name: str
  start: int
  size: int


@contextlib.contextmanager
def open_file(path):
  """Gives an epath.Path opened for reading, decompressed if it is gzip."""
  with path.open('rb') as file:
    is_gzip = file.read(2) == b'\x1f\x8b'
    file.seek(0)
    if is_gzip:
      with gzip.GzipFile(fileobj=file) as content:
        yield content
    else:
      yield file


def members(file, where, start=0, end=None):
  """Yields the Members of a tar file, or of one inside another.

  Args:
    file: seekable binary file. Seeking goes forward only, as long as the caller
      does not go back.
    where: what to call it in errors.
    start: where the tar begins in the file.
    end: where it ends, or None.

  Raises:
    ValueError: if it is damaged or cut short.
  """
  position = start
  while end is None or position < end:
    header = read(file, position, _BLOCK, where)
    if not any(header):  # two blocks of zeros mark the end; one is enough
      return
    if not _is_header(header):
      raise ValueError(
        f'{where} is no tar file, or is damaged at byte {position:,}; download '
        'it again.'
      )
    size = _number(header[124:136])
    data = position + _BLOCK
    if size < 0 or (end is not None and data + size > end):
      raise ValueError(
        f'{where} is damaged at byte {position:,}: a file of {size:,} bytes '
        'does not fit; download it again.'
      )
    if header[156:157] in _REGULAR:
      yield Member(_name(header), data, size)
    position = data + -(-size // _BLOCK) * _BLOCK


def read(file, start, size, where):
  """Returns bytes of a file; raises ValueError if it ends before them."""
  try:
    file.seek(start)
    found = file.read(size)
  except ERRORS as error:
    raise ValueError(f'{where} cannot be read: {error}.') from None
  if len(found) != size:
    raise ValueError(f'{where} is cut short; download it again.')
  return found


def _is_header(header):
  blank = header[:148] + b' ' * 8 + header[156:]
  return _number(header[148:156]) == sum(blank)


def _number(field):
  """Returns the int of octal digits, or of GNU's binary form; -1 if none."""
  if field[0] & 0x80:
    return int.from_bytes(field, 'big') & ((1 << (8 * len(field) - 1)) - 1)
  try:
    return int(field.strip(b' \0') or b'0', 8)
  except ValueError:
    return -1


def _name(header):
  name = header[:100].partition(b'\0')[0]
  if header[257:263] == b'ustar\0':
    prefix = header[345:500].partition(b'\0')[0]
    name = prefix + b'/' + name if prefix else name
  # It may be shown on a terminal, which obeys control characters.
  text = name.decode('utf-8', 'replace')
  return ''.join(c if c.isprintable() else '?' for c in text)
