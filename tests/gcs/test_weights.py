import jax
import ml_dtypes
import numpy as np
import pytest
from gcs.flaky_proxy import Fault

from vit_jax import models, train, weights
from vit_jax.weights import __main__ as command
from vit_jax.weights import files

MODEL = dict(
  variant='Ti/4', num_classes=10, hidden_size=16, depth=2, mlp_dim=32,
  num_heads=2, dtype='float32',
)  # fmt: skip
ARRAYS = {
  'a': np.arange(6, dtype=np.float32).reshape(2, 3),
  'b/c': np.ones(4, ml_dtypes.bfloat16),
}


@pytest.fixture
def model_and_params():
  model = models.build(**MODEL)
  x = np.zeros((1, 8, 8, 3), np.float32)
  return model, model.init(jax.random.key(3), x)['params']


@pytest.mark.parametrize('suffix', ['.npz', '.safetensors'])
def test_files(folder, proxy, suffix):
  path = folder / f'model{suffix}'
  proxy.faults += [
    Fault(503, method='POST|PUT', times=1),
    Fault('drop', method='GET', times=1),
  ]
  files.write(path, ARRAYS)
  for name, array in files.read(path).items():
    np.testing.assert_array_equal(array, ARRAYS[name])
  assert [fault.done for fault in proxy.faults] == [1, 1]
  assert [p.name for p in folder.iterdir()] == [path.name]
  with pytest.raises(ValueError, match='it exists, and is not to be'):
    files.write(path, ARRAYS)
  with pytest.raises(
    ValueError, match=f'mod{suffix} .*does not exist; its folder has model'
  ):
    files.read(folder / f'mod{suffix}')


def test_files_of_a_missing_bucket(proxy):
  with pytest.raises(ValueError, match='a.npz cannot be read: there is no buc'):
    files.read('gs://other/a.npz')
  with pytest.raises(ValueError, match='gs://other/a.npz: there is no bucket'):
    files.write('gs://other/a.npz', ARRAYS)


def test_a_file_needs_no_right_to_list_its_bucket(
  folder, proxy, model_and_params
):
  path = folder / 'public.npz'
  weights.save(path, *model_and_params, image_size=(8, 8))
  proxy.faults.append(Fault(403, path=r'/b/bucket/o/?(\?|$)', method='GET'))
  weights.load_checkpoint(path)
  with pytest.raises(ValueError, match='access is denied'):
    weights.load_checkpoint(folder / 'run')


def test_another_scheme_ends_in_one_line():
  message = 'Error: https://example.com/a.npz: only local paths and gs://'
  with pytest.raises(SystemExit, match=message):
    command.main(['inspect', 'https://example.com/a.npz'])


@pytest.mark.parametrize('name', ['public.npz', 'timm.safetensors', 'orbax'])
def test_saved_weights_are_loaded(folder, model_and_params, name):
  model, params = model_and_params
  weights.save(folder / name, model, params, image_size=(8, 8))
  loaded = weights.load_checkpoint(folder / name)
  jax.tree.map(np.testing.assert_array_equal, loaded.params, params)


def test_a_run_starts_from_them(
  folder, proxy, model_and_params, tiny_config, tmp_path
):
  model, params = model_and_params
  weights.save(folder / 'public.npz', model, params, image_size=(8, 8))
  tiny_config.init.checkpoint = f'{folder}/public.npz'
  tiny_config.total_steps, tiny_config.model.dropout = 0, 0.0
  proxy.faults.append(Fault(503, method='GET', path='public', every=2, times=2))
  state = train.train(tiny_config, str(tmp_path / 'run'))
  assert proxy.faults[0].done
  np.testing.assert_array_equal(
    state.params['embedding']['kernel'], params['embedding']['kernel']
  )
