import pytest

from vit_jax.data import splits

SIZES = {'train': 1000, 'val': 15}


@pytest.mark.parametrize(
  ('split', 'ranges'),
  [
    ('train', [('train', 0, 1000)]),
    ('train[:90%]', [('train', 0, 900)]),
    ('train[-10%:]', [('train', 900, 1000)]),
    ('train[98%:]+val', [('train', 980, 1000), ('val', 0, 15)]),
    ('train[:800] + val[5:10]', [('train', 0, 800), ('val', 5, 10)]),
    ('val[33%:67%]', [('val', 5, 10)]),
    ('val[3:3]', [('val', 3, 3)]),
  ],
)
def test_ranges(split, ranges):
  assert splits.resolve(split, SIZES) == ranges


@pytest.mark.parametrize('percent', range(101))
def test_two_parts_are_the_whole(percent):
  for name, size in SIZES.items():
    ((_, _, end),) = splits.resolve(f'{name}[:{percent}%]', SIZES)
    ((_, start, stop),) = splits.resolve(f'{name}[{percent}%:]', SIZES)
    assert (end, stop) == (start, size)


def test_percents_are_those_of_tfds():
  tfds = pytest.importorskip('tensorflow_datasets')
  for size in (15, 999, 1000, 7349):
    info = tfds.core.SplitInfo(
      name='train',
      shard_lengths=[size],
      num_bytes=0,
      filename_template=tfds.core.ShardedFileTemplate(
        data_dir='', dataset_name='x', split='train', filetype_suffix='tfrecord'
      ),
    )
    its = tfds.core.splits.SplitDict([info])
    for percent in (33, 50, 67, 90, 98):
      split = f'train[:{percent}%]'
      ((_, _, stop),) = splits.resolve(split, {'train': size})
      assert stop == its[split].num_examples


@pytest.mark.parametrize(
  ('split', 'message'),
  [
    ('tran', "split='tran' is unknown .did you mean 'train'..; .* train, val"),
    ('train[50%%:]', "split='train.50%%:.' is none; write 'train'"),
    ('', "split='' is none"),
    ('train[:2000]', 'examples 0 to 2,000, but .train. has 1,000'),
    ('train[9:3]', 'examples 9 to 3'),
    ('train[-2000:]', 'examples -1,000 to 1,000'),
  ],
)
def test_mistakes_are_explained(split, message):
  with pytest.raises(ValueError, match=message):
    splits.resolve(split, SIZES)
