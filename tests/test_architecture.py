"""Imports go one way, files and functions stay small, start-up stays quick."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FILES = sorted((ROOT / 'vit_jax').rglob('*.py'))

# A part of the package -> the parts that it may import, besides itself.
MAY_IMPORT = {
  'names': set(),
  'layouts': {'names'},
  'sharding': {'names', 'layouts'},
  'memory': {'chips', 'experiment', 'layouts', 'models', 'sharding'},
  'models': {'names'},
  'optimizers': {'names'},
  'data': {'names', 'sharding', 'command_line', 'storage'},
  'objectives': {'names', 'models'},
  'evaluators': {
    'names', 'models', 'data', 'sharding', 'objectives', 'processes',
  },
  'storage': set(),
  'doctor': {'storage', 'processes'},
  'processes': {'names'},
  'watchdog': set(),
  'goodput': set(),
  'profiling': set(),
  'checkpoint': {'names', 'storage'},
  'metrics': {'mirror'},
  'mirror': {'storage'},
  '__init__': {'weights'},
  'command_line': set(),
  'weights': {
    'names', 'models', 'checkpoint', 'data', 'command_line', 'storage',
  },
  'chips': set(),
  'flops': {'chips'},
  'compile_ahead': {
    'chips', 'command_line', 'data', 'evaluators', 'experiment', 'flops',
    'layouts', 'models', 'names', 'objectives', 'sharding',
  },
  'analysis': {'models', 'command_line', 'flops', 'data', 'chips'},
  'predict': {'command_line', 'models', 'data', 'weights'},
  'train_step': set(),
  'experiment': {
    'names', 'models', 'objectives', 'optimizers', 'sharding', 'train_step',
  },
  'train': {
    'experiment', 'data', 'sharding', 'evaluators', 'checkpoint', 'metrics',
    'weights', 'flops', 'layouts', 'goodput', 'memory',
    'processes', 'profiling', 'storage', 'watchdog',
  },
  'main': {'train', 'checkpoint', 'command_line', 'processes'},
}  # fmt: skip
# Libraries that are slow to import or that a train step does without.
ONLY_IN = {
  'tensorflow': {'data/__init__.py'},
  'tensorflow_datasets': {
    'data/sources.py',
    'data/prepare/tfds_building.py',
  },
  'array_record': {
    'data/sources.py',
    'data/shards.py',
    'data/shard_writer.py',
  },
  'clu': {'metrics.py'},
  'sklearn': {'data/datasets.py', 'data/deduplicate/evaluation.py'},
  'orbax': {
    'checkpoint/files.py',
    'checkpoint/writing.py',
    'weights/orbax.py',
  },
  'absl': {
    'command_line.py',
    'main.py',
    'compile_ahead/__main__.py',
    'data/pipeline.py',
    'data/prepare/__main__.py',
    'analysis/compute.py',
    'predict.py',
  },
  'PIL': {
    'data/images.py',
    'data/deduplicate/evaluation.py',
    'data/deduplicate/fingerprints.py',
    'data/deduplicate/sheet.py',
  },
  'apache_beam': {'data/deduplicate/search.py'},
  'faiss': {'data/deduplicate/index.py'},
  'safetensors': {'weights/files.py'},
  'gcsfs': {'storage.py'},
  'fsspec': {'storage.py'},
  'aiohttp': {'storage.py'},
}


def imports(path):
  """Yields (imported dotted name, whether at the top level of the file)."""
  tree = ast.parse(path.read_text())
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from ((alias.name, node in tree.body) for alias in node.names)
    if isinstance(node, ast.ImportFrom):
      assert not node.level, f'{path}: relative import'
      for alias in node.names:
        yield f'{node.module}.{alias.name}', node in tree.body


def relative(path):
  return str(path.relative_to(ROOT / 'vit_jax'))


@pytest.mark.parametrize('path', FILES, ids=relative)
def test_imports_go_one_way(path):
  part = relative(path).split('/')[0].removesuffix('.py')
  for name, _ in imports(path):
    library, _, rest = name.partition('.')
    imported = rest.split('.')[0]
    if library == 'vit_jax' and imported != part:
      assert part in MAY_IMPORT, f'{part} has no row in MAY_IMPORT'
      assert imported in MAY_IMPORT[part], f'{part} imports {imported}'


@pytest.mark.parametrize('path', FILES, ids=relative)
def test_libraries_stay_where_they_belong(path):
  for name, at_top in imports(path):
    library = name.partition('.')[0]
    assert library != 'configs'
    if library in ONLY_IN:
      assert relative(path) in ONLY_IN[library]
      assert not at_top or library in ('orbax', 'absl', 'safetensors')


def test_recipes_import_configs_only():
  for path in (ROOT / 'configs').glob('*.py'):
    allowed = ('ml_collections', 'configs.common')
    for name, _ in imports(path):
      assert name.startswith(allowed), f'{path} imports {name}'


def test_every_module_has_its_test():
  for path in FILES:
    name = relative(path)
    tested = ROOT / 'tests' / pathlib.Path(name).parent / f'test_{path.name}'
    elsewhere = {
      '__init__.py',  # nothing
      'data/__init__.py',  # everywhere
      'data/decoding.py',  # test_preprocess.py
      'data/examples.py',  # test_pipeline.py, test_bad_input.py
      'data/classes.py', 'data/folders.py',  # test_files.py
      'data/manifest.py',  # test_files.py
      'data/objectnet.py',  # test_datasets.py
      'data/shard_table.py', 'data/shard_writer.py',  # test_shards.py
      *(f'data/prepare/{file}.py' for file in (
        '__init__', '__main__', 'file_packing', 'imagenet21k', 'packing',
        'progress', 'tar', 'tfds_building', 'vtab_status',
      )),  # data/test_prepare.py
      *(f'data/deduplicate/{file}.py' for file in (
        '__init__', '__main__', 'evaluation', 'fingerprints', 'index', 'search',
        'sheet',
      )),  # data/test_deduplicate.py, data/test_fingerprints.py
      'storage.py', 'mirror.py',  # gcs/
      'checkpoint/__init__.py',  # test_checkpoint.py
      'processes/__init__.py', 'processes/hub.py',  # test_processes.py
      'compile_ahead/__init__.py',  # nothing
      'compile_ahead/__main__.py',  # test_compile_ahead.py
      *(f'doctor/{file}.py' for file in (
        '__init__', '__main__', 'device_probe', 'devices', 'finding',
        'installation', 'machine', 'probe', 'workdir', 'workdir_probe',
      )),  # test_doctor.py, gcs/test_doctor.py
      'evaluators/__init__.py', 'objectives/__init__.py',
      'models/__init__.py', 'models/attention.py', 'models/encoder.py',
      'models/layers.py', 'models/position_embedding.py',
      'models/variants.py',  # test_vit.py
      'models/axial.py', 'models/bottleneck.py',  # test_resnet.py
      'analysis/__init__.py',  # nothing
      'weights/__init__.py', 'weights/beside.py', 'weights/describe.py',
      'weights/huggingface.py',
      'weights/infer.py', 'weights/layout.py', 'weights/npz.py',
      'weights/orbax.py', 'weights/report.py', 'weights/source.py',
      'weights/timm.py', 'weights/writing.py',  # test_load.py
      'weights/__main__.py',  # test_main.py
    }  # fmt: skip
    assert tested.exists() or name in elsewhere, name


def test_files_and_functions_stay_small():
  for path in FILES:
    source = path.read_text()
    assert source.count('\n') <= 300, path
    for node in ast.walk(ast.parse(source)):
      if isinstance(node, ast.FunctionDef) and node.name != 'train':
        body = node.body[bool(ast.get_docstring(node)) :]
        size = body[-1].end_lineno - body[0].lineno + 1 if body else 0
        assert size <= 60, f'{path}: {node.name} has {size} lines'


IMPORT = """
import sys, time
start = time.process_time()
import vit_jax.models
print(time.process_time() - start)
assert not {'tensorflow', 'tensorflow_datasets', 'clu', 'orbax', 'sklearn'} & (
  set(sys.modules)), sorted(sys.modules)
"""


def python(code):
  return subprocess.run(
    [sys.executable, '-c', code],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )


def test_importing_the_models_is_quick_and_light():
  seconds = []
  for _ in range(3):
    result = python(IMPORT)
    assert result.returncode == 0, result.stderr
    seconds.append(float(result.stdout))
  assert min(seconds) < 2


STEP = """
import sys
for name in ('tensorflow', 'tensorflow_datasets', 'clu', 'tensorboard',
             'sklearn', 'array_record'):
  sys.modules[name] = None  # importing it fails
import jax, numpy as np
from vit_jax import models, objectives, optimizers, train_step
model = models.build(variant='Ti/4', num_classes=2, hidden_size=8, depth=1,
                     mlp_dim=8, num_heads=1)
objective = objectives.build(model, 'classification')
tx, _ = optimizers.build(total_steps=2)
state = train_step.init_state(objective, tx, (4, 4, 3), jax.random.key(0))
batch = {'image': np.zeros((2, 4, 4, 3), 'u1'), 'label': np.zeros(2, 'i4')}
step = jax.jit(train_step.make_train_step(objective, tx))
print(int(step(state, batch, jax.random.key(0))[0].step))
"""


def test_a_step_needs_neither_tensorflow_nor_clu():
  result = python(STEP)
  assert result.stdout.strip() == '1', result.stderr
