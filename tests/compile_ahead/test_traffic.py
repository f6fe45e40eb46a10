"""What programs move: compiled here for 8 fake devices, or written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from vit_jax.compile_ahead import traffic


def compiled(function, mesh, arguments, *out):
  """Returns the text of a function of float32 arrays [(shape, spec)]."""
  shapes = [
    jax.ShapeDtypeStruct(shape, 'float32', sharding=NamedSharding(mesh, spec))
    for shape, spec in arguments
  ]
  jitted = jax.jit(
    function, out_shardings=NamedSharding(mesh, PartitionSpec(*out))
  )
  return jitted.lower(*shapes).compile().as_text()


def found(text, num_devices=8):
  return [
    (each.kind, each.size, len(each.groups[0]), each.times)
    for each in traffic.read(text, num_devices).collectives
  ]


def test_a_sum_over_the_batch_is_an_all_reduce(make_mesh):
  text = compiled(
    lambda x: x.sum(axis=0), make_mesh(8), [((16, 6), PartitionSpec('data'))]
  )
  assert found(text) == [('all-reduce', 4 * 6, 8, 1)]


def test_groups_are_those_of_the_mesh_axis(make_mesh):
  mesh = make_mesh(4, 2)
  arguments = [((16, 6), PartitionSpec('data', 'model'))]
  text = compiled(lambda x: x.sum(axis=0), mesh, arguments, 'model')
  (reduction,) = traffic.read(text, 8).collectives
  assert reduction.size == 4 * 3
  numbers = np.arange(8).reshape(4, 2)
  assert {frozenset(group) for group in reduction.groups} == {
    frozenset(column) for column in numbers.T.tolist()
  }


def test_an_array_that_becomes_whole_is_gathered(make_mesh):
  text = compiled(
    lambda x: x + 1, make_mesh(8), [((16, 6), PartitionSpec('data'))]
  )
  assert found(text) == [('all-gather', 4 * 16 * 6, 8, 1)]


def test_what_a_loop_exchanges_counts_as_often_as_it_runs(make_mesh):
  def function(x, w):
    def turn(x, _):
      return jnp.tanh((x @ w).sum(axis=0, keepdims=True) + x), None

    return lax.scan(turn, x, length=5)[0]

  text = compiled(
    function,
    make_mesh(8),
    [((16, 8), PartitionSpec('data')), ((8, 8), PartitionSpec())],
    'data',
  )
  assert found(text) == [('all-reduce', 4 * 8, 8, 5)]


HEADER = (
  '\nENTRY %main (x: f32[64]) -> f32[8] {\n  %x = f32[64]{0} parameter(0)\n'
)


def entry(*lines):
  return HEADER + ''.join(f'  {line}\n' for line in lines) + '}\n'


@pytest.mark.parametrize(
  ('line', 'kind', 'size', 'groups'),
  [
    (
      '%a = f32[8] reduce-scatter(%x), replica_groups={{0,2},{1,3}}',
      'reduce-scatter', 256, ((0, 2), (1, 3)),
    ),
    (
      '%a = f32[64] all-reduce(%x), replica_groups=[2,4]<=[4,2]T(1,0)',
      'all-reduce', 256, ((0, 2, 4, 6), (1, 3, 5, 7)),
    ),
    (
      "%a = f32[64] all-reduce(%x), replica_groups=mesh['a'=2,'b'=4] {'b'}, x",
      'all-reduce', 256, ((0, 1, 2, 3), (4, 5, 6, 7)),
    ),
    (
      "%a = f32[64] all-reduce(%x), replica_groups=mesh['a'=2,'b'=2] {'a'}, x",
      'all-reduce', 256, ((0, 2), (1, 3)),
    ),
    (
      '%a = f32[64] all-reduce(%x), replica_groups={}',
      'all-reduce', 256, ((0, 1, 2, 3),),
    ),
    (
      '%a = f32[64] collective-permute(%x), source_target_pairs={{0,1},{1,0}}',
      'collective-permute', 256, ((0, 1), (1, 0)),
    ),
    # Two arrays in one.
    (
      '%a = (f32[64], bf16[3]) all-reduce(%x, %x), replica_groups=[1,4]<=[4]',
      'all-reduce', 262, ((0, 1, 2, 3),),
    ),
  ],
)  # fmt: skip
def test_every_way_to_write_a_collective(line, kind, size, groups):
  (each,) = traffic.read(entry(line), 4).collectives
  assert each == (kind, size, groups, 1)


def test_one_that_starts_and_ends_counts_once():
  text = entry(
    '%s = (f32[64]{0}, f32[512]{0}) all-gather-start(%x),'
    ' replica_groups=[1,8]<=[8]',
    'ROOT %d = f32[512]{0} all-gather-done(%s)',
  )
  assert found(text) == [('all-gather', 4 * 512, 8, 1)]


def test_the_reduce_scatter_of_the_tpu_compiler():
  text = (
    '%all-reduce-scatter.1 (input: f32[64]) -> f32[8] {\n'
    '  %input = f32[64] parameter(0)\n'
    '  %r = f32[64] all-reduce(%input), replica_groups=[1,8]<=[8]\n'
    '  ROOT %s = f32[8] dynamic-slice(%r, %r), dynamic_slice_sizes={8}\n'
    '}\n'
  ) + entry(
    'ROOT %f = f32[8] fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1'
  )
  assert found(text) == [('reduce-scatter', 256, 8, 1)]


@pytest.mark.parametrize(
  ('kind', 'sent'),
  [  # of 240 bytes, by each of 4: in a ring, the least there is
    ('all-reduce', 360),
    ('all-gather', 180),
    ('reduce-scatter', 180),
    ('all-to-all', 180),
    ('collective-permute', 240),
  ],
)
def test_what_each_member_sends(kind, sent):
  each = traffic.Collective(kind, 240, ((0, 1, 2, 3),))
  assert each.sent() == sent
  assert each.sent(1) == 0


FUSIONS = """
%slicing (p: f32[64], i: s32[]) -> f32[8] {
  %p = f32[64]{0} parameter(0)
  %i = s32[] parameter(1)
  %view = f32[64]{0} bitcast(%p)
  %s = f32[8]{0} dynamic-slice(%view, %i), dynamic_slice_sizes={8}
  ROOT %n = f32[8]{0} negate(%s)
}

%updating (p.1: f32[64], u: f32[8], i.1: s32[]) -> f32[64] {
  %p.1 = f32[64]{0} parameter(0)
  %u = f32[8]{0} parameter(1)
  %i.1 = s32[] parameter(2)
  ROOT %d = f32[64]{0} dynamic-update-slice(%p.1, %u, %i.1)
}

%nested (p.2: f32[64], i.2: s32[]) -> f32[8] {
  %p.2 = f32[64]{0} parameter(0)
  %i.2 = s32[] parameter(1)
  ROOT %f = f32[8]{0} fusion(%p.2, %i.2), kind=kLoop, calls=%slicing
}
"""


@pytest.mark.parametrize(
  ('lines', 'expected'),
  [
    (['ROOT %n = f32[64]{0} negate(%x)'], 512),
    (['ROOT %t = (f32[64]{0}) tuple(%x)'], 0),
    (['ROOT %n = f32[64]{0:S(1)} negate(%x)'], 256),  # the result is elsewhere
    (['ROOT %s = f32[8]{0} dynamic-slice(%x, %x)'], 64),
    (
      [
        '%i = s32[] constant(0)',
        'ROOT %f = f32[8]{0} fusion(%x, %i), kind=kLoop, calls=%slicing',
      ],
      32 + 4 + 32,
    ),
    (
      [
        '%i = s32[] constant(0)',
        'ROOT %f = f32[8]{0} fusion(%x, %i), kind=kOutput, calls=%nested',
      ],
      32 + 4 + 32,
    ),
    (
      [
        '%u = f32[8]{0} constant(0)',
        '%i = s32[] constant(0)',
        'ROOT %f = f32[64]{0} fusion(%x, %u, %i), calls=%updating',
      ],
      32 + 4 + 32,
    ),
  ],
)
def test_bytes_of_main_memory(lines, expected):
  assert traffic.read(FUSIONS + entry(*lines), 1).memory_bytes == expected


def test_memory_is_what_xla_counts_where_there_is_no_loop():
  def function(x, w):
    return jnp.tanh(x @ w).sum(), x.T @ x

  shape = jax.ShapeDtypeStruct((128, 128), 'float32')
  compiled = jax.jit(function).lower(shape, shape).compile()
  expected = compiled.cost_analysis()['bytes accessed']
  moved = traffic.read(compiled.as_text(), 1).memory_bytes
  assert moved == pytest.approx(expected, rel=0.1)


def test_loops_and_estimates():
  text = (
    '%condition (c: s32[]) -> pred[] {\n'
    '  %c = s32[] parameter(0)\n'
    '  %n = s32[] constant(6)\n'
    '  ROOT %lt = pred[] compare(%c, %n), direction=LT\n'
    '}\n'
    '%body (b: s32[]) -> s32[] {\n'
    '  %b = s32[] parameter(0)\n'
    '  ROOT %a = s32[] add(%b, %b), backend_config={"estimated_cycles":"10"}\n'
    '}\n'
  ) + entry('ROOT %w = s32[] while(%x), condition=%condition, body=%body')
  result = traffic.read(text, 1)
  assert (result.cycles, result.cycles_once) == (60, 10)
  assert (result.memory_bytes, result.unknown_loops) == (6 * 12, 0)
  result = traffic.read(text.replace('constant(6)', 'copy(%c)'), 1)
  assert (result.cycles, result.unknown_loops) == (10, 1)


ASYNCHRONOUS = """
%start (p: f32[8]) -> f32[64] {
  %p = f32[8] parameter(0)
  ROOT %g = f32[64] all-gather(%p), channel_id=7, replica_groups={}
}

%middle (p: f32[8]) -> f32[64] {
  %p = f32[8] parameter(0)
  ROOT %g = f32[64] all-gather(%p), channel_id=7, replica_groups={}
}

%done (p: f32[8]) -> f32[64] {
  %p = f32[8] parameter(0)
  ROOT %g = f32[64] all-gather(%p), channel_id=7, replica_groups={}
}

ENTRY %main (x: f32[8]) -> f32[64] {
  %x = f32[8] parameter(0)
  %a = f32[64] fusion(%x), kind=kCustom, calls=%start
  %b = f32[64] fusion(%x), kind=kCustom, calls=%middle
  ROOT %c = f32[64] fusion(%x), kind=kCustom, calls=%done
}
"""


def test_a_collective_that_runs_beside_others_counts_once():
  """TPU v5e writes it into every fusion from its start to its end."""
  assert found(ASYNCHRONOUS) == [('all-gather', 4 * 64, 8, 1)]
  other = ASYNCHRONOUS.replace('channel_id=7', 'channel_id=8', 1)
  assert len(found(other)) == 2
