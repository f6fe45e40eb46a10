import pytest

from vit_jax.data import described, pipeline


@pytest.mark.parametrize(
  ('dataset', 'size', 'classes', 'subset', 'length'),
  [
    ('jft300m', 224, 18_291, None, 303_000_000),
    ('imagenet21k', 384, 21_843, None, 14_197_122),
    ('imagenet2012', 224, 1000, 1000, 1000),
  ],
)
def test_data_that_is_not_here_is_described(
  make_mesh, dataset, size, classes, subset, length
):
  found = described.describe(
    make_mesh(1), 0, dataset, 'train', f'inception_crop({size})|flip_lr',
    subset, batch_size=8,
  )  # fmt: skip
  assert found == (length, classes, None, (size, size, 3), False)


def test_other_splits_are_opened(make_mesh):
  section = dict(
    dataset='digits', split='train[:10%]', batch_size=8, preprocess='resize(8)'
  )
  found = described.describe(make_mesh(1), 0, **section)
  assert isinstance(found, pipeline.TrainData)
  assert found.num_examples == 144


def test_recipes_without_a_size_are_explained(make_mesh):
  with pytest.raises(
    ValueError, match=r"preprocess='flip_lr' leaves images of different sizes"
  ):
    described.describe(
      make_mesh(1), 0, 'jft300m', 'train', 'flip_lr', batch_size=8
    )
