"""Compiled programs as XLA writes them: `compiled.as_text()`."""

import math
import re
from typing import NamedTuple

_BYTES = {
  'pred': 1, 's4': 0.5, 'u4': 0.5, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2,
  'bf16': 2, 'f16': 2, 's32': 4, 'u32': 4, 'f32': 4, 's64': 8, 'u64': 8,
  'f64': 8, 'c64': 8, 'c128': 16,
}  # fmt: skip
_ARRAY = re.compile(r'\b([a-z]+\d*)\[([\d,]*)\](?:\{([^}]*)\})?')
_HEADER = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\{$')
_INSTRUCTION = re.compile(r'^\s+(ROOT )?%?([\w.\-]+) = (.*)$')
_OPCODE = re.compile(r'(?:^|\s)([a-z][\w\-]*)\(')


class Instruction(NamedTuple):
  """One line of a program.

  Attributes:
    name: unique within its computation.
    shape: of the result, as text; of a tuple if there are several.
    opcode: such as 'fusion'.
    operands: names; of a constant or parameter, its value or number.
    attributes: all that follows the operands.
    is_root: whether its result is that of the computation.
  """

  name: str
  shape: str
  opcode: str
  operands: tuple[str, ...]
  attributes: str
  is_root: bool

  def attribute(self, pattern):
    """Returns the first group of a regex in the attributes, or None."""
    found = re.search(pattern, self.attributes)
    return found and found[1]


def parse(text):
  """Returns {computation: {name: Instruction}}, and the name of the entry.

  Raises:
    ValueError: if the text has no entry.
  """
  computations, entry, current = {}, None, {}
  for line in text.splitlines():
    header = _HEADER.match(line)
    if header:
      current = computations.setdefault(header[2], {})
      entry = header[2] if header[1] else entry
      continue
    found = _INSTRUCTION.match(line)
    opcode = found and _OPCODE.search(found[3])
    if not opcode:
      continue
    rest = found[3][opcode.end() :]
    end = _closing(rest)
    has_value = opcode[1] in ('constant', 'parameter')
    current[found[2]] = Instruction(
      name=found[2],
      shape=found[3][: opcode.start()],
      opcode=opcode[1],
      operands=(rest[:end],)
      if has_value
      else tuple(re.findall(r'%([\w.\-]+)', rest[:end])),
      attributes=rest[end:],
      is_root=bool(found[1]),
    )
  if entry is None:
    raise ValueError('The text is no HLO module: it has no ENTRY.')
  return computations, entry


def sizes(shape, main_memory_only=False):
  """Returns the bytes of each array of a shape such as '(f32[2,3], u8[])'.

  Args:
    shape: text, with or without layouts.
    main_memory_only: whether arrays whose layout has S(n) count 0: they are in
      one of the device's other memories.
  """
  return [
    0
    if main_memory_only and re.search(r'S\(\d', layout)
    else math.ceil(math.prod(numbers(dimensions)) * _BYTES.get(dtype, 0))
    for dtype, dimensions, layout in _ARRAY.findall(shape)
  ]


def numbers(text):
  """Returns [1, 2, 3] of '1,2,3'."""
  return [int(number) for number in text.split(',') if number]


def called(instruction):
  """Returns the names of the computations that an instruction runs.

  Not what it reduces with or sorts by, nor the condition of a loop.
  """
  attributes = instruction.attributes
  if instruction.opcode == 'while':
    return re.findall(r'\bbody=%?([\w.\-]+)', attributes)
  if instruction.opcode in ('fusion', 'async-start'):
    return re.findall(r'\bcalls=%?([\w.\-]+)', attributes)
  if instruction.opcode == 'call':
    return re.findall(r'\bto_apply=%?([\w.\-]+)', attributes)
  if instruction.opcode == 'conditional':
    branches = instruction.attribute(r'branch_computations=\{([^}]*)\}') or ''
    return re.findall(r'[\w.\-]+', branches) + re.findall(
      r'(?:true|false)_computation=%?([\w.\-]+)', attributes
    )
  return []


def turns(loop, computations):
  """Returns how often the body of a while loop runs, or None if unknown.

  Args:
    loop: the Instruction.
    computations: as `parse` returns them.
  """
  known = loop.attribute(r'"known_trip_count":\{"n":"(\d+)"\}')
  if known:
    return int(known)
  # TPU programs do not say it; JAX's loops count from 0 up to a constant.
  pending = [loop.attribute(r'\bcondition=%?([\w.\-]+)')]
  bounds, directions = set(), []
  while pending:
    for each in computations.get(pending.pop(), {}).values():
      pending += called(each)
      directions += re.findall(r'\bdirection=(\w+)', each.attributes)
      if each.opcode == 'constant' and re.match(r'[su]\d+\[\]', each.shape):
        bounds.add(int(each.operands[0]))
  return bounds.pop() if len(bounds) == 1 and directions == ['LT'] else None


def _closing(text):
  """Returns where the parenthesis closes that opened before the text."""
  depth = 1
  for place in re.finditer(r'[()]', text):
    depth += 1 if place[0] == '(' else -1
    if not depth:
      return place.start()
  return len(text)
