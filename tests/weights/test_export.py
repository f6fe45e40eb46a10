"""Exported models compute what the models do, without their code."""

import functools
import types

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import models
from vit_jax.weights import describe, export

VIT = dict(
  variant='Ti/4', num_classes=5, hidden_size=16, depth=2, mlp_dim=32,
  num_heads=2,
)  # fmt: skip
HYBRID = VIT | dict(variant='Ti/1', stem_depths=(1, 1), stem_width=0.5)
MODELS = {
  'vit': VIT,
  'bfloat16': VIT | dict(dtype='bfloat16', head='map', num_classes=0),
  'hybrid': HYBRID,
  'resnet': dict(
    name='resnet', variant='R14x0.5', num_classes=5, depths=(1, 2)
  ),
  'bfloat16 hybrid': HYBRID | dict(dtype='bfloat16', pre_logits=True),
}  # fmt: skip
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (3, 16, 24, 3)).astype(np.uint8)


@functools.cache
def made(name):
  """Returns a checkpoint, as `weights` loads one, with no parameter 0."""
  model = models.build(**MODELS[name])
  shapes = describe.shapes(model, PIXELS.shape[1:3])
  params = {k: RNG.normal(size=v.shape).astype('f4') for k, v in shapes.items()}
  return types.SimpleNamespace(
    model=model,
    params=describe.unflatten(params),
    image_size=PIXELS.shape[1:3],
  )


@functools.cache
def exported(name, folder):
  path = folder / name
  export.export(path, made(name))
  return path


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('exported')


@pytest.mark.parametrize('name', ['vit', 'bfloat16', 'hybrid', 'resnet'])
def test_it_computes_the_same_for_any_number_of_images(name, folder):
  run = export.read(exported(name, folder))
  checkpoint = made(name)
  x = (PIXELS.astype(np.float32) - 127.5) / 127.5
  logits, features = jax.jit(checkpoint.model.apply)(
    {'params': checkpoint.params}, x
  )
  # Programs for 1 and 3 images may add up in another order.
  tolerance = 0.05 if name == 'bfloat16' else 1e-4
  for count in (1, 3):
    for actual, expected in zip(
      run(PIXELS[:count]), (logits, features['representation']), strict=True
    ):
      if expected is None:
        assert actual is None
        continue
      assert actual.dtype == np.float32
      np.testing.assert_allclose(
        actual, expected[:count], rtol=1e-4, atol=tolerance
      )


def test_the_file_needs_jax_alone(folder):
  data = exported('vit', folder).read_bytes()
  program = jax.export.deserialize(bytearray(data))
  assert program.platforms == ('cpu', 'cuda', 'tpu')
  (pixels,) = program.in_avals
  assert pixels.dtype == np.uint8
  assert str(pixels.shape) == '(b, 16, 24, 3)'
  logits, representation = program.call(PIXELS)
  assert logits.shape == (3, 5)
  assert representation.shape == (3, 16)


def test_bfloat16_models_are_smaller_and_compute_the_same():
  checkpoint = made('bfloat16 hybrid')
  stored = export.stored(checkpoint)
  x = (PIXELS[:1].astype(np.float32) - 127.5) / 127.5
  apply = jax.jit(checkpoint.model.apply)
  actual, _ = apply({'params': stored}, x)
  expected, _ = apply({'params': checkpoint.params}, x)
  np.testing.assert_array_equal(actual, expected)
  for name, array in describe.flatten(stored).items():
    in_stem, is_kernel = name.startswith('stem/'), name.endswith('kernel')
    assert (array.dtype == jnp.bfloat16) == (is_kernel and not in_stem), name
  assert export.stored(made('vit')) is made('vit').params


@pytest.mark.parametrize(
  'pixels',
  [
    PIXELS.astype(np.float32),
    PIXELS[0],
    PIXELS[:, :12],
    PIXELS[:0],
    PIXELS[..., :1],
    PIXELS.tolist(),
    None,
  ],
)
def test_other_inputs(pixels, folder):
  run = export.read(exported('vit', folder))
  with pytest.raises(ValueError, match=r'takes uint8 \[B, 16, 24, 3\] with B'):
    run(pixels)


def test_it_is_written_whole_or_not_at_all(tmp_path, folder):
  path = tmp_path / 'new' / 'vit'
  data = exported('vit', folder).read_bytes()
  path.parent.mkdir()
  path.write_bytes(b'old')
  with pytest.raises(ValueError, match='vit exists, and is not to be overwri'):
    export.export(path, made('vit'))
  assert path.read_bytes() == b'old'
  export.export(path, made('vit'), ('cpu',), overwrite=True)
  assert jax.export.deserialize(bytearray(path.read_bytes())).platforms == (
    'cpu',
  )
  assert [p.name for p in path.parent.iterdir()] == ['vit']
  assert len(path.read_bytes()) <= len(data)
  (tmp_path / 'file').write_text('no folder')
  with pytest.raises(ValueError, match='cannot be written'):
    export.export(tmp_path / 'file' / 'vit', made('vit'), ('cpu',))


@pytest.mark.parametrize('platforms', [(), ('gpu',), ('cpu', 'cpu')])
def test_platforms_that_do_not_exist(platforms, tmp_path):
  with pytest.raises(ValueError, match='is not some of cpu, cuda, rocm, tpu'):
    export.export(tmp_path / 'x', made('vit'), platforms)


def test_a_model_without_head(tmp_path):
  model = models.build(**(VIT | dict(head='none')))
  checkpoint = types.SimpleNamespace(model=model)
  with pytest.raises(ValueError, match="head='none', so it has no repr"):
    export.export(tmp_path / 'x', checkpoint)


@pytest.mark.parametrize(
  ('dtype', 'is_allowed', 'advice'),
  [
    ('float32', False, "dtype='bfloat16' .* or export a smaller model"),
    ('bfloat16', True, ''),
  ],
)
def test_h14_fits_in_bfloat16_only(dtype, is_allowed, advice):
  model = models.build(variant='H/14', num_classes=1000, dtype=dtype)
  # No memory is taken: the arrays repeat one element.
  params = describe.unflatten(
    {
      k: np.broadcast_to(np.zeros((), _dtype(k, dtype)), v.shape)
      for k, v in describe.shapes(model, (224, 224)).items()
    }
  )
  if is_allowed:
    export.check_size('x', params)
    return
  with pytest.raises(ValueError, match=f'take 2,528,183,200 bytes.*{advice}'):
    export.check_size('x', params)


def _dtype(name, dtype):
  return jnp.dtype(dtype) if name.endswith('kernel') else np.float32


def test_files_that_are_none(tmp_path, folder):
  data = exported('vit', folder).read_bytes()
  path = tmp_path / 'x'
  for content in (
    b'', b'\0', b'no program at all' * 50, bytes(5000), RNG.bytes(5000),
    data[:100], data[: len(data) // 2],
  ):  # fmt: skip
    path.write_bytes(content)
    with pytest.raises(ValueError, match='is no model that vit_jax has expor'):
      export.read(path)
  with pytest.raises(ValueError, match=r'gone .*No such file'):
    export.read(tmp_path / 'gone')
