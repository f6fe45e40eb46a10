"""What is said of arrays, checked against numbers written by hand."""

import ml_dtypes
import numpy as np
import pytest

from vit_jax import models, weights
from vit_jax.weights import describe, files, inspection

VIT = dict(
  variant='Ti/4', num_classes=5, hidden_size=16, depth=2, mlp_dim=32,
  num_heads=2,
)  # fmt: skip


def save(path, **kwargs):
  """Writes a tiny model; returns its flat parameters, of which none is 0."""
  model = models.build(**(VIT | kwargs))
  rng = np.random.default_rng(0)
  params = {
    k: rng.normal(size=v.shape).astype('f4')
    for k, v in describe.shapes(model, (16, 16)).items()
  }
  weights.save(path, model, describe.unflatten(params))
  return params


def text(path, **options):
  return '\n'.join(inspection.inspect(str(path), **options))


def row(output, name):
  """Returns the cells after an array's shape."""
  (line,) = [x for x in output.splitlines() if x.startswith(f'{name} ')]
  return line.split(')')[1].split()


@pytest.mark.parametrize('dtype', ['f2', ml_dtypes.bfloat16, 'f4', 'f8', 'i4'])
def test_statistics(dtype):
  # Their sum overflows float16, and their mean is no bfloat16.
  array = np.array([40000, 40448, 0, 38400], dtype).reshape(2, 2)
  actual = inspection.statistics('x', array)
  values = [float(x) for x in array.ravel()]
  mean = sum(values) / 4
  std = (sum((x - mean) ** 2 for x in values) / 4) ** 0.5
  np.testing.assert_allclose(
    actual.statistics, (0, max(values), mean, std), rtol=1e-12
  )
  assert actual.num_bad == 0
  assert actual.dtype == array.dtype  # as in the file
  assert actual.num_bytes == 4 * array.dtype.itemsize


@pytest.mark.parametrize('dtype', ['f2', ml_dtypes.bfloat16, 'f4', 'f8'])
def test_nan_and_inf_are_counted_and_left_out(dtype):
  array = np.array([1, np.nan, 3, np.inf, -np.inf], dtype)
  actual = inspection.statistics('x', array)
  assert actual.statistics == (1, 3, 2, 1)
  assert actual.num_bad == 3
  assert inspection.statistics('x', array[1:2]).statistics == ()


@pytest.mark.parametrize('shape', [(0, 3), ()])
def test_arrays_without_elements_or_axes(shape):
  expected = (7, 7, 7, 0) if shape == () else ()
  actual = inspection.statistics('x', np.full(shape, 7, 'f4'))
  assert actual.statistics == expected
  assert str(shape) in inspection.table([actual])


@pytest.mark.parametrize(
  ('name', 'layout', 'array'),
  [
    ('a.npz', 'layout npz', 'head/kernel'),
    ('a.safetensors', 'layout timm, written by vit_jax', 'head.weight'),
    ('a', "this project's checkpoint", 'head/kernel'),
  ],
)
def test_every_kind_of_source(name, layout, array, tmp_path):
  params = save(tmp_path / name)
  output = text(tmp_path / name)
  expected = params['head/kernel']
  cells = row(output, array)
  assert cells[0] == 'float32'
  np.testing.assert_allclose(
    [float(x) for x in cells[1:]],
    [expected.min(), expected.max(), expected.mean(), expected.std()],
    rtol=1e-3,
  )
  # 5,637 parameters of 4 bytes.
  assert f' arrays, 22,548 bytes, {layout}' in output
  assert 'image size  16 x 16' in output
  assert 'parameters  5,637' in output
  assert 'loading     ' in output
  assert 'WARNING' not in output


def test_the_model_is_named_without_its_defaults(tmp_path):
  save(tmp_path / 'a', head='gap', gelu='exact')
  (made,) = [x for x in text(tmp_path / 'a').splitlines() if 'build(' in x]
  assert made.startswith("model       build(name='vit', variant='Ti/4', ")
  for part in ("head='gap'", "gelu='exact'", 'num_classes=5', 'depth=2'):
    assert part in made
  for default in ('dropout', 'dtype', 'class_token', 'norm_epsilon', 'remat'):
    assert default not in made


def test_columns_align(tmp_path):
  save(tmp_path / 'a.npz')
  heading, *rows = text(tmp_path / 'a.npz').split('\n\n')[0].splitlines()
  start = heading.index('shape')
  assert all(line[start] == '(' and line[start - 1] == ' ' for line in rows)
  end = heading.index('std') + 3
  assert all(len(line) == end for line in rows)


def test_of_an_unknown_layout_all_arrays_are_shown(tmp_path):
  path = tmp_path / 'u.npz'
  files.write(
    path,
    {
      'foo': np.arange(4, dtype='i4'),
      'bar': np.ones(3, ml_dtypes.bfloat16),
      'evil\x1b[31m\nname': np.zeros(2, 'f4'),
    },
  )
  output = text(path)
  assert row(output, 'foo') == ['int32', '0', '3', '1.5', '1.118']
  assert row(output, 'bar') == ['bfloat16', '1', '1', '1', '0']
  assert r'evil\x1b[31m\nname' in output
  assert '\x1b' not in output
  assert '3 arrays, 30 bytes, of no known layout' in output
  assert f'not loaded  {path} is of no layout that is known' in output


def test_nan_is_marked_loudly(tmp_path):
  path = tmp_path / 'a.npz'
  save(path)
  arrays = files.read(path)
  arrays['head/bias'][[0, 2]] = np.nan, np.inf
  files.write(path, arrays, overwrite=True)
  output = text(path)
  assert row(output, 'head/bias')[-5:] == ['<--', '2', 'NAN', 'OR', 'INF']
  assert 'WARNING: 2 x nan or inf, in head/bias' in output
  assert 'parameters  5,637' in output  # and still loads


def test_what_does_not_load_is_shown_with_the_reason(tmp_path):
  path = tmp_path / 'a.npz'
  save(path)
  arrays = files.read(path)
  del arrays['head/bias']
  files.write(path, arrays, overwrite=True)
  output = text(path)
  assert 'head/kernel' in output
  assert f'not loaded  {path} does not fit the model (1 missing)' in output


def test_raw_arrays_are_those_of_the_file(tmp_path):
  params = save(tmp_path / 'a')
  arrays, layout = inspection.raw(tmp_path / 'a')
  assert str(tmp_path / 'a') in layout
  assert set(arrays) == set(params)
  for name, array in params.items():
    np.testing.assert_array_equal(arrays[name], array)


def test_options_reach_the_loader(tmp_path):
  path = tmp_path / 'a.safetensors'
  save(path)
  arrays = files.read(path)
  files.write(path, arrays, overwrite=True)  # without what says num_heads
  assert 'pass num_heads=' in text(path)
  assert 'num_heads=2' in text(path, num_heads=2)


@pytest.mark.parametrize('name', ['nothing.npz', 'nothing', 'empty'])
def test_there_is_nothing(name, tmp_path):
  (tmp_path / 'empty').mkdir()
  with pytest.raises(ValueError, match=r'does not exist|without checkpoint'):
    text(tmp_path / name)
