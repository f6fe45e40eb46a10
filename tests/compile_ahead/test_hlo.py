"""Programs as text: written by hand, and by the compiler of this machine."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from vit_jax.compile_ahead import hlo

LOOP = """HloModule m, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(256)} parameter(0)
  %b = f32[]{:T(256)} parameter(1)
  ROOT %add.1 = f32[]{:T(256)} add(%a, %b)
}

%body (p: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %p = (s32[], bf16[8,4]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %t = (s32[], bf16[8,4]{1,0}) tuple(%i, /*index=1*/%i)
}

%condition (p.1: (s32[], bf16[8,4])) -> pred[] {
  %n = s32[]{:T(256)} constant(BOUND)
  %p.1 = (s32[], bf16[8,4]{1,0:T(8,128)(2,1)}) parameter(0)
  %i.1 = s32[] get-tuple-element(%p.1), index=0
  ROOT %lt = pred[]{:T(1024)} compare(%i.1, %n), direction=LT
}

ENTRY %main (x: bf16[8,4]) -> (s32[], bf16[8,4]) {
  %x = bf16[8,4]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  ROOT %w = (s32[], bf16[8,4]{1,0}) while(%x), condition=%condition, body=%body
}
"""


def test_a_program_is_parsed():
  computations, entry = hlo.parse(LOOP)
  assert entry == 'main'
  assert list(computations) == ['add', 'body', 'condition', 'main']
  assert computations['condition']['n'].operands == ('BOUND',)
  assert computations['body']['t'].operands == ('i', 'i')
  loop = computations['main']['w']
  assert (loop.opcode, loop.operands, loop.is_root) == ('while', ('x',), True)
  assert hlo.called(loop) == ['body']  # the condition moves nothing
  assert hlo.sizes(loop.shape) == [4, 2 * 8 * 4]


def test_what_is_no_program_is_an_error():
  with pytest.raises(ValueError, match='no HLO module'):
    hlo.parse('nothing')


@pytest.mark.parametrize(
  ('shape', 'expected'),
  [
    ('f32[2,3]{1,0:T(8,128)}', [24]),
    ('f32[]', [4]),
    ('(bf16[4]{0}, /*index=1*/u8[5], pred[2])', [8, 5, 2]),
    ('s4[3]', [2]),
    ('token[]', [0]),
  ],
)
def test_sizes(shape, expected):
  assert hlo.sizes(shape) == expected


def test_sizes_in_main_memory():
  shape = '(f32[2]{0:T(128)S(1)}, f32[3]{0:T(128)}, f32[4]{0:S(6)})'
  assert hlo.sizes(shape, main_memory_only=True) == [0, 12, 0]


def test_turns_of_loops_that_count_to_a_constant():
  computations, _ = hlo.parse(LOOP.replace('BOUND', '32'))
  assert hlo.turns(computations['main']['w'], computations) == 32


def test_turns_that_are_not_known():
  unknown = LOOP.replace('constant(BOUND)', 'copy(%p.1)')
  computations, _ = hlo.parse(unknown)
  assert hlo.turns(computations['main']['w'], computations) is None


def test_turns_as_the_compiler_writes_them():
  def loop(x):
    return lax.scan(lambda x, _: (jnp.sin(x @ x), None), x, length=7)[0]

  text = jax.jit(loop).lower(jnp.ones((4, 4))).compile().as_text()
  computations, _ = hlo.parse(text)
  found = [
    hlo.turns(each, computations)
    for instructions in computations.values()
    for each in instructions.values()
    if each.opcode == 'while'
  ]
  assert found == [7]
