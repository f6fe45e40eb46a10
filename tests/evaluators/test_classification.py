import numpy as np
import pytest
from sklearn import metrics

from vit_jax import evaluators
from vit_jax.data import datasets


def predict(params, images):
  """Logits that depend on a few pixels, and on the parameters."""
  pixels = images.reshape(images.shape[0], -1)[:, 60:90:3].astype('float32')
  return pixels * params, {}


def row(**kwargs):
  return dict(
    kind='classification', every=2, dataset='digits', split='test',
    batch_size=32, preprocess='',
  ) | kwargs  # fmt: skip


@pytest.mark.parametrize(('num_devices', 'batch_size'), [(1, 50), (8, 64)])
def test_accuracy_and_loss_are_scikit_learns(
  make_mesh, num_devices, batch_size
):
  (evaluation,) = evaluators.build(
    predict, 0.1, make_mesh(num_devices), {'test': row(batch_size=batch_size)}
  )
  test = datasets.digits('test').read(np.arange(359))
  logits = predict(0.1, test['image'])[0].astype(np.float64)
  probabilities = np.exp(logits - logits.max(-1, keepdims=True))
  probabilities /= probabilities.sum(-1, keepdims=True)
  results = evaluation.evaluate(0.1)
  assert results['accuracy'] == pytest.approx(
    metrics.accuracy_score(test['label'], logits.argmax(-1)), rel=1e-6
  )
  assert results['loss'] == pytest.approx(
    metrics.log_loss(test['label'], probabilities), rel=1e-5
  )


def test_due_every_so_often_and_at_the_end(make_mesh):
  (often, never) = evaluators.build(
    predict, 0.1, make_mesh(1), {'a': row(every=3), 'b': row(every=0)}
  )
  assert [s for s in range(1, 9) if often.due(s, 8)] == [3, 6, 8]
  assert [s for s in range(1, 9) if never.due(s, 8)] == [8]


@pytest.mark.parametrize(
  ('rows', 'message'),
  [
    ({'test': row(kind='clasification')}, 'config.evals.test.kind=.*mean'),
    ({'test': row(datset='digits')}, "config.evals.test.datset.*'dataset'"),
    ({'test': row(dataset='x')}, "config.evals.test.dataset='x'"),
    ({'test': row(loss='l2')}, "test.loss='l2'.* sigmoid, softmax"),
    ({'test': row(batch_size=9)}, 'config.evals.test.batch_size=9 does not'),
    ({'test': row(every=-1)}, 'config.evals.test.every=-1 is not a number'),
    (
      {'test': row(preprocess='central_crop(9)')},
      'test.preprocess: An image is',
    ),
    ({'train': row()}, 'config.evals.train: metrics of training'),
  ],
)
def test_mistakes_are_explained(make_mesh, rows, message):
  with pytest.raises(ValueError, match=message):
    evaluators.build(predict, 0.1, make_mesh(8), rows)


def test_data_that_does_not_fit_the_model_is_explained(make_mesh):
  def nine_classes(params, images):
    logits, features = predict(params, images)
    return logits[:, :9], features

  with pytest.raises(ValueError, match='10 classes, but the model 9'):
    evaluators.build(nine_classes, 0.1, make_mesh(8), {'test': row()})

  def picky(params, images):
    raise ValueError('Images do not divide.')

  with pytest.raises(ValueError, match='config.evals.test: Images do not'):
    evaluators.build(picky, 0.1, make_mesh(8), {'test': row()})
