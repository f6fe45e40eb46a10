"""What all tests share: eight fake devices, strictness, tiny configs."""

import os
import re

# Before JAX starts.
os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=8'
os.environ['JAX_PLATFORMS'] = 'cpu'

import jax
import pytest
from etils import epath

from configs import common
from vit_jax import sharding

jax.config.update('jax_numpy_rank_promotion', 'raise')
# Tiny models compile three times faster so, and hardly run slower.
jax.config.update('jax_disable_most_optimizations', True)


def shrink(config):
  """Makes a recipe tiny, and lets it read data that is there: digits."""
  config.total_steps, config.total_epochs = 2, None
  config.log_every = 1
  config.init.checkpoint = ''
  size = _shrink_model(config.model)
  config.train.batch_size = 8 * config.step.accum_steps
  config.optimizer.warmup_steps = min(config.optimizer.warmup_steps, 1)
  for section in (config.train, *config.evals.values()):
    section.update(
      dataset='digits',
      split='train' if section is config.train else 'test',
      batch_size=8,
      preprocess=_shrink_sizes(section.preprocess, size),
    )
  return config


def _shrink_model(model):
  """Returns the size of images that suits the tiny model, in pixels."""
  model.num_classes = 10
  if model.name == 'resnet':
    model.update(depths=(1, 2), width=0.5)
    return 16
  model.update(hidden_size=16, depth=2, mlp_dim=32, num_heads=2)
  if '+' in model.variant:
    model.update(variant='Ti/1', stem_depths=(1,), stem_width=0.5)
    return 8
  return 2 * int(model.variant.partition('/')[2])


def _shrink_sizes(recipe, size):
  """Makes the last size of a recipe `size`; larger ones stay larger."""
  sizes = re.findall(r'\d{3}', recipe)
  return re.sub(
    r'\d{3}', lambda match: str(size + (match[0] > sizes[-1])), recipe
  )


@pytest.fixture
def tiny_config():
  """A recipe that trains in a second."""
  c = common.base()
  c.total_steps = 4
  c.log_every = 1
  c.model.update(
    variant='Ti/4', num_classes=10, dtype='float32',
    hidden_size=16, depth=2, mlp_dim=32, num_heads=2,
  )  # fmt: skip
  c.train.update(
    dataset='digits', batch_size=16, preprocess='random_crop(8, padding=1)'
  )
  c.optimizer.warmup_steps = 1
  c.evals.test = common.classification('digits', 'test', '', batch_size=64)
  return c


@pytest.fixture(scope='module')
def compile_once(tmp_path_factory):
  """Lets all processes of a module share what one has compiled."""
  with pytest.MonkeyPatch.context() as patch:
    cache = tmp_path_factory.mktemp('compiled')
    patch.setenv('JAX_COMPILATION_CACHE_DIR', str(cache))
    patch.setenv('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.5')
    yield


@pytest.fixture
def make_mesh():
  """Returns a function from sizes to a mesh over as many devices."""

  def make(data, model=1, replica=1):
    devices = jax.devices()[: replica * data * model]
    return sharding.make_mesh(replica, data, model, devices)

  return make


@pytest.fixture
def bucket(tmp_path, monkeypatch):
  """A local folder that epath takes for gs://bucket."""
  folder = tmp_path / 'bucket'
  folder.mkdir()

  class Backend(type(epath.backend.os_backend)):
    def __getattribute__(self, name):
      found = super().__getattribute__(name)
      if name.startswith('_') or not callable(found):
        return found
      return lambda *args, **kwargs: found(*map(local, args), **kwargs)

  def local(path):
    text = str(path)
    return text.replace('gs://bucket', str(folder)) if 'gs://' in text else path

  monkeypatch.setattr(
    epath.gpath._GPath, '_backend', property(lambda self: Backend())
  )
  return folder
