"""Public weights by name: where they are, and a copy of them on this machine.

A row of `public.csv` is one set of weights and the places that have it: a path
in Google's buckets, which have refused anonymous readers since February 2026
(google-research/vision_transformer, issue 321), and repositories of Hugging
Face. All files of a row compute the same function. Hence the two rows of each
DeiT-3: big_vision's files take inputs in [-1, 1], timm's the pixels normalised
by ImageNet's mean and deviation. A row has at most one file of each suffix.
"""

import contextlib
import csv
import hashlib
import http.client
import itertools
import os
import pathlib
import sys
import time
import urllib.parse
import urllib.request
from typing import NamedTuple

from vit_jax import names
from vit_jax.weights import files

_TIMEOUT = 20  # seconds without an answer
_CHUNK = 2**20  # bytes
_GOOGLE = 'https://storage.googleapis.com/'
_HUGGING_FACE = 'https://huggingface.co/'


class Public(NamedTuple):
  """One set of public weights.

  Attributes:
    description: the model and what it was trained on.
    sources: URLs, tried in this order.
    labels: 'imagenet2012' or 'imagenet21k', whose classes the head has; None if
      the head is missing or not trained.
    image_size: height and width of the images, in pixels.
    inputs: 'imagenet' if pixels were normalised by ImageNet's mean and
      deviation; '' if they were scaled to [-1, 1].
    sha256: hexadecimal digests of the sources, None for those not known.
  """

  description: str
  sources: tuple[str, ...]
  labels: str | None
  image_size: int
  sha256: tuple[str | None, ...] = ()
  inputs: str = ''


def _read_catalogue():
  """Returns dict from name to Public, in the order of the file."""
  path = pathlib.Path(__file__).with_name('public.csv')
  with path.open(newline='') as file:
    return {row['name']: _public(row) for row in csv.DictReader(file)}


def _public(row):
  sources = []
  if row['bucket']:
    sources.append(_GOOGLE + urllib.parse.quote(row['bucket']))
  for repository in row['huggingface'].split():
    repository, _, revision = repository.partition('@')
    revision = urllib.parse.quote(revision or 'main', safe='')
    sources.append(
      f'{_HUGGING_FACE}{repository}/resolve/{revision}/model.safetensors'
    )
  return Public(
    row['description'],
    tuple(sources),
    row['labels'] or None,
    int(row['image_size']),
    inputs=row['inputs'] or '',
  )


WEIGHTS = _read_catalogue()


def fetch(name, cache=None):
  """Returns the `pathlib.Path` of the weights' file, after downloading it once.

  Args:
    name: a key of WEIGHTS.
    cache: folder of the files; by default $VIT_JAX_CACHE or ~/.cache/vit_jax.

  Raises:
    ValueError: if the name is unknown, the file in the cache has changed since
      it came there, the cache cannot be written, or no source answers: with the
      reason for each, and how to get the file by hand.
  """
  public = names.lookup(WEIGHTS, name, 'weights')
  places = _places(name, public, cache)
  for _, path, digest in places:
    if path.exists():
      _check_cached(path, digest)
      return path
  folder = places[0][1].parent
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise ValueError(
      f'{folder} cannot be made ({error.strerror}); set VIT_JAX_CACHE to a '
      'folder that can be written.'
    ) from None
  reasons = []
  for url, path, digest in places:
    try:
      _download(url, path, digest)
      return path
    except (OSError, ValueError, http.client.HTTPException) as error:
      reasons.append(f'\n  {url}: {error}')
  raise ValueError(
    f'The weights {name!r} could not be downloaded:{"".join(reasons)}\n'
    'Get one of these files in another way, such as a browser, put it at '
    'exactly this path, and run again:'
    f'{"".join(_by_hand(url, path) for url, path, _ in places)}'
  )


def table(cache=None):
  """Returns the catalogue as aligned text: a heading, and a line a name.

  Args:
    cache: as in `fetch`.
  """
  rows = [('name', 'description', 'pixels', 'sources', 'cached')]
  for name, public in WEIGHTS.items():
    places = _places(name, public, cache)
    hosts = [urllib.parse.urlsplit(url).hostname for url, _, _ in places]
    cached = any(path.exists() for _, path, _ in places)
    hosts, cached = ', '.join(hosts), 'yes' if cached else 'no'
    size = str(public.image_size)
    rows.append((name, public.description, size, hosts, cached))
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return '\n'.join(
    '  '.join(
      cell.ljust(width) for cell, width in zip(row, widths, strict=True)
    ).rstrip()
    for row in rows
  )


def _places(name, public, cache):
  """Returns (URL, path in the cache, digest or None) of each source."""
  default = os.environ.get('VIT_JAX_CACHE') or '~/.cache/vit_jax'
  folder = pathlib.Path(cache or default).expanduser().absolute()
  return [
    (url, folder / (name + pathlib.PurePosixPath(url).suffix), digest)
    for url, digest in itertools.zip_longest(public.sources, public.sha256)
  ]


def _digest_path(path):
  return path.with_name(path.name + '.sha256')


def _check_cached(path, digest):
  """Raises ValueError unless a file is what it was when it came.

  A file that was put there by hand is taken as it is, and its digest written.
  """
  with path.open('rb') as file:
    found = hashlib.file_digest(file, 'sha256').hexdigest()
  record = _digest_path(path)
  if digest is None and record.exists():
    digest = record.read_text().partition(' ')[0].strip()
  if digest not in (None, found):
    raise ValueError(
      f'{path} has changed: its sha256 is {found}, not {digest}. Delete it and '
      f'{record.name}, and run again.'
    )
  if not record.exists():
    with contextlib.suppress(OSError):  # a shared cache may be read-only
      _write_record(path, found)


def _write_record(path, digest):
  # The format of the program sha256sum, whose --check then works.
  _digest_path(path).write_text(f'{digest}  {path.name}\n')


def _download(url, path, digest):
  """Puts a URL's file at the path, whole and checked, or raises."""
  # Several processes may want it at once; each has its own partial file.
  partial = path.with_name(f'{path.stem}.{os.getpid()}.partial{path.suffix}')
  try:
    found = _stream(url, partial)
    if digest not in (None, found):
      raise ValueError(f'its sha256 is {found}, not {digest}')
    files.headers(partial)  # else a page that says sorry is kept as weights
    _write_record(path, found)
    partial.replace(path)
  finally:
    partial.unlink(missing_ok=True)


def _stream(url, path):
  """Copies a URL's bytes to a file; returns their sha256."""
  request = urllib.request.Request(url, headers={'User-Agent': 'vit_jax'})
  hashed, size, shown = hashlib.sha256(), 0, 0.0
  with (
    urllib.request.urlopen(request, timeout=_TIMEOUT) as response,
    path.open('wb') as file,
  ):
    length = response.headers['Content-Length']
    while chunk := response.read(_CHUNK):
      file.write(chunk)
      hashed.update(chunk)
      size += len(chunk)
      if sys.stderr.isatty() and time.monotonic() > shown + 0.5:
        shown = time.monotonic()
        total = f' of {int(length) / 1e6:,.0f}' if length else ''
        print(
          f'\r{url.rpartition("/")[2]}: {size / 1e6:,.0f}{total} MB',
          end='',
          file=sys.stderr,
          flush=True,
        )
  if shown:
    print(file=sys.stderr)
  if length and size != int(length):
    raise ValueError(f'it ended after {size:,} of {int(length):,} bytes')
  return hashed.hexdigest()


def _by_hand(url, path):
  """Returns the lines that tell how to get a URL's file to its path."""
  lines = [f'\n  {path}', f'    curl -fL -o {path} {url}']
  if url.startswith(_GOOGLE):
    name = urllib.parse.unquote(url.removeprefix(_GOOGLE))
    lines.append(f'    gsutil cp gs://{name} {path}')
  if url.startswith(_HUGGING_FACE):
    repository, _, rest = url.removeprefix(_HUGGING_FACE).partition('/resolve/')
    revision = urllib.parse.unquote(rest.partition('/')[0])
    lines.append(
      f'    huggingface-cli download {repository} model.safetensors '
      f'--revision {revision} --local-dir {path.parent} && '
      f'mv {path.with_name("model.safetensors")} {path}'
    )
  return '\n'.join(lines)
