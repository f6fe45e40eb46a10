import jax
import numpy as np
import pytest
from sklearn import metrics

from vit_jax import models, objectives
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


@pytest.mark.parametrize(
  ('kwargs', 'message'),
  [
    (dict(name='clasification'), "mean 'classification'"),
    (dict(loss='sofmax'), "config.objective.loss='sofmax'.*mean 'softmax'"),
    (dict(label_smoothing=1.0), r'label_smoothing=1.0 is not in \[0, 1\)'),
    (dict(smoothing=1), 'config.objective.smoothing is not a field'),
  ],
)
def test_mistakes_are_explained(kwargs, message):
  with pytest.raises(ValueError, match=message):
    objectives.build(None, **({'name': 'classification'} | kwargs))
