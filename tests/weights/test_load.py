"""Weights of all layouts: written by hand here as others wrote them."""

import functools
import json
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import vit_jax
from vit_jax import models, weights
from vit_jax.weights import describe, files, report

VIT = dict(
  variant='Ti/4', num_classes=5, hidden_size=16, depth=2, mlp_dim=24,
  num_heads=2,
)  # fmt: skip
HYBRID = VIT | dict(variant='Ti/2', stem_depths=(1, 2), stem_width=0.5)
RESNET = dict(
  name='resnet', variant='R14x0.5', num_classes=5, depths=(1, 2), version=2
)
MODELS = {
  'token': VIT,
  'pre_logits': VIT | dict(pre_logits=True),
  'gap': VIT | dict(head='gap'),
  'map': VIT | dict(head='map'),
  'headless': VIT | dict(num_classes=0),
  'sincos': VIT | dict(head='gap', position_embedding='sincos2d'),
  'hybrid': HYBRID,
  'root': VIT | dict(variant='Ti/2', stem_depths=(), stem_width=0.5),
  'bit': RESNET,
  'resnet_v1': RESNET | dict(version=1),
}


@functools.cache
def made(name, size=16):
  """Returns (module, flat parameters), of which none is 0."""
  model = models.build(**MODELS[name])
  shapes = describe.shapes(model, (size, size))
  rng = np.random.default_rng(0)
  return model, {
    k: rng.normal(size=v.shape).astype('f4') for k, v in shapes.items()
  }


def save(path, name, **kwargs):
  model, params = made(name)
  weights.save(path, model, describe.unflatten(params), **kwargs)
  return model, params


def assert_same(actual, expected):
  assert set(actual) == set(expected)
  for name, array in expected.items():
    np.testing.assert_array_equal(actual[name], array, err_msg=name)


ROUND_TRIPS = [
  *(('npz', name) for name in MODELS),
  *(('timm', n) for n in ('token', 'gap', 'map', 'headless', 'hybrid', 'bit')),
  *(('huggingface', name) for name in ('token', 'headless')),
  *(('orbax', name) for name in ('token', 'hybrid', 'resnet_v1')),
]


@pytest.mark.parametrize(('to', 'name'), ROUND_TRIPS)
def test_what_is_written_is_read_again(to, name, tmp_path):
  path = tmp_path / ('x' + {'npz': '.npz', 'timm': '.safetensors'}.get(to, ''))
  model, params = save(path, name, to=to, image_size=(16, 16))
  checkpoint = weights.load_checkpoint(path)
  assert describe.arguments(checkpoint.model) == describe.arguments(model)
  assert_same(describe.flatten(checkpoint.params), params)
  is_sized = to == 'orbax' or 'position_embedding' in params
  assert checkpoint.image_size == ((16, 16) if is_sized else (224, 224))


def test_three_lines(tmp_path):
  save(tmp_path / 'x.npz', 'token')
  model, params = vit_jax.load(tmp_path / 'x.npz')
  images = jnp.zeros((1, 16, 16, 3))
  logits, features = jax.jit(model.apply)({'params': params}, images)
  assert logits.shape == (1, 5)
  assert features['representation'].shape == (1, 16)


def published(params, generation):
  """Names a tiny ViT's arrays as a generation of JAX code did, by hand."""
  dense = 'MlpBlock_3/Dense_' if generation == 'pre-Linen' else 'MlpBlock_0/'
  attention, norms = {
    'pre-Linen': ('MultiHeadDotProductAttention_1', (0, 2)),
    'Linen': ('MultiHeadDotProductAttention_0', (0, 1)),
  }[generation]
  if generation == 'Linen':
    dense += 'Dense_'
  arrays = {
    'cls': params['class_token'],
    'Transformer/posembed_input/pos_embedding': params['position_embedding'],
  }
  for ours, theirs in (
    ('embedding', 'embedding'), ('norm', 'Transformer/encoder_norm'),
    ('head', 'head'),
  ):  # fmt: skip
    for leaf in ('kernel', 'scale', 'bias'):
      if f'{ours}/{leaf}' in params:
        arrays[f'{theirs}/{leaf}'] = params[f'{ours}/{leaf}']
  for i in range(2):
    block = f'Transformer/encoderblock_{i}'
    for j, name in enumerate(('query', 'key', 'value')):
      kernel = params['blocks/attention/qkv/kernel'][i, :, j]
      arrays[f'{block}/{attention}/{name}/kernel'] = kernel
      arrays[f'{block}/{attention}/{name}/bias'] = params[
        'blocks/attention/qkv/bias'
      ][i, j]
    for ours, theirs in (
      ('attention/out', f'{attention}/out'), ('mlp_in', f'{dense}0'),
      ('mlp_out', f'{dense}1'), ('attention_norm', f'LayerNorm_{norms[0]}'),
      ('mlp_norm', f'LayerNorm_{norms[1]}'),
    ):  # fmt: skip
      for leaf in ('kernel', 'scale', 'bias'):
        name = f'blocks/{ours}/{leaf}'
        if name in params:
          arrays[f'{block}/{theirs}/{leaf}'] = params[name][i]
  return arrays


@pytest.mark.parametrize('generation', ['pre-Linen', 'Linen'])
@pytest.mark.parametrize(
  'prefix', ['', 'params/', 'opt/target/', 'params/img/']
)
def test_generations_of_vit(generation, prefix, tmp_path):
  model, params = made('token')
  arrays = published(params, generation)
  if prefix:
    arrays = {prefix + name: array for name, array in arrays.items()}
  files.write(tmp_path / 'x.npz', arrays)
  checkpoint = weights.load_checkpoint(tmp_path / 'x.npz')
  assert checkpoint.model == model
  assert_same(describe.flatten(checkpoint.params), params)


@pytest.mark.parametrize('stacked', [False, True])
def test_big_vision(stacked, tmp_path):
  """Positions without class token, at the top; blocks listed or stacked."""
  _, params = made('token')
  arrays = published(params, 'Linen')
  table = arrays.pop('Transformer/posembed_input/pos_embedding')
  arrays['pos_embedding'] = table[:, 1:]
  if stacked:
    blocks = {n: a for n, a in arrays.items() if 'encoderblock_0' in n}
    for name in blocks:
      both = [
        arrays.pop(name.replace('encoderblock_0', f'encoderblock_{i}'))
        for i in range(2)
      ]
      name = name.replace('encoderblock_0', 'encoderblock')
      arrays[name] = np.stack(both)
  files.write(tmp_path / 'x.npz', arrays)
  checkpoint = weights.load_checkpoint(tmp_path / 'x.npz')
  expected = dict(params)
  expected['position_embedding'] = table * (np.arange(17) > 0)[:, None]
  assert_same(describe.flatten(checkpoint.params), expected)
  changed = [x for x in checkpoint.report if x.status == 'changed']
  assert ['0 for the class token' in line.note for line in changed] == [True]


def test_old_names_of_the_map_head(tmp_path):
  save(tmp_path / 'x.npz', 'map')
  arrays = files.read(tmp_path / 'x.npz')
  arrays = {n.removeprefix('MAPHead_0/'): a for n, a in arrays.items()}
  files.write(tmp_path / 'old.npz', arrays)
  _, params = made('map')
  loaded = weights.load_checkpoint(tmp_path / 'old.npz').params
  assert_same(describe.flatten(loaded), params)


def test_old_norms_of_hybrids_have_four_dimensions(tmp_path):
  _, params = save(tmp_path / 'x.npz', 'hybrid')
  arrays = {
    name: array[None, None, None] if 'gn' in name else array
    for name, array in files.read(tmp_path / 'x.npz').items()
  }
  assert arrays['block2/unit2/gn3/scale'].shape == (1, 1, 1, 256)
  files.write(tmp_path / 'old.npz', arrays)
  loaded = weights.load_checkpoint(tmp_path / 'old.npz').params
  assert_same(describe.flatten(loaded), params)


def test_generations_of_bit(tmp_path):
  _, params = save(tmp_path / 'x.npz', 'bit')
  arrays = files.read(tmp_path / 'x.npz')
  assert arrays['resnet/head/conv2d/kernel'].shape == (1, 1, 256, 5)
  assert 'resnet/block2/unit01/a/proj/standardized_conv2d/kernel' in arrays
  counted = {
    re.sub('standardized_conv2d', 'standardized_conv2d_12', name): array
    for name, array in arrays.items()
  }
  letters = dict(zip('abc', '123', strict=True))
  big_vision = {}
  for name, array in arrays.items():
    name = name.removeprefix('resnet/').replace('/a/proj/', '/proj/')
    for old, new in (
      ('root_block/standardized_conv2d', 'root_block/conv_root'),
      ('proj/standardized_conv2d', 'conv_proj'),
      ('head/conv2d', 'head'),
      ('gamma', 'scale'),
      ('beta', 'bias'),
    ):
      name = name.replace(old, new)
    name = re.sub(r'^group_norm', 'norm-pre-head', name)
    name = re.sub(
      r'/([abc])/(standardized_conv2d|group_norm)',
      lambda m: f'/{"conv" if m[2][0] == "s" else "gn"}{letters[m[1]]}',
      name,
    )
    is_head = name == 'head/kernel'
    big_vision[name] = array[0, 0] if is_head else array
  assert 'block2/unit02/gn3/scale' in big_vision
  for number, copy in enumerate((counted, big_vision)):
    path = tmp_path / f'{number}.npz'
    files.write(path, copy)
    loaded = weights.load_checkpoint(path)
    assert loaded.model.version == 2
    assert_same(describe.flatten(loaded.params), params)


def test_half_precision_is_read_as_float32(tmp_path):
  _, params = save(tmp_path / 'x.npz', 'token')
  arrays = files.read(tmp_path / 'x.npz')
  half = {n: a.astype(ml_dtypes.bfloat16) for n, a in arrays.items()}
  half['cls'] = arrays['cls'].astype(np.float16)
  files.write(tmp_path / 'half.npz', half)
  loaded = describe.flatten(weights.load(tmp_path / 'half.npz')[1])
  assert {a.dtype for a in loaded.values()} == {np.dtype('f4')}
  for name, array in params.items():
    np.testing.assert_allclose(loaded[name], array, rtol=2**-8)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (
      lambda a: a.pop('head/bias'),
      r'1 missing\).*\n.*\nmissing  head/bias +head/bias +\(5,\)',
    ),
    (
      lambda a: a.update({'logit_scale': np.zeros(3)}),
      r'1 extra\).*nothing was loaded.*\n.*\nextra +logit_scale +- +\(3,\)',
    ),
    (
      lambda a: a.update({'cls': np.zeros((1, 1, 8))}),
      r'1 misfit\)(.|\n)*\(1, 1, 8\) in the file, \(1, 1, 16\) expected',
    ),
    (
      lambda a: [a.pop(n) for n in list(a) if 'block_1/Mlp' in n],
      r'4 missing\)',
    ),
    (
      lambda a: [a.pop(n) for n in list(a) if 'block_0' in n],
      "it lacks 'Transformer/encoderblock_0/.* no model can be told",
    ),
    (lambda a: a.pop('embedding/bias'), 'missing  embedding/bias'),
    (
      lambda a: a.update(
        {'Transformer/posembed_input/pos_embedding': np.zeros((1, 16, 16))}
      ),
      r'of 15 patches, which is no square; pass grid=\(rows, col',
    ),
  ],
)
def test_loading_is_strict(change, message, tmp_path):
  save(tmp_path / 'x.npz', 'token')
  arrays = files.read(tmp_path / 'x.npz')
  change(arrays)
  files.write(tmp_path / 'bad.npz', arrays)
  with pytest.raises(ValueError, match=message) as error:
    weights.load(tmp_path / 'bad.npz')
  assert 'bad.npz' in str(error.value)


def test_what_is_no_checkpoint(tmp_path):
  with pytest.raises(ValueError, match="checkpoint='vit_b16_i21' is unknown "):
    weights.load('vit_b16_i21')
  with pytest.raises(ValueError, match='x.npz cannot be read: it does not exi'):
    weights.load(tmp_path / 'x.npz')
  with pytest.raises(ValueError, match='is a folder without checkpoint'):
    weights.load(tmp_path)
  files.write(tmp_path / 'x.npz', {'w': np.zeros(3)})
  with pytest.raises(
    ValueError, match='of no layout that is known .* it has w'
  ):
    weights.load(tmp_path / 'x.npz')


def test_rectangles_need_their_grid(tmp_path):
  model = models.build(**VIT)
  shapes = describe.shapes(model, (8, 24))
  params = {k: np.ones(v.shape, 'f4') for k, v in shapes.items()}
  tree = describe.unflatten(params)
  with pytest.raises(
    ValueError, match='12 patches, .* pass image_size=\\(heig'
  ):
    weights.save(tmp_path / 'x.npz', model, tree)
  with pytest.raises(ValueError, match='npz files do not say .* 2 x 6; save'):
    weights.save(tmp_path / 'x.npz', model, tree, image_size=(8, 24))
  timm_folder(tmp_path, {}, (8, 24))
  plain = tmp_path / 'timm' / 'model.safetensors'
  with pytest.raises(ValueError, match='of 12 patches.*pass grid='):
    weights.load(plain, num_heads=2)
  with pytest.raises(ValueError, match='which a grid of 3 x 5 is not; pass'):
    weights.load(plain, num_heads=2, grid=(3, 5))
  loaded = weights.load_checkpoint(plain, num_heads=2, grid=(2, 6))
  assert loaded.image_size == (8, 24)
  assert loaded.preprocess == 'resize(8, 24)'
  again = weights.load_checkpoint(tmp_path / 'x.safetensors')
  assert again.image_size == (8, 24)


def test_number_of_heads_of_pytorch_files(tmp_path):
  model, params = save(tmp_path / 'x.safetensors', 'token')
  arrays = files.read(tmp_path / 'x.safetensors')
  files.write(tmp_path / 'plain.safetensors', arrays)  # as timm writes it
  with pytest.raises(ValueError, match='hidden_size=16 is split.*num_heads='):
    weights.load(tmp_path / 'plain.safetensors')
  loaded, tree = weights.load(
    tmp_path / 'plain.safetensors', num_heads=2, gelu='tanh'
  )
  assert loaded == model
  assert_same(describe.flatten(tree), params)


def test_what_a_layout_cannot_hold(tmp_path):
  def refuse(path, message, to=None, **kwargs):
    model = models.build(**(VIT | kwargs))
    shapes = describe.shapes(model, (16, 16))
    tree = describe.unflatten(
      {k: np.zeros(v.shape, 'f4') for k, v in shapes.items()}
    )
    with pytest.raises(ValueError, match=message):
      weights.save(tmp_path / path, model, tree, to=to)
    assert not list(tmp_path.iterdir())

  refuse(
    'x.npz',
    "models with gelu='tanh', but this one has 'exact'; save it",
    gelu='exact',
  )
  refuse(
    'x.npz',
    'no place for position_embedding_column, .* as Orbax',
    position_embedding='2d',
  )
  refuse(
    'x.safetensors',
    'timm files have no place for pre_logits/bias',
    pre_logits=True,
  )
  refuse('x.pth', "no layout follows from the suffix '.pth'; use .npz")
  for position in (
    dict(position_embedding_at='shared'),
    dict(position_embedding='sincos2d'),
    dict(position_embedding='none'),
  ):
    refuse('x.safetensors', r'timm files are of models with|lacks', **position)
    refuse('x', 'has no such position embeddings', to='huggingface', **position)
  model, params = made('bit')
  with pytest.raises(ValueError, match="Hugging Face's ViT has no a ResNet|Re"):
    weights.save(
      tmp_path / 'x', model, describe.unflatten(params), to='huggingface'
    )
  model, params = made('pre_logits')
  with pytest.raises(ValueError, match='no pre_logits before a head; convert'):
    weights.save(
      tmp_path / 'x', model, describe.unflatten(params), to='huggingface'
    )


def test_nothing_is_overwritten_unless_asked(tmp_path):
  for path, to in (('x.npz', None), ('x', None), ('hf', 'huggingface')):
    save(tmp_path / path, 'token', to=to)
    with pytest.raises(
      ValueError, match='exists, and is not to be overwritten'
    ):
      save(tmp_path / path, 'token', to=to)
    save(tmp_path / path, 'token', to=to, overwrite=True)


def test_report_joins_layers():
  lines = [
    report.Line('renamed', f'block_{i}/unit/bias', 'blocks/bias', '(3,)')
    for i in range(12)
  ]
  assert report.table(lines).splitlines()[1].split() == [
    'renamed', 'block_{0..11}/unit/bias', 'blocks/bias', '(3,)',
  ]  # fmt: skip
  assert report.counts(lines) == '12 renamed'


def test_public_names(tmp_path, monkeypatch):
  """Files in the cache are loaded by name, as what they are known to be."""
  monkeypatch.setenv('VIT_JAX_CACHE', str(tmp_path))
  model, params = save(tmp_path / 'vit_b16_augreg_i21k_i1k_224.npz', 'token')
  checkpoint = weights.load_checkpoint('vit_b16_augreg_i21k_i1k_224')
  assert checkpoint.labels[207] == 'golden retriever'
  assert checkpoint.preprocess == 'resize_small(18)|central_crop(16)'
  assert_same(describe.flatten(checkpoint.params), params)

  # A mirror of weights that JAX trained keeps its GELU.
  save(tmp_path / 'x.safetensors', 'token')
  arrays = files.read(tmp_path / 'x.safetensors')
  files.write(tmp_path / 'vit_s16_augreg_i21k.safetensors', arrays)
  mirror = weights.load_checkpoint('vit_s16_augreg_i21k', num_heads=2)
  assert mirror.model == model

  # DeiT-3 of timm takes pixels normalised by ImageNet's mean and deviation.
  files.write(tmp_path / 'deit3_b16_i1k_224_timm.safetensors', arrays)
  deit = weights.load_checkpoint('deit3_b16_i1k_224_timm', num_heads=2)
  assert deit.model.gelu == 'exact'
  image = np.random.default_rng(0).uniform(0, 1, (4, 4, 3))
  normalised = (image - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
  ours = deit.params['embedding']
  np.testing.assert_allclose(
    np.tensordot(2 * image - 1, ours['kernel'], 3) + ours['bias'],
    np.tensordot(normalised, params['embedding/kernel'], 3)
    + params['embedding/bias'],
    rtol=1e-5,
  )


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('{"image_size": "big"}', "an image size of 'big'"),
    ('{"image_size": [3, 0, 4]}', r'an image size of \[3, 0, 4'),
    ('{"hidden_act": "relu"}', "activation 'relu'; there is gelu"),
    ('{"hidden_act": []}', None),  # as if it were not there
    ('{"hidden_act": [1]}', r'activation \[1\]; there is gelu'),
    ('[1]', 'config.json is no JSON object'),
    ('{', 'config.json is no JSON object'),
    ('{"num_attention_heads": 3}', 'does not divide over num_heads=3'),
    (
      '{"num_attention_heads": "x"}',
      "num_attention_heads='x', which is no int",
    ),
    ('{"layer_norm_eps": {}}', 'layer_norm_eps={}, which is no float'),
    ('{"pretrained_cfg": 3}', 'pretrained_cfg=3, which is no dict'),
    (
      '{"pretrained_cfg": {"mean": ["a"]}}',
      r"mean=\['a'\], no numbers",
    ),
    (
      '{"pretrained_cfg": {"mean": [1, 2], "std": [1, 1]}}',
      r'which its 3 input channels do not have',
    ),
  ],
)
def test_a_config_beside_is_not_trusted(text, message, tmp_path):
  save(tmp_path / 'x', 'token', to='huggingface')
  (tmp_path / 'hf').mkdir()
  arrays = files.read(tmp_path / 'x' / 'model.safetensors')
  files.write(tmp_path / 'hf' / 'model.safetensors', arrays)
  (tmp_path / 'hf' / 'config.json').write_text(text)
  kwargs = {} if 'heads' in text else dict(num_heads=2)
  if message is None:
    weights.load(tmp_path / 'hf', **kwargs)
    return
  with pytest.raises(ValueError, match=message):
    weights.load(tmp_path / 'hf', **kwargs)


def timm_folder(tmp_path, config, size=(16, 16), **kwargs):
  """Writes a folder as timm does, without this project's metadata."""
  model = models.build(**(VIT | kwargs))
  rng = np.random.default_rng(0)
  params = {
    k: rng.normal(size=v.shape).astype('f4')
    for k, v in describe.shapes(model, size).items()
  }
  tree = describe.unflatten(params)
  weights.save(
    tmp_path / 'x.safetensors', model, tree, image_size=size, overwrite=True
  )
  (tmp_path / 'timm').mkdir(exist_ok=True)
  arrays = files.read(tmp_path / 'x.safetensors')
  path = tmp_path / 'timm' / 'model.safetensors'
  files.write(path, arrays, overwrite=True)
  (tmp_path / 'timm' / 'config.json').write_text(json.dumps(config))
  return params


def test_what_timms_config_says(tmp_path):
  config = dict(
    global_pool='avg',
    pretrained_cfg=dict(input_size=[3, 8, 32], mean=[0.5] * 3, std=[0.5] * 3),
    model_args=dict(num_heads=2, act_layer='gelu_tanh'),
  )
  params = timm_folder(tmp_path, config, (8, 32), head='gap', class_token=True)
  checkpoint = weights.load_checkpoint(tmp_path / 'timm')
  model = checkpoint.model
  assert (model.head, model.class_token, model.gelu) == ('gap', True, 'tanh')
  assert checkpoint.image_size == (8, 32)
  assert_same(describe.flatten(checkpoint.params), params)
  timm_folder(tmp_path, dict(global_pool='avgmax'))
  with pytest.raises(ValueError, match="global_pool='avgmax'; there is token"):
    weights.load(tmp_path / 'timm', num_heads=2)


def test_positions_whose_number_happens_to_be_a_square(tmp_path):
  """A class token and 3 x 5 patches, or 8 registers and 4 x 4: a grid tells."""
  params = timm_folder(tmp_path, {}, (12, 20))
  kwargs = dict(num_heads=2, grid=(3, 5))
  loaded = weights.load(tmp_path / 'timm', **kwargs)[1]
  assert_same(describe.flatten(loaded), params)
  own = weights.load(tmp_path / 'x.safetensors', grid=(3, 5))[1]
  assert_same(describe.flatten(own), params)
  params = timm_folder(tmp_path, {}, num_registers=8)
  with pytest.raises(ValueError, match='its 25 position embeddings may be of'):
    weights.load(tmp_path / 'timm', num_heads=2)
  loaded = weights.load(tmp_path / 'timm', num_heads=2, grid=(4, 4))[1]
  assert_same(describe.flatten(loaded), params)


@pytest.mark.parametrize(
  'metadata', ['{', '[]', '{"name": "vit"}', '{"variant": 3, "name": "vit"}']
)
def test_metadata_is_not_trusted(metadata, tmp_path):
  files.write(
    tmp_path / 'x.safetensors',
    {'patch_embed.proj.weight': np.zeros((16, 3, 4, 4), np.float32)},
    {'vit_jax': metadata},
  )
  with pytest.raises(ValueError, match=r'x\.safetensors'):
    weights.load(tmp_path / 'x.safetensors')


def test_a_damaged_run_is_explained(tmp_path):
  save(tmp_path / 'run', 'token')
  (tmp_path / 'run' / 'config' / 'metadata').write_text('{"model": {"a": 1}}')
  with pytest.raises(
    ValueError, match='config cannot be used .*config.model.a'
  ):
    weights.load(tmp_path / 'run')
  (tmp_path / 'run' / 'config' / 'metadata').write_text('{')
  with pytest.raises(ValueError, match='cannot be read .* use another checkpo'):
    weights.load(tmp_path / 'run')


@pytest.mark.parametrize('to', ['orbax', 'huggingface'])
def test_class_names_travel_along(to, tmp_path):
  names = ('ant', 'bee', 'cat', 'dog', 'eel')
  save(tmp_path / 'x', 'token', to=to, labels=names, preprocess='resize(16)')
  checkpoint = weights.load_checkpoint(tmp_path / 'x')
  assert checkpoint.labels == names
  if to == 'orbax':
    assert checkpoint.preprocess == 'resize(16)'


def test_parameters_of_another_model_are_not_written(tmp_path):
  model, params = made('token')
  tree = describe.unflatten(params)
  for kwargs, to in (
    (dict(image_size=(96, 96)), 'orbax'),
    (dict(image_size=(96, 96)), 'timm'),
    (dict(model=models.build(**(VIT | dict(depth=3)))), 'npz'),
  ):
    kwargs = dict(model=model) | kwargs
    with pytest.raises(
      ValueError, match='are not those of the model for image'
    ):
      weights.save(tmp_path / 'x', params=tree, to=to, **kwargs)
  relative = models.build(**(VIT | dict(position_embedding='relative')))
  tree = describe.unflatten(describe.init(relative, (16, 16)))
  with pytest.raises(ValueError, match='image_size='):
    weights.save(tmp_path / 'x', relative, tree)
  weights.save(tmp_path / 'x', relative, tree, image_size=(16, 16))
  assert weights.load_checkpoint(tmp_path / 'x').image_size == (16, 16)


def test_two_towers_and_optimizers_state(tmp_path):
  _, params = made('token')
  arrays = {
    f'params/img/{name}': array
    for name, array in published(params, 'Linen').items()
  }
  other = {
    'params/txt/w': np.ones(3),
    'params/t': np.ones(1),
    'opt/0': np.ones(2),
  }
  files.write(tmp_path / 'x.npz', arrays | other)
  loaded = weights.load_checkpoint(tmp_path / 'x.npz')
  assert_same(describe.flatten(loaded.params), params)
  for checkpoint in (
    loaded,
    weights.load_checkpoint(tmp_path / 'x.npz', num_classes=3),
  ):
    left_out = {x.theirs for x in checkpoint.report if x.status == 'left out'}
    assert left_out == {'txt/w', 't', 'opt/0'}
  files.write(tmp_path / 'y.npz', arrays | other | {'params/junk': np.ones(3)})
  with pytest.raises(ValueError, match=r'1 extra(.|\n)*extra +junk'):
    weights.load(tmp_path / 'y.npz')


def test_no_array_hides_another(tmp_path):
  _, params = made('token')
  arrays = published(params, 'pre-Linen')
  block = 'Transformer/encoderblock_0'
  arrays[f'{block}/LayerNorm_1/bias'] = np.full(16, 7.0)
  files.write(tmp_path / 'x.npz', arrays)
  with pytest.raises(
    ValueError, match='two of its arrays are .*LayerNorm_2/bias'
  ):
    weights.load(tmp_path / 'x.npz')


def test_a_class_token_has_positions(tmp_path):
  save(tmp_path / 'x.npz', 'token')
  arrays = files.read(tmp_path / 'x.npz')
  arrays.pop('Transformer/posembed_input/pos_embedding')
  files.write(tmp_path / 'y.npz', arrays)
  with pytest.raises(ValueError, match='has a class token, but lacks'):
    weights.load(tmp_path / 'y.npz')
  save(tmp_path / 'x.safetensors', 'token')
  arrays = files.read(tmp_path / 'x.safetensors')
  arrays.pop('pos_embed')
  files.write(tmp_path / 'y.safetensors', arrays)
  with pytest.raises(ValueError, match="it lacks 'pos_embed'"):
    weights.load(tmp_path / 'y.safetensors', num_heads=2)


@pytest.mark.parametrize(
  'hostile',
  [
    {'Transformer/encoderblock/x': (20_000_000, 0)},
    {'Transformer/encoderblock_0/MlpBlock_3/Dense_0/kernel': (16, 0)},
    {'head/kernel': ()},
    {'head/kernel': (5,)},
    {'embedding/kernel': (3,)},
    {'pos_embedding': ()},
    {'cls': ()},
    {'Transformer/encoderblock_99999999/x': (1,)},
    {'Transformer/encoderblock/x': (2_000_000, 1)},
    {'Transformer/encoderblock/x': ()},
  ],
)
def test_arrays_of_hostile_shapes(hostile, tmp_path):
  _, params = made('token')
  arrays = published(params, 'pre-Linen')
  arrays |= {k: np.zeros(shape, np.float32) for k, shape in hostile.items()}
  files.write(tmp_path / 'x.npz', arrays)
  with pytest.raises(ValueError, match=r'x\.npz'):
    weights.load(tmp_path / 'x.npz')


def test_metadata_cannot_fill_the_memory(tmp_path):
  save(tmp_path / 'x.safetensors', 'token')
  arrays = files.read(tmp_path / 'x.safetensors')
  own = json.loads(files.metadata(tmp_path / 'x.safetensors')['vit_jax'])
  for text, message in (
    (
      json.dumps(own | dict(depth=10**9)),
      'are of a model of .* parameters, but',
    ),
    (json.dumps(own | dict(hidden_size=10**9)), 'parameters, but it holds'),
    ('[' * 100_000, 'RecursionError'),
    ('[1]', 'is no object'),
  ):
    files.write(
      tmp_path / 'x.safetensors', arrays, {'vit_jax': text}, overwrite=True
    )
    with pytest.raises(ValueError, match=message):
      weights.load(tmp_path / 'x.safetensors')


def test_evaluation_is_as_config_json_says(tmp_path):
  config = dict(
    pretrained_cfg=dict(input_size=[3, 16, 16], crop_pct=0.9),
    model_args=dict(num_heads=2),
  )
  timm_folder(tmp_path, config)
  loaded = weights.load_checkpoint(tmp_path / 'timm')
  assert loaded.preprocess == 'resize_small(17)|central_crop(16)'
  save(tmp_path / 'hf', 'token', to='huggingface')
  loaded = weights.load_checkpoint(tmp_path / 'hf')
  assert loaded.preprocess == 'resize(16, 16)'
  names = tuple('abcde')
  save(
    tmp_path / 'y.safetensors', 'token', labels=names, preprocess='resize(16)'
  )
  loaded = weights.load_checkpoint(tmp_path / 'y.safetensors')
  assert (loaded.labels, loaded.preprocess) == (names, 'resize(16)')


def test_heads_and_gelu_of_timms_architectures(tmp_path):
  timm_folder(tmp_path, dict(architecture='vit_giantopt_patch16_siglip_256'))
  model, _ = weights.load(tmp_path / 'timm', num_heads=2)
  assert (model.num_heads, model.gelu) == (2, 'tanh')


@pytest.mark.parametrize(
  ('classes', 'first'), [(1000, 'tench, Tinca tinca'), (5, None)]
)
def test_names_of_imagenet_are_assumed_in_others_files(
  classes, first, tmp_path
):
  kwargs = VIT | dict(num_classes=classes)
  model = models.build(**kwargs)
  tree = describe.unflatten(describe.init(model, (16, 16)))
  weights.save(tmp_path / 'x.npz', model, tree)
  names = weights.load_checkpoint(tmp_path / 'x.npz').labels
  assert (names and names[0]) == first
  weights.save(tmp_path / 'own', model, tree)
  assert weights.load_checkpoint(tmp_path / 'own').labels is None
