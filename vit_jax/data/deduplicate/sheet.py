"""Matches side by side, for someone to look at."""

import io

from etils import epath

from vit_jax.data.deduplicate import fingerprints

_SIZE = 128  # pixels of a picture
_CAPTION = 30
_GAP = 12
_COLUMNS = 4
MOST = 200  # pairs


def write(path, pairs):
  """Writes a PNG of pairs of images.

  Args:
    path: of the file, local or gs://.
    pairs: list of (image, image, caption); images as of
      `fingerprints.fingerprint`, captions of two short lines; at most MOST.
  """
  from PIL import Image, ImageDraw

  width, height = 2 * _SIZE + _GAP, _SIZE + _CAPTION + _GAP
  rows = max(-(-len(pairs) // _COLUMNS), 1)
  sheet = Image.new('RGB', (width * _COLUMNS, height * rows), 'white')
  draw = ImageDraw.Draw(sheet)
  for number, (first, second, caption) in enumerate(pairs):
    x, y = number % _COLUMNS * width, number // _COLUMNS * height
    for place, image in enumerate((first, second)):
      picture = fingerprints.picture(image, _SIZE)
      sheet.paste(picture, (x + place * _SIZE, y))
    draw.text((x, y + _SIZE + 2), _shown(caption), fill='black')
  file = io.BytesIO()
  sheet.save(file, 'PNG')
  epath.Path(path).write_bytes(file.getvalue())


def _shown(caption):
  """Returns what Pillow's own font has, in lines that fit."""
  lines = caption.encode('ascii', 'replace').decode().splitlines()
  return '\n'.join(line[-44:] for line in lines)
