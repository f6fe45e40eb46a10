"""The 19 tasks of VTAB-1k: 1,000 training images each.

A task's data set is 'vtab_' + its name, with the splits 'train' (1,000 images),
its parts 'train800' and 'val200', on which hyper-parameters are chosen, and
'test'. Splits, labels and augmentations: VTAB (1910.04867), and BiT
(1912.11370) for the augmentations; the paper follows both (Section B.1.1).

Splits are slices of how TFDS orders its examples, so that they need the stated
versions. What preparing a task takes beyond `python -m vit_jax.data.prepare` is
in its `needs`.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

from vit_jax import names
from vit_jax.data import tf

GROUPS = ('natural', 'specialized', 'structured')
_CV2 = 'TFDS builds it with OpenCV: `pip install opencv-python-headless`.'
_H5PY = 'TFDS builds it with h5py: `pip install h5py`.'
_CHECKSUM = (
  'If TFDS refuses the download because its checksum has changed: `tfds build '
  '{} --register_checksums --file_format=array_record`.'
)


class Task(NamedTuple):
  """A row of TASKS.

  Attributes:
    group: one of GROUPS.
    tfds_name: name and version of the TFDS data set.
    num_classes: C.
    train800: TFDS split of the first 800 training images.
    val200: of the other 200.
    test: of all test images.
    label: name of the feature that the class is, or is made of.
    to_class: see `sources.TfdsSource`.
    pixels: see there too.
    crop: whether training crops at random.
    flip: whether training mirrors at random.
    needs: what preparing the data set asks of the user; '' is nothing.
  """

  group: str
  tfds_name: str
  num_classes: int
  train800: str
  val200: str
  test: str = 'test'
  label: str = 'label'
  to_class: Callable | None = None
  pixels: Callable | None = None
  crop: bool = True
  flip: bool = True
  needs: str = ''

  @property
  def splits(self):
    """Dict from the names of the splits to TFDS's."""
    return {
      'train': f'{self.train800}+{self.val200}',
      'train800': self.train800,
      'val200': self.val200,
      'test': self.test,
    }


def train_recipe(task, size=384):
  """Returns the preprocessing recipe of a task's training images.

  Args:
    task: a name in TASKS.
    size: side of the images that the model sees, in pixels. What is cropped is
      resized to 7/6 of it before: 448 for 384.

  Raises:
    ValueError: if there is no such task.
  """
  row = names.lookup(TASKS, task, 'task')
  if row.crop:
    recipe = f'resize({round(size * 448 / 384)})|random_crop({size})'
  else:
    recipe = f'resize({size})'
  return f'{recipe}|flip_lr' if row.flip else recipe


def eval_recipe(size=384):
  """Returns the recipe for evaluating any task; `size` as of `train_recipe`."""
  return f'resize({size})'


def count_class(objects):
  """Returns the class, int32 []: how many objects, less the least, 3."""
  return tf.size(objects['size']) - 3


def clevr_distance_class(objects):
  """Returns the class of the distance from the camera to the nearest object."""
  nearest = tf.reduce_min(objects['pixel_coords'][:, 2])
  return bin_of(nearest, [0.0, 8.0, 8.5, 9.0, 9.5, 10.0, 100.0])


def kitti_distance_class(objects):
  """Returns the class of the distance to the nearest vehicle, in metres.

  Vehicles are cars, vans and trucks, types 0 to 2. Without any the class is 3,
  the last.
  """
  is_vehicle = objects['type'] < 3
  far = tf.fill(tf.shape(is_vehicle), 1000.0)
  z = tf.where(is_vehicle, objects['location'][:, 2], far)
  nearest = tf.minimum(tf.reduce_min(z), 1000.0)  # of nothing it is infinite
  return bin_of(nearest, [-100.0, 8.0, 20.0, 999.0])


def bin_of(value, thresholds):
  """Returns int32 []: the index of the last threshold that a value exceeds.

  Args:
    value: float32 [].
    thresholds: list of floats, ascending.
  """
  exceeded = value > tf.constant(thresholds, value.dtype)
  return tf.reduce_sum(tf.cast(exceeded, tf.int32)) - 1


def grouped(num_values, num_classes):
  """Returns the function from a label in [0, num_values) to its class.

  Neighbouring labels share a class: floor(label * num_classes / num_values).
  """
  return functools.partial(_group, num_values, num_classes)


def _group(num_values, num_classes, label):
  return label * num_classes // num_values


def _to_255(image):
  return image * 255  # stored as 0 and 1


# By the columns of Table 9. TFDS builds Pets only in version 4 now; BiT used 3.
# The images have the same keys, by which TFDS orders them, so that the slices
# hold the same ones; some that were damaged are encoded anew. dmlab and kitti
# are pinned as VTAB pins them. Of clevr's splits, 'test' has no annotations, so
# that 'validation' is the test set. dsprites, eurosat and resisc45 only have
# 'train'. smallnorb has no validation set: VTAB takes the first half of 'test'.
TASKS = {
  'caltech101': Task(
    'natural', 'caltech101:3.*.*', 102, 'train[:800]', 'train[2754:2954]',
  ),
  'cifar100': Task(
    'natural', 'cifar100:3.*.*', 100, 'train[:800]', 'train[45000:45200]',
  ),
  'dtd': Task(
    'natural', 'dtd:3.*.*', 47, 'train[:800]', 'validation[:200]',
    needs=_CHECKSUM.format('dtd'),
  ),
  'flowers102': Task(
    'natural', 'oxford_flowers102:2.*.*', 102,
    'train[:800]', 'validation[:200]',
  ),
  'pets': Task(
    'natural', 'oxford_iiit_pet:4.*.*', 37, 'train[:800]', 'train[2944:3144]',
  ),
  'sun397': Task(
    'natural', 'sun397/tfds:4.*.*', 397, 'train[:800]', 'validation[:200]',
    needs=f'{_CV2} {_CHECKSUM.format("sun397/tfds")}',
  ),
  'svhn': Task(
    'natural', 'svhn_cropped:3.*.*', 10, 'train[:800]', 'train[65931:66131]',
  ),
  'patch_camelyon': Task(
    'specialized', 'patch_camelyon:2.*.*', 2,
    'train[:800]', 'validation[:200]', needs=_H5PY,
  ),
  'eurosat': Task(
    'specialized', 'eurosat/rgb:2.*.*', 10,
    'train[:800]', 'train[16200:16400]', 'train[21600:]',
  ),
  'resisc45': Task(
    'specialized', 'resisc45:3.*.*', 45,
    'train[:800]', 'train[18900:19100]', 'train[25200:]',
    needs='Download NWPU-RESISC45.rar by hand (TFDS says where) and unpack it '
    'in downloads/manual of the data folder.',
  ),
  'diabetic_retinopathy': Task(
    'specialized', 'diabetic_retinopathy_detection/btgraham-300:3.*.*', 5,
    'train[:800]', 'validation[:200]',
    needs='Download the images by hand from Kaggle, with an account (TFDS says '
    f'where), and unpack them in downloads/manual of the data folder. {_CV2}',
  ),
  'clevr_count': Task(
    'structured', 'clevr:3.*.*', 8,
    'train[:800]', 'train[63000:63200]', 'validation',
    label='objects', to_class=count_class, crop=False,
  ),
  'clevr_distance': Task(
    'structured', 'clevr:3.*.*', 6,
    'train[:800]', 'train[63000:63200]', 'validation',
    label='objects', to_class=clevr_distance_class, crop=False,
  ),
  'dmlab': Task(
    'structured', 'dmlab:2.0.1', 6, 'train[:800]', 'validation[:200]',
    crop=False,
  ),
  'dsprites_location': Task(
    'structured', 'dsprites:2.*.*', 16,
    'train[:800]', 'train[589824:590024]', 'train[663552:]',
    label='label_x_position', to_class=grouped(32, 16), pixels=_to_255,
    crop=False, flip=False, needs=_H5PY,
  ),
  'dsprites_orientation': Task(
    'structured', 'dsprites:2.*.*', 16,
    'train[:800]', 'train[589824:590024]', 'train[663552:]',
    label='label_orientation', to_class=grouped(40, 16), pixels=_to_255,
    flip=False, needs=_H5PY,
  ),
  'kitti_distance': Task(
    'structured', 'kitti:3.1.0', 4, 'train[:800]', 'validation[:200]',
    label='objects', to_class=kitti_distance_class, crop=False,
    needs=f'{_CV2} {_CHECKSUM.format("kitti:3.1.0")}',
  ),
  'smallnorb_azimuth': Task(
    'structured', 'smallnorb:2.*.*', 18,
    'train[:800]', 'test[:200]', 'test[50%:]',
    label='label_azimuth', flip=False,
  ),
  'smallnorb_elevation': Task(
    'structured', 'smallnorb:2.*.*', 9,
    'train[:800]', 'test[:200]', 'test[50%:]', label='label_elevation',
  ),
}  # fmt: skip
