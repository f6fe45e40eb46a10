"""How fast are training images made, and what does the project add to tf.data?

  python -m benchmarks.input_pipeline --photos='/usr/share/backgrounds/*.jpg'

Cuts ImageNet-sized JPEGs (500x375) out of photos (such as those of Debian's
package lomiri-wallpapers-16.04; without --photos, out of noise with a photo's
spectrum), holds them in memory, and draws batches in turn from
  - project: `TrainData` with 'inception_crop(224)|flip_lr', in the shuffled
    order of a data set of 300 million, from Python's memory to arrays on the
    device;
  - reference: only the tf.data ops that no such pipeline can do without (sample
    a box, decode and crop, resize, flip, batch), in stored order, from
    TensorFlow's memory to numpy arrays;
  - torch: a DataLoader with Pillow and two worker processes, if torch is
    installed. It scales pixels to floats, as is usual there; ours stay bytes
    until they are on the device.
They alternate, so that what else the machine does falls on all, and ratios are
medians over the repeats of project / other. The JPEGs are decoded anew each
time; only reading them from a disk is left out.
"""

import glob
import importlib.util
import io
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
from PIL import Image

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
_PHOTOS = flags.DEFINE_string(
  'photos', None, 'Large photos to cut JPEGs from: a pattern of file names.'
)
_DATASET = flags.DEFINE_string(
  'dataset',
  None,
  'Instead of comparing: one epoch of a data set, a name or path, from disk.',
)
_NUM_EXAMPLES = 300_000_000


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'{argv[1]!r} is not a flag; flags start with --.')
  if _DATASET.value:
    print(json.dumps(an_epoch(_DATASET.value)))
    return
  jpegs = _cut_jpegs(_PHOTOS.value) if _PHOTOS.value else _make_jpegs()
  mean_bytes = statistics.mean(map(len, jpegs))
  print(
    f'{len(jpegs)} JPEGs of {mean_bytes / 1e3:.0f} kB on average.',
    file=sys.stderr,
  )
  chains = {'project': project(jpegs), 'reference': reference(jpegs)}
  if importlib.util.find_spec('torch'):
    from benchmarks import torch_loader

    chains['torch'] = torch_loader.batches(
      jpegs, _SIZE.value, _BATCH_SIZE.value
    )
  for batches in chains.values():
    timed(batches, _BATCHES.value)  # tf.data's AUTOTUNE needs a start
  rss = rss_bytes()
  rates, core_rates = compare(chains)
  rate = statistics.median(rates['project'])
  result = {
    'images_per_second': round(rate, 1),
    'ratio': median_ratio(rates, 'reference'),
    'torch_ratio': median_ratio(rates, 'torch') if 'torch' in rates else None,
    'images_per_core_second': round(
      statistics.median(core_rates['project']), 1
    ),
    'core_ratio': median_ratio(core_rates, 'reference'),
    'mb_per_second': round(rate * mean_bytes / 1e6, 1),
    'wait_share': round(wait_share(chains['project'], rate), 4),
    'mean_jpeg_bytes': round(mean_bytes),
    'peak_rss_bytes': peak_rss_bytes(),
    'rss_growth_bytes': rss_bytes() - rss,
    'cores': len(os.sched_getaffinity(0)),
    'size': _SIZE.value,
    'batch_size': _BATCH_SIZE.value,
  }
  for name in rates:
    if name != 'project':
      other = round(statistics.median(rates[name]), 1)
      result[f'{name}_images_per_second'] = other
  print(json.dumps(result))


def an_epoch(dataset):
  """Returns how fast an epoch is from disk, and what it takes of memory."""
  data = train_data(dataset)
  batches = data.batches(0)
  timed(batches, 16)
  rss, count = rss_bytes(), data.num_examples // _BATCH_SIZE.value
  seconds, _ = timed(batches, count)
  return {
    'images_per_second': round(count * _BATCH_SIZE.value / seconds, 1),
    'num_examples': data.num_examples,
    'rss_bytes': rss_bytes(),
    'rss_growth_bytes': rss_bytes() - rss,
    'bad_examples': data.num_bad,
  }


def train_data(dataset):
  """Returns the training set, cropped and flipped."""
  return pipeline.TrainData(
    sharding.make_mesh(),
    seed=0,
    dataset=dataset,
    split='train',
    batch_size=_BATCH_SIZE.value,
    preprocess=f'inception_crop({_SIZE.value})|flip_lr',
  )


def compare(chains):
  """Returns images a second of each chain, of the clock and of a core."""
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
  return rates, core_rates


def wait_share(batches, rate):
  """Returns the share of a train loop's time that waits for images.

  The loop's step takes a quarter longer than the pipeline takes for a batch,
  and leaves the processor alone, as an accelerator does.
  """
  step = 1.25 * _BATCH_SIZE.value / rate
  for _ in range(4):  # until the loop goes evenly
    next(batches)
    time.sleep(step)
  waited, start = 0.0, time.perf_counter()
  for _ in range(_BATCHES.value):
    asked = time.perf_counter()
    next(batches)
    waited += time.perf_counter() - asked
    time.sleep(step)
  return waited / (time.perf_counter() - start)


class _Many(sources.ArraySource):
  """A source as long as JFT, of a few examples again and again."""

  def __len__(self):
    return _NUM_EXAMPLES

  def read(self, indices):
    return super().read(indices % super().__len__())


def project(jpegs):
  """Yields the project's training batches of encoded images, for ever."""
  arrays = {
    'image': np.array(jpegs, dtype=object),
    'label': np.zeros(len(jpegs), np.int32),
  }
  datasets.DATASETS['in_memory_jpegs'] = datasets.Dataset(
    1, lambda split: _Many(arrays)
  )
  return train_data('in_memory_jpegs').batches(0)


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
  time.sleep(0.5)  # worker processes of others fill theirs meanwhile


def median_ratio(values, other):
  pairs = zip(values['project'], values[other], strict=True)
  return round(statistics.median(a / b for a, b in pairs), 3)


def peak_rss_bytes():
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak if sys.platform == 'darwin' else peak * 1024


def rss_bytes():
  """Returns the memory that is resident now, 0 where the system hides it."""
  statm = pathlib.Path('/proc/self/statm')
  if not statm.exists():
    return 0
  return int(statm.read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')


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


def _cut_jpegs(pattern, height=375, width=500):
  """Returns JPEGs of parts of photos, each half of the photo or more."""
  paths = sorted(glob.glob(pattern))
  if not paths:
    raise app.UsageError(f'--photos={pattern} matches no file.')
  rng = np.random.default_rng(0)
  jpegs = []
  for number in range(_NUM_JPEGS.value):
    with Image.open(paths[number % len(paths)]) as photo:
      scale = min(photo.width / width, photo.height / height)
      w, h = (
        int(side * scale * rng.uniform(0.5, 1)) for side in (width, height)
      )
      x, y = (
        rng.integers(photo.width - w + 1),
        rng.integers(photo.height - h + 1),
      )
      part = photo.convert('RGB').resize(
        (width, height), Image.Resampling.LANCZOS, (x, y, x + w, y + h)
      )
    stream = io.BytesIO()
    part.save(stream, 'JPEG', quality=96)
    jpegs.append(stream.getvalue())
  return jpegs


if __name__ == '__main__':
  app.run(main)
