"""The command line of weights: what it prints, what it writes, how it fails."""

import os
import subprocess
import sys

import numpy as np
import pytest

from vit_jax import models, weights
from vit_jax.weights import __main__ as command
from vit_jax.weights import adapt, describe, export, files, orbax

VIT = dict(
  variant='Ti/4', num_classes=5, hidden_size=16, depth=2, mlp_dim=32,
  num_heads=2,
)  # fmt: skip


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  """A .npz file of a tiny model for images of 16 x 16, of which no array is 0.

  It stays as it is: tests write elsewhere.
  """
  path = tmp_path_factory.mktemp('source') / 'a.npz'
  model = models.build(**VIT)
  rng = np.random.default_rng(0)
  params = {
    k: rng.normal(size=v.shape).astype('f4')
    for k, v in describe.shapes(model, (16, 16)).items()
  }
  weights.save(path, model, describe.unflatten(params))
  return path


def run(*words):
  command.main([str(word) for word in words])


def fails(capsys, *words):
  """Returns what a command that has to fail prints, in one line."""
  with pytest.raises(SystemExit) as error:
    run(*words)
  assert not capsys.readouterr().out
  message = error.value.code  # Python prints it, and exits with 1
  assert message.startswith('Error: ')
  assert '\n' not in message
  return message


def assert_same_file(actual, expected):
  actual, expected = files.read(actual), files.read(expected)
  assert list(actual) == list(expected)
  for name, array in expected.items():
    assert actual[name].dtype == array.dtype
    np.testing.assert_array_equal(actual[name], array, err_msg=name)


def test_a_chain_of_all_layouts_ends_where_it_began(source, tmp_path, capsys):
  at = source
  for name, *flags in (
    ('orbax',),
    ('timm.safetensors',),
    ('huggingface', '--to=huggingface'),
    ('again.npz',),
    ('wrong.suffix', '--to=orbax'),
    ('named.safetensors', '--to=timm'),
    ('b.npz',),
  ):
    run('convert', at, tmp_path / name, *flags)
    output = capsys.readouterr().out
    assert f'wrote {tmp_path / name}, ' in output
    at = tmp_path / name
  assert_same_file(tmp_path / 'again.npz', source)
  assert_same_file(tmp_path / 'b.npz', source)
  assert orbax.find(tmp_path / 'orbax') == tmp_path / 'orbax'
  assert (tmp_path / 'huggingface' / 'config.json').exists()


def test_paths_may_be_relative(source, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  run('convert', source, 'a')
  run('convert', 'a', 'b.npz')
  assert_same_file('b.npz', source)


def test_convert_prints_what_became_of_the_arrays(source, tmp_path, capsys):
  path = tmp_path / 'b.npz'
  run('convert', source, path)
  output = capsys.readouterr().out
  assert 'renamed  cls ' in output
  assert 'Transformer/encoderblock_{0..1}/LayerNorm_0/bias' in output
  assert f'{source}: 4 loaded, 36 renamed' in output
  assert f'wrote {path}, {path.stat().st_size:,} bytes' in output


def test_convert_to_another_size_and_head(source, tmp_path, capsys):
  path = tmp_path / 'b'
  run(
    'convert', source, path, '--image_size=32x16', '--num_classes=3',
    '--head=gap', '--resize=cubic',
  )  # fmt: skip
  output = capsys.readouterr().out
  assert '(1, 17, 16) -> (1, 32, 16), cubic' in output
  assert 'reset    head/kernel' in output
  checkpoint = weights.load_checkpoint(path)
  assert checkpoint.image_size == (32, 16)
  assert (checkpoint.model.head, checkpoint.model.num_classes) == ('gap', 3)
  old = files.read(source)['Transformer/posembed_input/pos_embedding']
  expected = adapt.resize_cubic(old[0, 1:].reshape(4, 4, 16), (8, 4))
  np.testing.assert_array_equal(
    checkpoint.params['position_embedding'], expected.reshape(1, 32, 16)
  )


def test_convert_what_the_file_does_not_show(source, tmp_path, capsys):
  wide, bare = tmp_path / 'wide.safetensors', tmp_path / 'bare.safetensors'
  run('convert', source, wide, '--image_size=16x32')
  files.write(bare, files.read(wide))  # without what says of which model
  capsys.readouterr()
  message = fails(capsys, 'convert', bare, tmp_path / 'c', '--grid=4x8')
  assert 'pass num_heads=' in message
  message = fails(capsys, 'convert', bare, tmp_path / 'c', '--num_heads=2')
  assert 'pass grid=(rows, columns)' in message
  run('convert', bare, tmp_path / 'c', '--grid=4x8', '--num_heads=2')
  checkpoint = weights.load_checkpoint(tmp_path / 'c')
  assert checkpoint.image_size == (16, 32)
  assert checkpoint.model.num_heads == 2


@pytest.mark.parametrize('name', ['b.npz', 'b.safetensors', 'b'])
def test_nothing_is_overwritten_unasked(name, source, tmp_path, capsys):
  path, old = tmp_path / name, tmp_path / 'old.npz'
  arrays = files.read(source)
  files.write(old, arrays | {'head/bias': arrays['head/bias'] + 1})
  run('convert', old, path)
  capsys.readouterr()
  assert 'not to be overwritten' in fails(capsys, 'convert', source, path)
  run('convert', path, tmp_path / 'same.npz')
  assert_same_file(tmp_path / 'same.npz', old)
  run('convert', source, path, '--overwrite')
  run('convert', path, tmp_path / 'new.npz')
  assert_same_file(tmp_path / 'new.npz', source)


def test_a_folder_of_other_things_is_never_overwritten(
  source, tmp_path, capsys
):
  photo = tmp_path / 'photos' / 'cat.jpg'
  photo.parent.mkdir()
  photo.write_text('cat')
  message = fails(capsys, 'convert', source, photo.parent, '--overwrite')
  assert 'is not one checkpoint, so it is not overwritten' in message
  assert photo.read_text() == 'cat'


def test_inspect(source, tmp_path, capsys):
  run('inspect', source)
  output = capsys.readouterr().out
  assert output.startswith('name ')
  assert '40 arrays, 22,548 bytes, layout npz' in output
  assert 'parameters  5,637' in output
  unknown = tmp_path / 'u.npz'
  files.write(unknown, {'x': np.array([1, np.nan], 'f2')})
  run('inspect', unknown)
  output = capsys.readouterr().out
  assert 'NAN OR INF' in output
  assert 'of no known layout' in output


def test_list(capsys, monkeypatch, tmp_path):
  monkeypatch.setenv('VIT_JAX_CACHE', str(tmp_path))
  run('list')
  output = capsys.readouterr().out
  assert 'vit_b16_augreg_i21k' in output
  assert 'storage.googleapis.com' in output


def test_export(source, tmp_path, capsys):
  path = tmp_path / 'a.stablehlo'
  run(
    'export', source, path, '--to=stablehlo', '--platforms=cpu',
    '--image_size=16x32', '--dtype=bfloat16',
  )  # fmt: skip
  output = capsys.readouterr().out
  assert f'wrote {path}, ' in output
  assert 'uint8 [B, 16, 32, 3]' in output
  # What it computes is tested with export.export.
  logits, representation = export.read(path)(np.zeros((2, 16, 32, 3), 'u1'))
  assert logits.shape == (2, 5)
  assert representation.shape == (2, 16)
  assert 'not to be overwritten' in fails(capsys, 'export', source, path)


HOSTILE = {
  'empty.npz': b'',
  'page.npz': b'<html>Sign in</html>',
  'zip.npz': b'PK\3\4' + bytes(100),
  'noise.safetensors': b'\xff' * 100,
  'huge.safetensors': (2**40).to_bytes(8, 'little') + b'{}',
  'pickle.pth': b'\x80\x02.',
}


@pytest.mark.parametrize('name', HOSTILE)
@pytest.mark.parametrize('words', [['inspect'], ['convert'], ['export']])
def test_hostile_files_give_one_line(words, name, tmp_path, capsys):
  path = tmp_path / name
  path.write_bytes(HOSTILE[name])
  more = [] if words == ['inspect'] else [tmp_path / 'out']
  assert name in fails(capsys, *words, path, *more)
  assert sorted(p.name for p in tmp_path.iterdir()) == [name]


MISTAKES = [
  ((), 'arguments are required: COMMAND; see python -m vit_jax.weights --he'),
  (('melt', 'a'), "invalid choice: 'melt'"),
  (('inspect',), 'arguments are required: SRC; see python -m vit_jax.weights '),
  (('inspect', 'nothing.npz'), 'nothing.npz cannot be read: it does not exist'),
  (('inspect', 'runs/nothing'), 'runs/nothing does not exist'),
  (('inspect', 'vit_b61'), "checkpoint='vit_b61' is unknown"),
  (('convert', 'SRC', 'b.pth'), "b.pth: no layout follows from the suffix '.p"),
  (('convert', 'SRC', 'b', '--to=onnx'), "invalid choice: 'onnx'"),
  (('convert', 'SRC', 'b', '--image_size=0'), "'0' is no size; write 224 or "),
  (('convert', 'SRC', 'b', '--image_size=16x'), "'16x' is no size"),
  (('convert', 'SRC', 'b', '--image_size=99999'), 'at most 10000'),
  (('convert', 'SRC', 'b', '--image_size=17'), 'do not divide into patches'),
  (('convert', 'SRC', 'b', '--num_classes=-1'), "'-1' is no number"),
  (('convert', 'SRC', 'b', '--grid=3x5'), 'which a grid of 3 x 5 is not'),
  (('convert', 'SRC', 'b', '--over'), 'unrecognized arguments: --over'),
  (('convert', 'SRC', '/dev/null/b'), '/dev/null/b cannot be written'),
  (('convert', 'SRC', '/dev/null/b.npz'), '/dev/null/b.npz cannot be written'),
  (('export', 'SRC', 'b', '--platforms=gpu'), "platforms='gpu' is not some of"),
  (('export', 'SRC', '/dev/null/b'), '/dev/null/b cannot be written'),
]


@pytest.mark.parametrize(('words', 'text'), MISTAKES)
def test_mistakes_give_one_line(
  words, text, source, tmp_path, capsys, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  words = [source if word == 'SRC' else word for word in words]
  assert text in fails(capsys, *words)
  assert not list(tmp_path.iterdir())


def test_a_reader_who_has_seen_enough(source):
  # The pipe's end is closed before anything is written.
  reader, writer = os.pipe()
  os.close(reader)
  result = subprocess.run(
    [sys.executable, '-m', 'vit_jax.weights', 'inspect', source],
    stdout=writer,
    stderr=subprocess.PIPE,
    text=True,
    check=False,
  )
  os.close(writer)
  assert result.returncode == 1
  assert 'Traceback' not in result.stderr
  assert 'Broken' not in result.stderr


def test_help():
  result = subprocess.run(
    [sys.executable, '-m', 'vit_jax.weights', '--help'],
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 0, result.stderr
  for name in command.COMMANDS:
    assert f'    {name} ' in result.stdout


@pytest.mark.parametrize('name', command.COMMANDS)
def test_help_of_commands(name, capsys):
  with pytest.raises(SystemExit, match='0'):
    run(name, '--help')
  output = capsys.readouterr().out
  assert output.startswith(f'usage: python -m vit_jax.weights {name} ')
  assert all(len(line) <= 80 for line in output.splitlines())
