"""What a compiled program moves: between devices, and to and from memory.

XLA's own cost analysis counts the body of a loop once. Here everything counts
as often as it runs, by the loops' numbers of turns.
"""

import math
import re
from typing import NamedTuple

import numpy as np

from vit_jax.compile_ahead import hlo

COLLECTIVES = (
  'all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all',
  'collective-permute',
)  # fmt: skip
# What reads and writes nothing by itself.
_FREE = {
  'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'while',
  'conditional', 'call', 'after-all', 'partition-id', 'replica-id',
  'opt-barrier', 'add-dependency',
}  # fmt: skip


class Collective(NamedTuple):
  """An exchange between devices.

  Attributes:
    kind: one of COLLECTIVES.
    size: bytes, on one device, of what is exchanged: the array that is reduced,
      the gathered one, the one that is scattered or sent.
    groups: tuples of devices, by their place in the mesh; each group exchanges
      for itself. Of a permute, pairs of sender and receiver.
    times: how often it runs in one call of the program.
  """

  kind: str
  size: int
  groups: tuple[tuple[int, ...], ...]
  times: int = 1

  def sent(self, members=None):
    """Returns the fewest bytes that each member of a group sends, each time.

    Args:
      members: how many there are in a group; by default its devices. Devices
        that share their links may count as one.
    """
    n = len(self.groups[0]) if members is None else members
    if n < 2:
      return 0
    if self.kind == 'collective-permute':
      return self.size
    factor = 2 if self.kind == 'all-reduce' else 1
    return factor * self.size * (n - 1) / n


class Traffic(NamedTuple):
  """What a compiled program does in one call, on one device.

  Attributes:
    collectives: list of Collective.
    memory_bytes: read from and written to the device's main memory, by all that
      is no part of a fusion. Of an operand that is sliced, and of a result that
      is written in place, only the part counts.
    cycles: the sum of the compiler's own estimates, where it gives any.
    cycles_once: the same with the body of each loop counted once.
    unknown_loops: how many loops have a number of turns that the text does not
      say; their bodies count once.
  """

  collectives: list[Collective]
  memory_bytes: int
  cycles: int
  cycles_once: int
  unknown_loops: int


def read(text, num_devices):
  """Returns the Traffic of a program.

  Args:
    text: `compiled.as_text()`.
    num_devices: how many run it: a collective without groups is among all.

  Raises:
    ValueError: if the text is no program.
  """
  computations, entry = hlo.parse(text)
  collectives, memory, cycles, once, unknown = [], 0, 0, 0, set()
  channels = set()

  def visit(name, times, in_fusion):
    nonlocal memory, cycles, once
    instructions = computations.get(name, {})
    for each in instructions.values():
      # An asynchronous collective is in several fusions, from its start to its
      # done: the same channel in each.
      channel = each.attribute(r'channel_id=(\d+)')
      is_new = channel is None or (channel, times) not in channels
      if each.opcode.removesuffix('-start') in COLLECTIVES and is_new:
        channels.add((channel, times))
        found = _collective(each, name, instructions, num_devices)
        collectives.append(found._replace(times=times))
      if not in_fusion:
        memory += times * _memory(each, instructions, computations)
        count = int(each.attribute(r'"estimated_cycles":"(\d+)"') or 0)
        cycles += times * count
        once += count
      turns = 1
      if each.opcode == 'while':
        turns = hlo.turns(each, computations)
        if turns is None:
          unknown.add((name, each.name))
          turns = 1
      for called in hlo.called(each):
        visit(called, times * turns, in_fusion or each.opcode == 'fusion')

  visit(entry, 1, False)
  return Traffic(collectives, memory, cycles, once, len(unknown))


def _collective(instruction, computation, instructions, num_devices):
  """Returns the Collective that an instruction starts."""
  kind = instruction.opcode.removesuffix('-start')
  sizes = hlo.sizes(instruction.shape)
  if instruction.opcode.endswith('-start') and kind != 'all-reduce':
    # (what is sent, what comes out, ...): the rest is the runtime's.
    sizes = [max(sizes, default=0)]
  total = sum(sizes)
  if kind == 'reduce-scatter':
    operands = (instructions.get(name) for name in instruction.operands)
    total = sum(sum(hlo.sizes(each.shape)) for each in operands if each)
  elif computation.startswith('all-reduce-scatter'):
    kind = 'reduce-scatter'  # so the TPU compiler writes it: fused with a slice
  return Collective(kind, total, _groups(instruction, kind, num_devices))


def _groups(instruction, kind, num_devices):
  """Returns the groups of devices, from any of the ways to write them."""
  attributes = instruction.attributes
  if kind == 'collective-permute':
    pairs = instruction.attribute(r'source_target_pairs=\{(.*?\})\}') or ''
    pairs = re.findall(r'\{(\d+),(\d+)\}', pairs)
    return tuple((int(a), int(b)) for a, b in pairs if a != b) or ((0,),)
  listed = instruction.attribute(r'replica_groups=\{(\{[\d,{}]*\})\}')
  if listed:
    groups = re.findall(r'\{([\d,]+)\}', listed)
    return tuple(tuple(hlo.numbers(group)) for group in groups)
  # Rows of numbers in order, perhaps transposed: [2,4]<=[4,2]T(1,0).
  iota = re.search(
    r'replica_groups=\[\d+,(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', attributes
  )
  if iota:
    shape, order = hlo.numbers(iota[2]), hlo.numbers(iota[3] or '')
    return _rows(shape, order or range(len(shape)), int(iota[1]))
  # Axes of a mesh: mesh['a'=2,'b'=4] {'b'}.
  mesh = re.search(r'replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}', attributes)
  if mesh:
    axes = {a: int(n) for a, n in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
    inside = re.findall(r"'([^']+)'", mesh[2])
    names = list(axes)
    order = [names.index(a) for a in names if a not in inside]
    order += [names.index(a) for a in inside]
    length = math.prod(axes[a] for a in inside)
    return _rows(list(axes.values()), order, length)
  return (tuple(range(num_devices)),)


def _rows(shape, order, length):
  """Returns 0, 1, 2, ... in `shape`, transposed, in rows of `length`."""
  numbers = np.arange(math.prod(shape)).reshape(shape).transpose(order)
  return tuple(tuple(row) for row in numbers.reshape(-1, length).tolist())


def _memory(instruction, instructions, computations):
  """Returns the bytes of main memory that an instruction reads and writes."""
  opcode = instruction.opcode
  if opcode in _FREE or opcode.endswith('-done'):
    return 0
  operands = [
    instructions[name] for name in instruction.operands if name in instructions
  ]
  if opcode == 'fusion':
    stored = [_stored(operand) for operand in operands]
    name = hlo.called(instruction)[0]
    read, written = _fusion(name, computations, stored)
    return sum(read) + min(written, _stored(instruction))
  if opcode == 'dynamic-slice':
    return 2 * _stored(instruction)
  if opcode == 'dynamic-update-slice':  # in place
    return 2 * _stored(operands[1])
  if opcode.endswith('-start'):  # its result lists its operands again
    return _stored(instruction)
  return _stored(instruction) + sum(map(_stored, operands))


def _fusion(name, computations, stored):
  """Returns the bytes that a fusion reads of each operand, and that it writes.

  Args:
    name: of its computation.
    computations: as `hlo.parse` returns them.
    stored: the size of each operand, in bytes.
  """
  body = computations.get(name, {})
  number = {
    each.name: int(each.operands[0])
    for each in body.values()
    if each.opcode == 'parameter'
  }
  read, written = [0] * len(stored), 0
  for each in body.values():
    if each.opcode in ('parameter', 'bitcast', 'tuple'):
      continue  # what uses it counts
    sources = [number.get(_viewed(name, body)) for name in each.operands]
    uses = [0 if i is None else stored[i] for i in sources]
    if each.opcode in ('dynamic-slice', 'slice'):
      uses[0] = min(uses[0], sum(hlo.sizes(each.shape)))
    elif each.opcode == 'dynamic-update-slice':
      uses[0] = 0  # in place
    elif each.opcode == 'fusion':
      uses, _ = _fusion(hlo.called(each)[0], computations, uses)
    for i, used in zip(sources, uses, strict=True):
      if i is not None:
        read[i] = min(stored[i], read[i] + used)
  for each in body.values():
    if each.is_root:
      written = _written(each, body, computations)
  return read, written


def _written(result, body, computations):
  """Returns the bytes that a fusion writes for a result of it."""
  if result.opcode == 'bitcast':
    result = body.get(_viewed(result.name, body), result)
  if result.opcode == 'tuple':
    parts = (body[name] for name in result.operands)
    return sum(_written(part, body, computations) for part in parts)
  if result.opcode == 'dynamic-update-slice':
    return sum(hlo.sizes(body[result.operands[1]].shape))
  if result.opcode == 'fusion':
    inner = computations.get(hlo.called(result)[0], {})
    roots = [each for each in inner.values() if each.is_root]
    return sum(_written(root, inner, computations) for root in roots)
  return sum(hlo.sizes(result.shape))


def _viewed(name, body):
  """Returns the name of what a value is another view of."""
  while name in body and body[name].opcode == 'bitcast':
    name = body[name].operands[0]
  return name


def _stored(instruction):
  return sum(hlo.sizes(instruction.shape, main_memory_only=True))
