"""Batches, in one order whatever happens.

Global batch i is positions [i B, (i + 1) B) of the endless training order (see
`order`), and each process makes the rows of it that its own devices hold.
Starting at any step therefore costs the same, and the batches do not depend on
the number of processes.
"""

import textwrap

import jax
import numpy as np
from absl import logging

from vit_jax.data import examples, order, tf

_NAMED = 10  # bad examples whose names are told; all are counted
# So many of a set may be bad, however small it is, and the share of bad ones is
# only judged of so many.
_ALWAYS_ALLOWED = 3
_FEWEST = 1000
_MOST_IN_A_ROW = 100


class TrainData:
  """The training set, shuffled anew each epoch, without end.

  An example that cannot be read or decoded, or whose label does not exist, is
  left out: the next one of the data set takes its place, so that the batches
  still do not depend on the number of processes.

  Attributes:
    num_examples: the length of an epoch.
    num_classes: C.
    class_names: tuple of str, or None if they are not known.
    image_shape: (height, width, 3) of every image.
    many_labels: whether an image may have any number of labels.
    num_bad: how often a bad example was left out by this process, since its
      batches were begun.
  """

  def __init__(
    self,
    mesh,
    seed,
    dataset,
    split,
    batch_size,
    preprocess,
    subset=None,
    drop='',
    max_bad_share=0.01,
  ):
    """Opens the data set.

    Args:
      mesh: the device mesh that batches are laid out on.
      seed: int >= 0, of the order and of the augmentations.
      dataset: a name in `datasets.DATASETS`, or the path of a folder of images,
        a manifest or prepared shards.
      split: the part of it to train on.
      batch_size: B, over all devices of all processes.
      preprocess: recipe, see `preprocess`.
      subset: how many examples to choose at random; None is all. A smaller
        subset is inside a larger one.
      drop: path of a list of examples to leave out, as
        `vit_jax.data.deduplicate` writes it.
      max_bad_share: share of bad examples above which training stops; three of
        a set are always allowed, unless it is 0.

    Raises:
      ValueError: on anything that does not exist or fit.
    """
    if seed < 0:
      raise ValueError(f'config.seed={seed} is negative; use 0 or more.')
    is_number = isinstance(max_bad_share, int | float)
    if not is_number or not 0 <= max_bad_share <= 1:
      raise ValueError(
        f'config.train.max_bad_share={max_bad_share} is not in [0, 1].'
      )
    self._seed, self._max_bad_share = seed, max_bad_share
    self._examples = examples.Examples(
      mesh,
      batch_size,
      preprocess,
      'config.train',
      dataset=dataset,
      split=split,
      subset=subset,
      drop=drop,
    )
    data = self._examples.data
    if data.class_names and len(data.class_names) < 2:
      raise ValueError(
        f'config.train.dataset={dataset!r} has a single class, '
        f'{data.class_names[0]!r}, and there is nothing to learn from it; each '
        'class is a folder of its own. If it is a part of other classes, list '
        'them all in classes.txt.'
      )
    self.num_examples = len(data.source)
    self.num_classes, self.class_names = data.num_classes, data.class_names
    self.image_shape = self._examples.image_shape
    self.many_labels = self._examples.many_labels
    self._begin()

  def _begin(self):
    self.num_bad, self._last_bad = 0, ''
    self._named, self._news = set(), []

  def batches(self, start_step):
    """Yields the global batch of each step from `start_step` on, for ever.

    Args:
      start_step: number of batches that are skipped, at no cost.

    Yields:
      dict of arrays on the mesh: 'image' uint8 [B, height, width, 3], 'label'
      int32 [B] or targets [B, C].

    Raises:
      ValueError: if too many examples are bad.
    """
    self._begin()

    def locate(positions):
      indices, seeds = order.shuffled(positions, self._seed, self.num_examples)
      return indices, {'seed': seeds}

    spec = {'seed': tf.TensorSpec([2], tf.int32)}
    yield from self._examples.batches(
      locate, spec, start_step, 2**40, self._next_good
    )

  def summary(self):
    """Returns what it is in words: '537 images, 2 classes (cat, dog)'."""
    text = f'{self.num_examples:,} images'
    if not self.class_names:
      return text
    listed = ', '.join(self.class_names)
    listed = textwrap.shorten(listed, 100, placeholder=' ...')
    return f'{text}, {self.num_classes} classes ({listed})'

  def news(self):
    """Returns lines that name bad examples, those since the last call."""
    news, self._news = self._news, []
    return news

  def check_bad(self, num_bad, num_seen):
    """Raises ValueError if too many examples were bad.

    Args:
      num_bad: how many, over all processes.
      num_seen: of how many.
    """
    allowed = 0
    if self._max_bad_share:
      # The few come once an epoch, and perhaps all at its beginning.
      share = max(self._max_bad_share, _ALWAYS_ALLOWED / self.num_examples)
      allowed = share * max(num_seen, _FEWEST) + _ALWAYS_ALLOWED
    if num_bad > allowed:
      raise ValueError(
        f'{num_bad:,} of {num_seen:,} examples could not be used, above '
        f'config.train.max_bad_share={self._max_bad_share}; one of them is '
        f'{self._last_bad or "known to another process"}. Mend them '
        '(`python -m vit_jax.data.prepare PATH` lists all of a folder or '
        'manifest) or raise the share, and the same command continues from the '
        'last checkpoint; without these images it is another run, in another '
        '--workdir.'
      )

  def _next_good(self, index, seed, why, num_seen):
    """Returns the example after a bad one."""
    self.num_bad += 1
    self._last_bad = what = f'{self._examples.name(index)}: {why}'
    if index not in self._named and len(self._named) < _NAMED:
      self._named.add(index)
      self._news.append(f'Left out: {what}')
      if len(self._named) == _NAMED:
        self._news.append('Further bad examples are counted, but not named.')
    # At once where one process alone has seen too many; else when they sum up.
    self.check_bad(self.num_bad, num_seen * jax.process_count())
    for offset in range(1, min(_MOST_IN_A_ROW, self.num_examples)):
      try:
        return self._examples.example(
          (index + offset) % self.num_examples, seed
        )
      except examples.BadExampleError:
        continue
    raise ValueError(
      f'config.train: no example after {what} can be used either.'
    )


class EvalData:
  """A data set in its stored order, padded to whole batches and masked.

  Attributes:
    num_examples, num_classes, class_names, image_shape: as of `TrainData`.
    names_are_sorted: see `datasets.Data`.
    num_bad: with `skip_bad`, how many this process left out in the last
      evaluation.
  """

  def __init__(
    self,
    mesh,
    dataset,
    split,
    batch_size,
    preprocess,
    field,
    class_names=None,
    skip_bad=False,
  ):
    """Opens the data set.

    Args:
      mesh: the device mesh that batches are laid out on.
      dataset: as of `TrainData`.
      split: the part of it to evaluate on.
      batch_size: B, over all devices of all processes.
      preprocess: recipe, see `preprocess`.
      field: config section, for errors.
      class_names: the classes of the training set, for images of one's own.
      skip_bad: whether an example that cannot be used is left out and counted,
        instead of being an error.

    Raises:
      ValueError: on anything that does not exist or fit.
    """
    self._examples = examples.Examples(
      mesh,
      batch_size,
      preprocess,
      field,
      dataset=dataset,
      split=split,
      class_names=class_names,
    )
    self._batch_size, self._field, self._skip_bad = batch_size, field, skip_bad
    data = self._examples.data
    self.num_examples = len(data.source)
    self.num_classes, self.class_names = data.num_classes, data.class_names
    self.names_are_sorted = data.names_are_sorted and bool(data.class_names)
    self.image_shape = self._examples.image_shape
    self.num_bad = 0

  def batches(self):
    """Yields every example once.

    Yields:
      dict of arrays on the mesh, as of `TrainData.batches`, and 'mask', [B]
      float32: 1 for an example, 0 for padding and what does not count.

    Raises:
      ValueError: naming an example that cannot be used, unless `skip_bad`.
    """
    self.num_bad = 0

    def locate(positions):
      mask = (positions < self.num_examples).astype(np.float32)
      seeds = np.zeros([len(positions), 2], np.int32)
      indices = np.minimum(positions, self.num_examples - 1)
      return indices, {'seed': seeds, 'mask': mask}

    spec = {
      'seed': tf.TensorSpec([2], tf.int32),
      'mask': tf.TensorSpec([], tf.float32),
    }
    num_batches = -(-self.num_examples // self._batch_size)
    yield from self._examples.batches(locate, spec, 0, num_batches, self._blank)

  def _blank(self, index, seed, why, num_seen):
    del seed, num_seen
    what = f'{self._examples.name(index)}: {why}'
    if not self._skip_bad:
      raise ValueError(
        f'{self._field}: {what}. An evaluation counts every example: mend or '
        f'remove this one, or set {self._field}.skip_bad=True.'
      )
    self.num_bad += 1
    if self.num_bad <= _NAMED:
      logging.warning('%s: left out: %s', self._field, what)
    return self._examples.blank()
