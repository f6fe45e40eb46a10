import numpy as np
import pytest
from scipy import stats

from vit_jax.data import order


@pytest.mark.parametrize('count', [1, 2, 3, 5, 64, 65, 1438])
def test_permutation_hits_every_example_once(count):
  result = order.permutation(np.arange(count), 3, 1, count)
  assert sorted(result) == list(range(count))


def test_permutation_never_changes():
  # A change of these numbers changes the order of every run that resumes.
  np.testing.assert_array_equal(
    order.permutation(np.arange(8), seed=0, epoch=0, num_examples=1000),
    [701, 442, 408, 196, 253, 742, 681, 49],
  )
  np.testing.assert_array_equal(
    order.permutation(10**8 + np.arange(3), 1, 2, 3 * 10**8),
    [211795783, 48732239, 219457801],
  )


def test_permutations_look_random():
  epochs = np.array(
    [order.permutation(np.arange(10), 0, epoch, 10) for epoch in range(3000)]
  )
  for place in (0, 4, 9):  # every example is as likely at every place
    counts = np.bincount(epochs[:, place], minlength=10)
    assert stats.chisquare(counts).pvalue > 1e-3
  steps = (epochs[:, 1] - epochs[:, 0]) % 10  # and after every other
  assert stats.chisquare(np.bincount(steps, minlength=10)[1:]).pvalue > 1e-3


def test_shuffled_goes_through_epochs():
  positions = np.arange(30)
  indices, seeds = order.shuffled(positions, seed=7, num_examples=10)
  for epoch in range(3):
    assert sorted(indices[epoch * 10 : epoch * 10 + 10]) == list(range(10))
  assert len(set(map(tuple, indices.reshape(3, 10)))) == 3  # all different
  assert seeds.shape == (30, 2)
  assert seeds.dtype == np.int32
  assert len(set(map(tuple, seeds))) == 30  # anew for each example and epoch


def test_shuffled_depends_on_the_position_alone():
  whole = order.shuffled(np.arange(40), 0, 17)
  for part in (slice(0, 7), slice(16, 18), slice(33, 40)):
    for a, b in zip(
      order.shuffled(np.arange(40)[part], 0, 17), whole, strict=True
    ):
      np.testing.assert_array_equal(a, b[part])
