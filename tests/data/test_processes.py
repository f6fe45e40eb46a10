"""The same batches from 1, 2 and 4 real processes."""

import hashlib
import io

import numpy as np
import process_runner
import pytest
from PIL import Image

# Prints, for each of this process's rows of each batch, what is in it.
PROCESS = """
import hashlib, itertools, json, sys
import jax, numpy as np
address, number, count, dataset = sys.argv[1:]
number, count = int(number), int(count)
if count > 1:
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  jax.distributed.initialize(address, count, number)
from vit_jax import sharding
from vit_jax.data import pipeline

mesh = sharding.make_mesh()
assert mesh.size == 4 and jax.process_count() == count

def rows(batch):
  found = []
  for key in sorted(batch):
    for shard in batch[key].addressable_shards:
      start = shard.index[0].start or 0
      for row, value in enumerate(np.asarray(shard.data)):
        digest = hashlib.sha256(value.tobytes()).hexdigest()
        found.append([key, start + row, digest])
  return found

train = pipeline.TrainData(
  mesh, 0, dataset, 'all', 16, 'inception_crop(8)|flip_lr|randaugment(2, 10)',
  subset=45, max_bad_share=1.0)
evaluation = pipeline.EvalData(
  mesh, dataset, 'all', 8, 'resize(8)', 'config.evals.test', skip_bad=True)
far = train.batches(10**7)
near = train.batches(0)
print(json.dumps({
  'near': [rows(b) for b in itertools.islice(near, 5)],
  'bad': sharding.sum_over_processes(train.num_bad),
  'far': [rows(b) for b in itertools.islice(far, 2)],
  'eval': [rows(b) for b in evaluation.batches()],
  'eval_bad': sharding.sum_over_processes(evaluation.num_bad),
}))
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """50 images, some of which cannot be read."""
  root = tmp_path_factory.mktemp('images')
  rng = np.random.default_rng(0)
  for number in range(50):
    stream = io.BytesIO()
    pixels = rng.integers(0, 256, (20 + number % 5, 30, 3), np.uint8)
    kind = ('JPEG', 'PNG', 'WEBP')[number % 3]
    Image.fromarray(pixels).save(stream, kind)
    path = root / f'class{number % 4}/{number}.jpg'
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(stream.getvalue()[: 100 if number % 9 == 0 else None])
  return root


def run(folder, count):
  """Returns what all processes of a run have, joined and sorted by row."""
  address = process_runner.free_address()
  commands = [['-c', PROCESS, address, i, count, folder] for i in range(count)]
  with process_runner.started(commands, devices=4 // count) as processes:
    found = process_runner.results(processes, timeout=300)
  assert all(f['bad'] == found[0]['bad'] for f in found)
  joined = {name: found[0][name] for name in ('bad', 'eval_bad')}
  for part in ('near', 'far', 'eval'):
    joined[part] = [
      sorted(row for rows in batch for row in rows)
      for batch in zip(*(f[part] for f in found), strict=True)
    ]
  return joined


@pytest.fixture(scope='module')
def alone(folder):
  return run(str(folder), 1)


@pytest.mark.parametrize('count', [2, 4])
def test_any_number_of_processes_makes_the_same_batches(folder, alone, count):
  together = run(str(folder), count)
  # Each row is there once, and is what one process makes of it.
  assert [len(batch) for batch in together['near']] == [32] * 5
  for part in ('near', 'far', 'eval', 'bad', 'eval_bad'):
    assert together[part] == alone[part], part


def test_bad_examples_are_counted_over_all_processes(alone):
  assert alone['eval_bad'] == 6
  assert 5 <= alone['bad'] <= 12  # 80 examples of a subset of 45
  masks = {
    digest for batch in alone['eval'] for key, _, digest in batch
    if key == 'mask'
  }  # fmt: skip
  assert masks == {
    hashlib.sha256(np.float32(x).tobytes()).hexdigest() for x in (0, 1)
  }
