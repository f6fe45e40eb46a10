import json
import os
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from PIL import Image

from vit_jax import models, names, predict, weights
from vit_jax.data import labels, pipeline, preprocess

RNG = np.random.default_rng(0)


def checkpoint(num_classes=10, class_names=None, **kwargs):
  """Returns a tiny model with random weights, as `weights` loads one."""
  model = models.build(
    variant='Ti/4', hidden_size=16, depth=1, mlp_dim=16, num_heads=2,
    num_classes=num_classes, dtype='float32', **kwargs,
  )  # fmt: skip
  shapes = jax.eval_shape(
    model.init, jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32)
  )
  params = jax.tree.map(
    lambda leaf: RNG.normal(size=leaf.shape).astype(np.float32),
    shapes['params'],
  )
  return types.SimpleNamespace(
    model=model,
    params=params,
    image_size=(8, 8),
    preprocess='resize_small(10)|central_crop(8)',
    labels=class_names,
  )


@pytest.fixture(scope='module')
def digits():
  return checkpoint(class_names=labels.names_of('digits'))


@pytest.fixture
def folder(tmp_path):
  """Five images, and the paths of two files that are none."""
  for i in range(5):
    pixels = RNG.integers(0, 256, (12 + i, 20, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / f'{i}.png')
  bad = tmp_path / 'bad'
  bad.mkdir()
  (bad / 'text.jpg').write_text('no image')
  good = (tmp_path / '0.png').read_bytes()
  (bad / 'cut.png').write_bytes(good[: len(good) // 2])
  return tmp_path


@pytest.fixture
def run(digits, monkeypatch, capsys):
  """Returns a function: arguments to (exit code, stdout, stderr)."""
  asked = []

  def load_checkpoint(path_or_name, image_size=None):
    asked.append((path_or_name, image_size))
    # Raises in this project's code if there is none of that name.
    return names.lookup({'tiny': digits}, path_or_name, '--checkpoint')

  monkeypatch.setattr(
    weights, 'load_checkpoint', load_checkpoint, raising=False
  )

  def run(*args, checkpoint='tiny'):
    code = 0
    with flagsaver.flagsaver():
      argv = flags.FLAGS(['predict', f'--checkpoint={checkpoint}', *args])
      try:
        predict.main(argv)
      except SystemExit as error:
        code = error.code
    out, err = capsys.readouterr()
    if isinstance(code, str):  # as the interpreter does
      code, err = 1, err + code
    return code, out, err

  run.asked = asked
  return run


def paths_of(folder):
  return sorted(str(path) for path in folder.glob('*.png'))


def probabilities(result):
  return {row['class']: row['probability'] for row in result['predictions']}


def test_probabilities_are_those_of_the_model(digits, folder):
  paths = paths_of(folder)
  results = list(predict.predict(digits, paths, top_k=10))
  assert [result['image'] for result in results] == paths
  for path, result in zip(paths, results, strict=True):
    image = np.asarray(Image.open(path)).astype(np.float32)
    shape = np.round(np.array(image.shape[:2]) * 10 / min(image.shape[:2]))
    resized = jax.image.resize(
      image, (*shape.astype(int), 3), 'bilinear', antialias=False
    )
    top, left = (np.array(resized.shape[:2]) - 8) // 2
    pixels = np.floor(resized[top : top + 8, left : left + 8] + 0.5)
    logits, _ = digits.model.apply(
      {'params': digits.params}, pixels[None] / 127.5 - 1
    )
    expected = jax.nn.softmax(logits[0])
    actual = probabilities(result)
    assert sum(actual.values()) == pytest.approx(1, abs=1e-5)
    assert list(actual.values()) == sorted(actual.values(), reverse=True)
    for index, probability in actual.items():
      # A pixel on the edge of rounding may fall to either side.
      assert probability == pytest.approx(float(expected[index]), abs=0.02)


def test_batches_and_padding_do_not_show(digits, folder):
  one_by_one, *batched = (
    list(predict.predict(digits, paths_of(folder), 10, size))
    for size in (1, 2, 32)
  )
  for results in batched:
    for expected, actual in zip(one_by_one, results, strict=True):
      assert actual['image'] == expected['image']
      assert probabilities(actual) == pytest.approx(
        probabilities(expected), abs=1e-6
      )


def test_pixels_are_those_of_the_evaluators(digits, folder, monkeypatch):
  """A JPEG that both see goes through the same ops."""
  path = folder / 'a.jpg'
  Image.open(folder / '0.png').save(path)
  seen = predict._reader(digits)(str(path))
  op = preprocess.parse(digits.preprocess, 'config.preprocess')
  expected = op(pipeline.tf.constant(path.read_bytes()), np.zeros(2, np.int32))
  np.testing.assert_array_equal(seen, expected)


def test_paths_are_read_batch_by_batch(digits, folder):
  read = []

  def endless():
    while True:
      read.append(0)
      yield str(folder / '0.png')

  results = predict.predict(digits, endless(), batch_size=4)
  next(results)
  assert len(read) == 4


def test_bad_images_are_reported_and_skipped(run, folder):
  code, out, err = run('--top_k=2', '--batch_size=4', str(folder), 'gone.jpg')
  assert code == 1
  assert 'bad/text.jpg: not an image (BMP, GIF, JPEG, PNG, WEBP)' in err
  assert 'bad/cut.png: Invalid PNG data' in err
  assert 'gone.jpg: No such file or directory\n' in err
  assert err.endswith('Error: 3 of 8 images could not be read.')
  assert len(err.splitlines()) == 4
  assert [line for line in out.splitlines() if line.endswith('.png')] == (
    paths_of(folder)
  )
  assert out.count('%') == 10


def test_json_is_one_object_a_line(run, folder, digits):
  code, out, _ = run('--json', '--batch_size=3', '--top_k=3', str(folder))
  assert code == 1
  lines = [json.loads(line) for line in out.splitlines()]
  good, bad = lines[:5], lines[5:]
  assert good == list(predict.predict(digits, paths_of(folder), 3, 3))
  assert [set(line) for line in bad] == [{'image', 'error'}] * 2
  assert set(good[0]['predictions'][0]) == {'class', 'label', 'probability'}


def test_a_picture_for_people(run, folder, digits):
  path = str(folder / '1.png')
  (result,) = predict.predict(digits, [path], top_k=2)
  code, out, err = run('--top_k=2', path)
  assert (code, err) == (0, '')
  name, *rows, empty = out.splitlines()
  assert (name, empty) == (path, '')
  for row, expected in zip(rows, result['predictions'], strict=True):
    percentage, *bar, label = row.split()
    assert percentage == f'{expected["probability"]:.1%}'
    assert label == expected['label']
    length = round(expected['probability'] * 20)
    assert bar == (['█' * length] if length else [])
  assert run.asked == [('tiny', None)]
  run('--image_size=8', path)
  assert run.asked[1] == ('tiny', 8)


def test_nothing_to_predict(run, tmp_path):
  for args in ([], [str(tmp_path)]):
    code, out, err = run(*args)
    assert (code, out) == (2, '')
    assert 'Error: there is no image to predict; name image files' in err
  assert not run.asked  # nothing is loaded for that


def test_errors_of_loading_are_one_line(run, folder):
  code, out, err = run(str(folder), checkpoint='tinny')
  assert (code, out) == (1, '')
  assert err.startswith("Error: --checkpoint='tinny' is unknown (did you mean")


def test_names_of_any_bytes(run, folder):
  path = os.fsencode(folder) + b'/\xff.png'
  os.rename(folder / '0.png', path)
  code, out, _ = run(os.fsdecode(path))
  assert code == 0
  assert '\\udcff.png' in out
  _, out, _ = run('--json', os.fsdecode(path))
  assert os.fsencode(json.loads(out)['image']) == path


@pytest.mark.parametrize(
  ('C', 'class_names', 'first', 'last'),
  [
    (2, None, 'class 0', 'class 1'),
    (2, ('cat', 'dog'), 'cat', 'dog'),
  ],
)  # fmt: skip
def test_names(C, class_names, first, last):
  found = predict._class_names(class_names, C)
  assert (len(found), found[0], found[-1]) == (C, first, last)


def test_fewer_classes_than_top_k(folder):
  paths = paths_of(folder)[:1]
  (result,) = predict.predict(checkpoint(2), paths, top_k=5)
  assert {row['label'] for row in result['predictions']} == (
    {'class 0', 'class 1'}
  )


def test_a_checkpoint_that_does_not_fit_is_explained(digits, folder):
  with pytest.raises(ValueError, match=r'names 2 classes, .* 10; save it'):
    predict.predict(checkpoint(class_names=('cat', 'dog')), [])
  headless = checkpoint()
  headless.model = types.SimpleNamespace(apply=lambda *_: (None, {}))
  with pytest.raises(ValueError, match='no head, so it names no classes'):
    predict.predict(headless, [])
  other = types.SimpleNamespace(**vars(digits) | {'preprocess': 'resize(9)'})
  (result,) = predict.predict(other, paths_of(folder)[:1])
  assert result['error'] == (
    "'resize(9)' makes it (9, 9, 3), but the model takes (8, 8, 3)"
  )
  other.preprocess = 'central_crop(13)'
  (result,) = predict.predict(other, paths_of(folder)[:1])
  assert result['error'].startswith('An image is smaller than its crop of 13')


def test_the_command_explains_itself():
  def command(*args):
    return subprocess.Popen(
      [sys.executable, '-m', 'vit_jax.predict', *args],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  with command('--help') as helping, command('a.jpg') as failing:
    out, _ = helping.communicate(timeout=60)
    _, err = failing.communicate(timeout=60)
  assert '--checkpoint=PATH_OR_NAME IMAGE_OR_FOLDER...' in out
  assert '--top_k: Number of classes named' in out
  assert failing.returncode == 1
  assert 'Error: flag --checkpoint=None' in err
  assert 'Traceback' not in err
