import jax
import numpy as np
import pytest
from scipy import stats as distributions
from sklearn import metrics

from vit_jax import models, objectives, sharding
from vit_jax.objectives import classification

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(6, 4)).astype('f4')
LABELS = np.array([0, 1, 2, 3, 3, 1])
MANY = np.array([[1, 0, 1, 0], [0, 0, 0, 1], [1, 1, 1, 0]] * 2, np.uint8)


def probabilities(logits):
  e = np.exp(logits.astype(np.float64))
  return e / e.sum(-1, keepdims=True)


def test_softmax_loss_is_scikit_learns():
  targets = classification.one_hot(LABELS, 4)
  actual = classification.softmax_loss(LOGITS, targets)
  assert actual.shape == (6,)
  expected = metrics.log_loss(LABELS, probabilities(LOGITS))
  np.testing.assert_allclose(actual.mean(), expected, rtol=1e-6)


def test_sigmoid_loss_is_scikit_learns_summed_over_classes():
  actual = classification.sigmoid_loss(
    LOGITS, classification.one_hot(MANY, 4)
  ).mean()
  p = 1 / (1 + np.exp(-LOGITS.astype(np.float64)))
  expected = sum(
    metrics.log_loss(MANY[:, c], p[:, c], labels=[0, 1]) for c in range(4)
  )
  np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_top_1_counts_any_true_class():
  best = LOGITS.argmax(-1)
  np.testing.assert_array_equal(
    classification.top_1(LOGITS, classification.one_hot(LABELS, 4)),
    best == LABELS,
  )
  np.testing.assert_array_equal(
    classification.top_1(LOGITS, classification.one_hot(MANY, 4)),
    MANY[np.arange(6), best],
  )


def test_label_smoothing_and_the_mean():
  model = models.build(
    variant='Ti/4', num_classes=4, hidden_size=8, depth=1, mlp_dim=8,
    num_heads=1, head_bias=0.0,
  )  # fmt: skip
  objective = objectives.build(
    model, 'classification', loss='softmax', label_smoothing=0.2
  )
  images = RNG.integers(0, 256, (6, 4, 4, 3)).astype(np.uint8)
  rng = jax.random.key(0)
  params = jax.jit(objective.init)(rng, images[:1])
  params['head']['kernel'] = RNG.normal(size=(8, 4)).astype('f4')
  batch = {'image': images, 'label': LABELS.astype(np.int32)}
  loss, stats = jax.jit(objective.loss)(params, batch, rng)
  logits, features = jax.jit(objective.predict)(params, images)
  smooth = np.eye(4)[LABELS] * 0.8 + 0.2 / 4
  expected = (
    -(smooth * np.log(probabilities(np.asarray(logits)))).sum(-1).mean()
  )
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  assert stats['loss'] == loss
  assert stats['accuracy'] == (logits.argmax(-1) == LABELS).mean()
  assert features['representation'].shape == (6, 8)


def tiny(dropout=0.0, **kwargs):
  """Returns an objective, parameters, a batch of 8, and the model."""
  model = models.build(
    variant='Ti/4', num_classes=4, hidden_size=8, depth=1, mlp_dim=8,
    num_heads=1, dtype='float32', dropout=dropout,
  )  # fmt: skip
  objective = objectives.build(model, 'classification', **kwargs)
  images = RNG.integers(0, 256, (8, 8, 8, 3)).astype(np.uint8)
  params = jax.jit(objective.init)(jax.random.key(0), images[:1])
  params['head']['kernel'] = RNG.normal(size=(8, 4)).astype('f4')
  batch = {'image': images, 'label': np.arange(8, dtype=np.int32) % 4}
  return objective, params, batch, model


@pytest.mark.parametrize('smoothing', [0.0, 0.2])
def test_mixup_by_hand(smoothing):
  objective, params, batch, model = tiny(mixup=0.5, label_smoothing=smoothing)
  rng = jax.random.key(3)
  loss, stats = jax.jit(objective.loss)(params, batch, rng)
  a = float(classification.mixing_weight(jax.random.fold_in(rng, 0), 0.5))
  assert 0.5 < a < 0.99
  images = batch['image'] / 127.5 - 1
  images = a * images + (1 - a) * images[[-1, *range(7)]]
  targets = np.eye(4)[batch['label']]
  mixed = a * targets + (1 - a) * targets[[-1, *range(7)]]
  mixed = mixed * (1 - smoothing) + smoothing / 4
  logits, _ = jax.jit(model.apply)({'params': params}, images.astype('f4'))
  logits = np.asarray(logits)
  expected = -(mixed * np.log(probabilities(logits))).sum(-1).mean()
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  assert stats['accuracy'] == (logits.argmax(-1) == batch['label']).mean()


def test_mixup_of_many_labels_keeps_their_weights():
  mixed = classification.mix(classification.one_hot(MANY, 4), 0.75)
  np.testing.assert_array_equal(mixed[1], 0.75 * MANY[1] + 0.25 * MANY[0])
  np.testing.assert_array_equal(mixed[0], 0.75 * MANY[0] + 0.25 * MANY[5])


@pytest.mark.parametrize('p', [0.2, 0.5, 0.8, 2.0])
def test_mixing_weights_are_the_larger_of_beta(p):
  keys = jax.random.split(jax.random.key(0), 20_000)
  draw = jax.vmap(classification.mixing_weight, (0, None))
  weights = np.asarray(jax.jit(draw)(keys, p), np.float64)
  assert 0.5 <= weights.min() <= weights.max() <= 1
  # a (1 - a), which both ends share, has a closed form; and so has the tail.
  np.testing.assert_allclose(
    (weights * (1 - weights)).mean(), p / (2 * (2 * p + 1)), rtol=0.02
  )
  share = 2 * distributions.beta(p, p).sf(0.9)
  np.testing.assert_allclose((weights > 0.9).mean(), share, atol=0.012)


def test_mixup_leaves_the_rest_as_it_is():
  without, params, batch, _ = tiny(dropout=0.3)
  zero, *_ = tiny(dropout=0.3, mixup=0.0)
  # Of weights so close to 1 that nothing is left of the other image.
  faint, *_ = tiny(dropout=0.3, mixup=1e-9)
  rng = jax.random.key(0)
  losses = [
    float(jax.jit(objective.loss)(params, batch, rng)[0])
    for objective in (without, zero, faint)
  ]
  assert losses[0] == losses[1]
  np.testing.assert_allclose(losses[2], losses[0], rtol=1e-6)  # same dropout


def test_mixup_is_the_same_on_all_devices(make_mesh):
  objective, params, batch, _ = tiny(mixup=0.8)
  results = []
  for num_devices in (1, 8):
    mesh = make_mesh(num_devices)
    with sharding.activations(mesh):
      step = jax.jit(jax.value_and_grad(objective.loss, has_aux=True))
      step = step.lower(
        params, sharding.global_batch(batch, mesh), jax.random.key(1)
      ).compile()
      results.append(
        step(params, sharding.global_batch(batch, mesh), jax.random.key(1))
      )
    # Rolling the batch takes one example from the neighbour, not all from all.
    assert 'all-gather' not in step.as_text()
  one, eight = (jax.tree.map(np.asarray, result) for result in results)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
    one,
    eight,
  )


@pytest.mark.parametrize(
  ('kwargs', 'message'),
  [
    (dict(name='clasification'), "mean 'classification'"),
    (dict(loss='sofmax'), "config.objective.loss='sofmax'.*mean 'softmax'"),
    (dict(label_smoothing=1.0), r'label_smoothing=1.0 is not in \[0, 1\)'),
    (dict(mixup=-0.1), 'config.objective.mixup=-0.1 is not a finite number of'),
    (dict(mixup=float('inf')), 'mixup=inf is not a finite number of 0 or more'),
    (dict(smoothing=1), 'config.objective.smoothing is not a field'),
  ],
)
def test_mistakes_are_explained(kwargs, message):
  with pytest.raises(ValueError, match=message):
    objectives.build(None, **({'name': 'classification'} | kwargs))
