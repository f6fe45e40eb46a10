"""Manifests: files that list images and their labels.

A .csv file has the columns path and label, a name or a number from 0; or, of
several labels an image, labels, joined by ';'. A .jsonl file has one
{"path": ..., "label": ...} or {"path": ..., "labels": [...]} a line. Paths are
relative to the manifest, or absolute, or gs://. A column or field split is
optional.
"""

import csv
import io
import json
import re
from typing import NamedTuple

from vit_jax import storage

EXTENSIONS = ('.csv', '.jsonl')
_NUMBER = re.compile(r'0|-?[1-9][0-9]{0,99}')  # '01' is another text than '1'


class Row(NamedTuple):
  """A line of a manifest.

  Attributes:
    line: its number, from 1.
    split: str, or None if the manifest does not say.
    path: of the image, as it is written there.
    labels: list of int or of str.
    many: whether it is a list there, of any length.
  """

  line: int
  split: str | None
  path: str
  labels: list
  many: bool


def rows(path):
  """Yields the Rows of a manifest.

  Raises:
    ValueError: naming the line, on anything that cannot be understood.
  """
  read = _csv_rows if path.lower().endswith('.csv') else _jsonl_rows
  try:
    with _open(path) as file:
      for line, row in read(file, path):
        yield _row(line, row, f'{path}, line {line}')
  except OSError as error:
    raise ValueError(f'{path}: {error.strerror or error}.') from None
  except UnicodeDecodeError:
    raise ValueError(f'{path} is not text in UTF-8.') from None
  except csv.Error as error:
    raise ValueError(f'{path} is no table: {error}.') from None


def _open(path):
  if storage.is_remote(path):
    with storage.errors(path):
      text = storage.path(path).read_text()
    return io.StringIO(text.removeprefix('\ufeff'))
  return open(path, encoding='utf-8-sig', newline='')


def _row(line, row, where):
  """Returns a Row of what is written, or raises ValueError."""
  many = 'labels' in row
  if 'path' not in row or ('label' in row) == many:
    raise ValueError(f'{where}: it needs path, and either label or labels.')
  path, split = row['path'], row.get('split') or None
  labels = row['labels'] if many else [row['label']]
  for name, value in dict(path=path, split=split or '').items():
    if not isinstance(value, str) or '\0' in value:
      raise ValueError(f'{where}: {name} is not a text.')
  if split and (not re.fullmatch(r'\w{1,100}', split) or split == 'all'):
    raise ValueError(
      f'{where}: split={split[:100]!r} is no name of a split; use up to 100 '
      "letters, digits and '_', but not 'all', which is every image."
    )
  if not path:
    raise ValueError(f'{where}: path is empty.')
  if not isinstance(labels, list):
    raise ValueError(f'{where}: labels is not a list.')
  if any(x is None or x == '' for x in labels):
    raise ValueError(f'{where}: a label is missing.')
  if not all(type(x) in (int, str) for x in labels):
    raise ValueError(f'{where}: labels are names or whole numbers.')
  return Row(line, split, path, labels, many)


def _csv_rows(file, path):
  reader = csv.DictReader(file, skipinitialspace=True)
  if not reader.fieldnames:
    return
  columns = reader.fieldnames = [name.strip() for name in reader.fieldnames]
  if 'path' not in columns or ('label' in columns) == ('labels' in columns):
    raise ValueError(
      f'{path}: its columns are {", ".join(map(repr, columns))}; it needs path '
      'and either label or labels, named in the first line, commas between.'
    )
  for row in reader:
    if row.get('labels') is not None:
      row['labels'] = [_int_or_name(x) for x in row['labels'].split(';') if x]
    if row.get('label') is not None:
      row['label'] = _int_or_name(row['label'])
    if row.get('split'):
      row['split'] = row['split'].strip()
    yield reader.line_num, row


def _int_or_name(text):
  text = text.strip()
  return int(text) if _NUMBER.fullmatch(text) else text


def _jsonl_rows(file, path):
  for line, text in enumerate(file, 1):
    if not text.strip():
      continue
    try:
      row = json.loads(text)
    except (ValueError, RecursionError):
      row = None
    if not isinstance(row, dict):
      raise ValueError(f'{path}, line {line}: it is not a JSON object.')
    yield line, row
