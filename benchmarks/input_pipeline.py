"""How fast are training images made, and what does the project add to tf.data?

  python -m benchmarks.input_pipeline

Makes ImageNet-sized JPEGs in memory, then draws batches in turn from
  - the project's pipeline: `TrainData` with 'inception_crop(224)|flip_lr', in
    its shuffled order, from Python's memory to arrays on the device;
  - the reference: only the tf.data ops that no such pipeline can do without
    (sample a box, decode and crop, resize, flip, batch), in stored order, from
    TensorFlow's memory to numpy arrays.
Both make uint8 batches with a seed for each image. They alternate, so that what
else the machine does falls on both, and `ratio` is the median over the repeats
of project / reference: 1 means that order, labels, rounding and the way to the
device cost nothing. The JPEGs are decoded anew each time; only reading them
from a disk is left out.
"""

import glob
import json
import os
import pathlib
import resource
import statistics
import sys
import time

import jax
import numpy as np
from absl import app, flags

from vit_jax import sharding
from vit_jax.data import datasets, pipeline, sources, tf

_SIZE = flags.DEFINE_integer('size', 224, 'Side of the images made, in pixels.')
_BATCH_SIZE = flags.DEFINE_integer('batch_size', 64, 'Images in a batch.')
_BATCHES = flags.DEFINE_integer('batches', 16, 'Batches timed at a stretch.')
_REPEATS = flags.DEFINE_integer(
  'repeats', 7, 'How often each of the two is timed; medians are reported.'
)
_NUM_JPEGS = flags.DEFINE_integer(
  'num_jpegs', 256, 'How many different 500x375 JPEGs to make.'
)
_FILES = flags.DEFINE_string(
  'files',
  None,
  "Your JPEGs instead of the made ones: a pattern such as 'photos/*.jpg'.",
)


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'{argv[1]!r} is not a flag; flags start with --.')
  jpegs = _read_jpegs(_FILES.value) if _FILES.value else _make_jpegs()
  mean_bytes = statistics.mean(map(len, jpegs))
  print(
    f'{len(jpegs)} JPEGs of {mean_bytes / 1e3:.0f} kB on average.',
    file=sys.stderr,
  )
  chains = {'project': project(jpegs), 'reference': reference(jpegs)}
  for batches in chains.values():
    timed(batches, _BATCHES.value)  # tf.data's AUTOTUNE needs a start
  rates = {name: [] for name in chains}
  core_rates = {name: [] for name in chains}
  for repeat in range(_REPEATS.value):
    names = list(chains)
    for name in names if repeat % 2 else names[::-1]:
      wait_until_idle()
      timed(chains[name], 6)  # more than was prepared ahead
      seconds, cpu_seconds = timed(chains[name], _BATCHES.value)
      num_images = _BATCHES.value * _BATCH_SIZE.value
      rates[name].append(num_images / seconds)
      core_rates[name].append(num_images / cpu_seconds)
  rate = statistics.median(rates['project'])
  result = {
    'images_per_second': round(rate, 1),
    'reference_images_per_second': round(
      statistics.median(rates['reference']), 1
    ),
    'ratio': median_ratio(rates),
    'images_per_core_second': round(
      statistics.median(core_rates['project']), 1
    ),
    'core_ratio': median_ratio(core_rates),
    'mb_per_second': round(rate * mean_bytes / 1e6, 1),
    'mean_jpeg_bytes': round(mean_bytes),
    'peak_rss_bytes': peak_rss_bytes(),
    'cores': len(os.sched_getaffinity(0)),
    'size': _SIZE.value,
    'batch_size': _BATCH_SIZE.value,
  }
  print(json.dumps(result))


def project(jpegs):
  """Yields the project's training batches of encoded images, for ever."""
  arrays = {
    'image': np.array(jpegs, dtype=object),
    'label': np.zeros(len(jpegs), np.int32),
  }
  datasets.DATASETS['in_memory_jpegs'] = datasets.Dataset(
    1, lambda split: sources.ArraySource(arrays)
  )
  data = pipeline.TrainData(
    sharding.make_mesh(),
    seed=0,
    dataset='in_memory_jpegs',
    split='train',
    batch_size=_BATCH_SIZE.value,
    preprocess=f'inception_crop({_SIZE.value})|flip_lr',
  )
  return data.batches(0)


def reference(jpegs):
  """Yields batches of the bare tf.data chain, for ever."""

  def make(number, jpeg):
    seed = tf.stack([number, 0])
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
      tf.io.extract_jpeg_shape(jpeg),
      tf.zeros([0, 0, 4], tf.float32),
      seed,
      area_range=(0.05, 1.0),
      min_object_covered=0,
      use_image_if_no_bounding_boxes=True,
    )
    box = tf.stack([begin[0], begin[1], size[0], size[1]])
    image = tf.io.decode_and_crop_jpeg(jpeg, box, channels=3)
    image = tf.image.resize(image, [_SIZE.value] * 2)
    image = tf.cast(image, tf.uint8)
    return tf.image.stateless_random_flip_left_right(image, seed)

  examples = tf.data.Dataset.from_tensor_slices(jpegs).repeat().enumerate()
  images = examples.map(make, tf.data.AUTOTUNE, deterministic=True)
  return images.batch(_BATCH_SIZE.value).prefetch(2).as_numpy_iterator()


def timed(batches, count):
  """Returns (seconds, CPU seconds) of drawing so many batches."""
  start, cpu_start = time.perf_counter(), time.process_time()
  for _ in range(count):
    batch = next(batches)
  jax.block_until_ready(batch)
  return time.perf_counter() - start, time.process_time() - cpu_start


def wait_until_idle():
  """Returns when tf.data's threads have filled the buffers of all chains."""
  busy = 1.0
  while busy > 0.1:
    start, cpu_start = time.perf_counter(), time.process_time()
    time.sleep(0.05)
    busy = time.process_time() - cpu_start
    busy /= time.perf_counter() - start


def median_ratio(values):
  pairs = zip(values['project'], values['reference'], strict=True)
  return round(statistics.median(a / b for a, b in pairs), 3)


def peak_rss_bytes():
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak if sys.platform == 'darwin' else peak * 1024


def _make_jpegs(height=375, width=500):
  """Returns encoded images with a photo's spectrum, about 100 kB each."""
  rng = np.random.default_rng(0)
  y, x = np.fft.fftfreq(height), np.fft.fftfreq(width)
  amplitude = np.hypot(y[:, None], x)
  amplitude[0, 0] = np.inf  # no mean
  amplitude **= -1.1  # about 1 / frequency, as photos have
  jpegs = []
  for _ in range(_NUM_JPEGS.value):
    noise = np.fft.fft2(rng.standard_normal((3, height, width)))
    image = np.fft.ifft2(noise * amplitude).real
    image /= image.std()
    image = image[:1] + 0.25 * image  # the colours agree but for a quarter
    pixels = np.clip(127 + 45 * image, 0, 255).astype(np.uint8)
    jpeg = tf.io.encode_jpeg(pixels.transpose(1, 2, 0), quality=90)
    jpegs.append(jpeg.numpy())
  return jpegs


def _read_jpegs(pattern):
  paths = sorted(glob.glob(pattern))
  if not paths:
    raise app.UsageError(f'--files={pattern} matches no file.')
  return [pathlib.Path(path).read_bytes() for path in paths]


if __name__ == '__main__':
  app.run(main)
