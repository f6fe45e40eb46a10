"""What `input_pipeline` is compared with: a DataLoader of torch and Pillow."""

import io

import numpy as np
import torch
from PIL import Image


def batches(jpegs, size, batch_size):
  """Yields batches of float tensors, for ever, from two worker processes.

  Args:
    jpegs: list of bytes, images of any size.
    size: side of the images made, in pixels.
    batch_size: images in a batch.
  """
  loader = torch.utils.data.DataLoader(
    _Images(jpegs, size),
    batch_size=batch_size,
    num_workers=2,
    multiprocessing_context='forkserver',  # threads are running
  )
  return iter(loader)


class _Images:
  """A map-style data set.

  It does what PyTorch's ImageNet example does: RandomResizedCrop, random flip,
  ToTensor, Normalize.
  """

  def __init__(self, jpegs, size):
    self._jpegs, self._size = jpegs, size
    self._mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    self._std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]

  def __len__(self):
    return 2**31

  def __getitem__(self, index):
    rng = np.random.default_rng(index)
    image = Image.open(io.BytesIO(self._jpegs[index % len(self._jpegs)]))
    image = image.convert('RGB')
    while True:  # as torchvision's RandomResizedCrop
      area = image.width * image.height * rng.uniform(0.05, 1)
      aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
      w, h = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
      if 0 < w <= image.width and 0 < h <= image.height:
        break
    x, y = rng.integers(image.width - w + 1), rng.integers(image.height - h + 1)
    image = image.crop((x, y, x + w, y + h))
    image = image.resize((self._size, self._size), Image.Resampling.BILINEAR)
    if rng.random() < 0.5:
      image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
    return pixels.float().div_(255).sub_(self._mean).div_(self._std)
