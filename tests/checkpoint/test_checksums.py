import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import sharding
from vit_jax.checkpoint import checksums


def by_hand(array):
  """Returns the checksum as plain Python integers give it, word by word."""

  def weight(index, axis):
    mixed = (index + 7919 * axis) * 0x9E3779B1 % 2**32
    return mixed ^ mixed >> 15 | 1

  words = array.view(f'u{array.dtype.itemsize}')
  total = 0
  for position in np.ndindex(array.shape):
    product = int(words[position])
    for axis, index in enumerate(position):
      product *= weight(index, axis)
    total += product
  return total % 2**32


def arrays():
  rng = np.random.default_rng(0)
  return {
    'float32': rng.normal(size=(3, 5, 4)).astype('f4'),
    'bfloat16': np.asarray(jnp.asarray(rng.normal(size=(7, 2)), jnp.bfloat16)),
    'int32': rng.integers(-9, 9, 11, 'i4'),
    'uint8': rng.integers(0, 255, (2, 3), 'u1'),
    'bool': rng.integers(0, 2, 9).astype(bool),
    'scalar': np.array(-3, 'i4'),
    'empty': np.zeros((0, 3), 'f4'),
  }


def test_it_is_the_sum_of_weighted_words():
  found = checksums.whole(jax.tree.map(jnp.asarray, arrays()))
  assert found == {name: by_hand(x) for name, x in arrays().items()}
  assert found['scalar'] == 2**32 - 3
  assert found['empty'] == 0


@pytest.mark.parametrize(('data', 'model'), [(1, 1), (4, 1), (2, 4)])
def test_it_is_the_same_for_all_layouts(make_mesh, data, model):
  mesh = make_mesh(data, model)
  x = np.random.default_rng(0).normal(size=(8, 12, 4)).astype('f4')
  expected = {'x': by_hand(x), 'y': by_hand(x[0])}
  for axes in ([None, 'model'], ['model', None, 'data']):
    table = [('x', axes), ('y', axes[:1])]
    tree = {'x': x, 'y': x[0]}
    tree = jax.device_put(tree, sharding.layout(tree, mesh, table))
    assert checksums.whole(tree) == expected
    # Summed by hand over what each process would have.
    assert checksums.part(checksums.start_part(tree)) == expected


def test_parts_add_up_to_the_whole():
  one, other = {'a': 2**32 - 1, 'b': 5}, {'a': 3, 'c': 1}
  assert checksums.add(one, other) == {'a': 2, 'b': 5, 'c': 1}


def test_it_is_of_bits_not_of_values():
  def of(x):
    return checksums.whole({'x': jnp.asarray(x, jnp.float32)})['x']

  assert of([0.0]) != of([-0.0])
  assert of([np.nan]) == of([np.nan])
  x = np.arange(64, dtype='f4').reshape(8, 8)
  assert of(x) != of(x[::-1])
  assert of(x) != of(x[:, ::-1])
  assert of(x) != of(x.T)
  for position in np.ndindex(8, 8):
    for bit in (0, 13, 31):
      changed = x.copy()
      changed.view('u4')[position] ^= np.uint32(1 << bit)
      assert of(changed) != of(x)


def test_arrays_are_described_as_json_has_them():
  tree = {'a': [jnp.zeros((2, 3), jnp.bfloat16), None]}
  assert checksums.describe(tree) == {'a/0': [[2, 3], 'bfloat16']}
