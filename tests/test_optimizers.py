import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_jax import optimizers

PARAMS = {'dense': {'kernel': jnp.array([1.0, -2.0]), 'bias': jnp.array([3.0])}}
GRADS = [
  {'dense': {'kernel': jnp.array([0.3, 0.4]), 'bias': jnp.array([0.0])}},
  {'dense': {'kernel': jnp.array([-0.1, 0.2]), 'bias': jnp.array([0.5])}},
]


def run(**kwargs):
  """Returns the parameters after two updates, as numpy arrays."""
  tx, _ = optimizers.build(**kwargs)
  params, state = PARAMS, tx.init(PARAMS)
  for grads in GRADS:
    updates, state = tx.update(grads, state, params)
    params = optax.apply_updates(params, updates)
  return jax.tree.map(np.asarray, params)


def test_adam_with_decoupled_decay_by_hand():
  result = run(
    total_steps=4, name='adam', lr=0.1, decay='linear', weight_decay=0.5
  )
  for name, decay in (('kernel', 0.5), ('bias', 0.0)):
    p = np.array(PARAMS['dense'][name], np.float64)
    m = v = 0.0
    for t, lr in enumerate([0.1, 0.075], start=1):  # 0.1 (1 - t / 4)
      g = np.array(GRADS[t - 1]['dense'][name], np.float64)
      m = 0.9 * m + 0.1 * g
      v = 0.999 * v + 0.001 * g**2
      rule = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
      p = p - lr * (rule + decay * p)
    np.testing.assert_allclose(result['dense'][name], p, rtol=1e-5)


def test_sgd_momentum_and_clipping_by_hand():
  result = run(
    total_steps=9, name='sgd', lr=0.1, decay='constant', clip_norm=0.25
  )
  # The first gradient has norm 0.5, the second sqrt(0.3).
  m1 = np.array([0.3, 0.4]) / 2
  m2 = 0.9 * m1 + np.array([-0.1, 0.2]) * 0.25 / np.sqrt(0.3)
  expected = np.array([1.0, -2.0]) - 0.1 * m1 - 0.1 * m2
  np.testing.assert_allclose(result['dense']['kernel'], expected, rtol=1e-5)


@pytest.mark.parametrize(
  ('decay', 'expected'),
  [
    ('linear', [0, 0.5, 1, 0.75, 0.5, 0.25]),
    ('constant', [0, 0.5, 1, 1, 1, 1]),
    (
      'cosine',
      [0, 0.5, 1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5],
    ),
  ],
)
def test_learning_rate_warms_up_and_decays(decay, expected):
  _, learning_rate = optimizers.build(
    total_steps=6, lr=2.0, decay=decay, warmup_steps=2
  )
  actual = [float(learning_rate(t)) for t in range(6)]
  np.testing.assert_allclose(actual, 2 * np.array(expected), atol=1e-6)


@pytest.mark.parametrize(
  ('kwargs', 'message'),
  [
    (dict(name='adm'), r"optimizer.name='adm'.*mean 'adam'.* adam, sgd"),
    (dict(decay='cos'), 'choose one of constant, cosine, linear'),
    (dict(warmup_steps=10), 'warmup_steps=10 leaves nothing of total_steps=10'),
    (dict(lr=-1.0), 'config.optimizer.lr=-1.0 is not a number of 0 or more'),
    (dict(weight_decay=None), 'weight_decay=None is not a number'),
    (dict(clip_norm=0.0), 'clip_norm=0.0 is not positive; use inf'),
  ],
)
def test_mistakes_are_explained(kwargs, message):
  with pytest.raises(ValueError, match=message):
    optimizers.build(total_steps=10, **kwargs)


@pytest.mark.parametrize(
  ('steps', 'epochs', 'expected'),
  [(7, None, 7), (0, None, 0), (None, 2, 20), (None, 1.55, 15)],
)
def test_resolve_steps(steps, epochs, expected):
  assert optimizers.resolve_steps(steps, epochs, 1000, 100) == expected


@pytest.mark.parametrize(
  ('steps', 'epochs'), [(None, None), (1, 1.0), (-1, None), ('9', None)]
)
def test_resolve_steps_wants_exactly_one(steps, epochs):
  with pytest.raises(ValueError, match=r'config.total_steps=.*set exactly one'):
    optimizers.resolve_steps(steps, epochs, 1000, 100)
  with pytest.raises(
    ValueError, match='total_epochs=0.05 of 1000 .* least 0.1'
  ):
    optimizers.resolve_steps(None, 0.05, 1000, 100)
