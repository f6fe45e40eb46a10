"""ObjectNet: photos of things in unusual places, to test models of ImageNet.

Of its 313 classes, 113 are also ImageNet's, each of them one or several of the
1,000; other images are left out. Any of its ImageNet classes is right: labels
are targets [1000]. That is BiT's protocol (1912.11370), which the paper follows
(Section D.9).

The folder is what https://objectnet.dev distributes: images/CLASS/*.png, and in
mappings/ the files that say which classes are which. Its licence forbids to
train on it.
"""

import functools
import json
import os
import pathlib

from vit_jax.data import files, images, labels, preprocess, sources

FOLDER = 'objectnet-1.0'
_BORDER = 2  # red pixels at each side, by which copies can be found


class ObjectNetSource(files.FilesSource):
  """ObjectNet without its images' borders; see `sources`."""

  def parse(self, record):
    image = preprocess.decode()(record['image'], None)
    image = image[_BORDER:-_BORDER, _BORDER:-_BORDER]
    return record | {'image': image}


def source(split):
  """Returns the source of a split, of which there is one: 'test'.

  Raises:
    ValueError: if the folder is not there, with how to get it.
  """
  folder = os.path.join(sources.data_dir(), FOLDER)
  return ObjectNetSource(load(folder), split)


@functools.lru_cache(maxsize=1)
def load(folder):
  """Returns the `files.Files` of the images that ImageNet has classes for.

  Args:
    folder: path of the unpacked distribution.

  Raises:
    ValueError: if it is not there, or not whole.
  """
  classes = imagenet_classes(folder)
  for name in classes:
    if not os.path.isdir(os.path.join(folder, 'images', name)):
      raise ValueError(
        f'{folder} is not whole: images/{name} is missing; unpack all of '
        'ObjectNet again.'
      )
  rows = (
    ('test', os.path.relpath(path, folder), classes[name])
    for name in sorted(classes)
    for path in images.walk(os.path.join(folder, 'images', name))
  )
  return files.Files(rows, labels.names_of('imagenet2012'), 1000, folder)


def imagenet_classes(folder):
  """Returns a dict from folders of images to lists of their ImageNet classes.

  Args:
    folder: path of the unpacked distribution.

  Raises:
    ValueError: if a file of its mappings is not there, or not understood.
  """
  mappings = pathlib.Path(folder) / 'mappings'
  try:
    read = {
      name: (mappings / name).read_text(encoding='utf-8')
      for name in (
        'folder_to_objectnet_label.json',  # 'alarm_clock': 'Alarm clock'
        'objectnet_to_imagenet_1k.json',  # 'Alarm clock': 'analog clock; ...'
        'pytorch_to_imagenet_2012_id.json',  # class: its line in the next
        'imagenet_to_label_2012_v2',  # 'analog clock'
      )
    }
  except OSError as error:
    raise ValueError(
      f'ObjectNet is not in {folder} ({error.strerror}: {error.filename}); '
      'download objectnet-1.0.zip from https://objectnet.dev and unpack it '
      'there (the site tells the password), or set TFDS_DATA_DIR to the folder '
      f'that holds {FOLDER}.'
    ) from None
  lines_text = read.pop('imagenet_to_label_2012_v2')
  names, overlap, lines = (json.loads(text) for text in read.values())
  texts = [line.strip() for line in lines_text.splitlines()]
  class_of = {texts[line]: int(number) for number, line in lines.items()}
  try:
    return {
      name: [class_of[text] for text in overlap[label].split('; ')]
      for name, label in names.items()
      if label in overlap
    }
  except KeyError as error:
    raise ValueError(
      f'{mappings}: {error} is not a class of ImageNet there; unpack ObjectNet '
      'again.'
    ) from None
