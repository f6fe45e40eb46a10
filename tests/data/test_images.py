import io
import os
import struct
import zlib
from unittest import mock

import numpy as np
import pytest
from PIL import Image, ImageOps

from vit_jax.data import images, preprocess, tf

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (12, 20, 3)).astype(np.uint8)
ORIENTATION = 0x0112
DECODE = preprocess.parse('', 'recipe')


def save(path, image, **kwargs):
  if isinstance(image, np.ndarray):
    image = Image.fromarray(image)
  image.save(path, **kwargs)
  return str(path)


def pixels(path):
  return DECODE(tf.constant(images.read(path)), np.zeros(2, np.int32)).numpy()


@pytest.fixture
def tree(tmp_path):
  """A folder with images in subfolders, and other things."""
  for name in ('b.JPG', 'a.png', 'notes.txt', 'z/1.webp', 'c/d/2.Jpeg', 'c/3'):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
  return tmp_path


def test_folders_are_searched_in_order(tree):
  found = [os.path.relpath(p, tree) for p in images.find([str(tree)])]
  assert found == ['a.png', 'b.JPG', 'c/d/2.Jpeg', 'z/1.webp']
  named = [str(tree / 'notes.txt'), str(tree / 'z'), 'missing.jpg']
  assert list(images.find(named)) == [
    named[0], str(tree / 'z/1.webp'), 'missing.jpg'
  ]  # fmt: skip


def test_links_are_followed_and_do_not_lead_in_circles(tree):
  (tree / 'z' / 'up').symlink_to(tree)
  (tree / 'z' / 'self').symlink_to(tree / 'z' / 'self')
  (tree / 'gone.png').symlink_to(tree / 'nothing')
  found = [os.path.relpath(p, tree / 'z') for p in images.find([tree / 'z'])]
  assert found == ['1.webp', 'up/a.png', 'up/b.JPG', 'up/gone.png',
                   'up/c/d/2.Jpeg']  # fmt: skip


def test_a_folder_without_images_is_reported(tree, capsys):
  (tree / 'empty').mkdir()
  found = images.find([str(tree / 'empty'), str(tree / 'z')])
  assert list(found) == [str(tree / 'z/1.webp')]
  assert 'empty: there are no images in this folder' in capsys.readouterr().err


def test_a_folder_that_cannot_be_listed_shows_when_it_is_read(
  tree, monkeypatch
):
  scandir = os.scandir

  def refuse(path):
    if str(path).endswith('c'):
      raise PermissionError
    return scandir(path)

  monkeypatch.setattr(os, 'scandir', refuse)
  found = [os.path.relpath(p, tree) for p in images.find([str(tree)])]
  assert found == ['a.png', 'b.JPG', 'c', 'z/1.webp']
  with pytest.raises(OSError):
    images.read(tree / 'c')


@pytest.mark.parametrize('image', [PIXELS, PIXELS[..., 0]], ids=['RGB', 'L'])
@pytest.mark.parametrize('name', ['a.jpg', 'a.png', 'no_extension'])
def test_ordinary_images_reach_the_recipe_encoded(tmp_path, name, image):
  path = tmp_path / name
  save(path, image, format='PNG' if name == 'a.png' else 'JPEG')
  assert images.read(path) == path.read_bytes()


def test_a_jpeg_with_others_behind_it_is_a_jpeg(tmp_path):
  others = [Image.fromarray(PIXELS[::-1])]
  save(tmp_path / 'a.jpg', PIXELS, format='MPO', save_all=True,
       append_images=others)  # fmt: skip
  alone = save(tmp_path / 'b.jpg', PIXELS)
  assert images.read(tmp_path / 'a.jpg')[:2] == b'\xff\xd8'
  np.testing.assert_array_equal(pixels(tmp_path / 'a.jpg'), pixels(alone))


@pytest.mark.parametrize('extension', ['bmp', 'webp'])
def test_other_formats(tmp_path, extension):
  path = save(tmp_path / f'a.{extension}', PIXELS, lossless=True)
  np.testing.assert_array_equal(pixels(path), PIXELS)


def test_cmyk(tmp_path):
  cyan = Image.new('CMYK', (16, 16), (255, 0, 0, 0))
  path = save(tmp_path / 'a.jpg', cyan)
  color = pixels(path)[8, 8].astype(int)
  np.testing.assert_allclose(color, [0, 255, 255], atol=3)


@pytest.mark.parametrize('orientation', [1, 6])
def test_of_16_bits_the_upper_8_count(tmp_path, orientation):
  deep = PIXELS[..., 0].astype(np.uint16) * 256 + PIXELS[..., 1]
  exif = Image.Exif()
  exif[ORIENTATION] = orientation
  path = save(tmp_path / 'a.png', deep, exif=exif)
  expected = PIXELS[..., :1].repeat(3, -1)
  if orientation == 6:
    expected = np.rot90(expected, -1)
  np.testing.assert_array_equal(pixels(path), expected)


def test_what_is_transparent_is_white(tmp_path):
  rgba = np.dstack([PIXELS, np.full((12, 20, 1), 255, np.uint8)])
  rgba[:, :10, 3] = 0
  expected = PIXELS.copy()
  expected[:, :10] = 255
  for name in ('a.png', 'a.webp'):
    path = save(tmp_path / name, rgba, lossless=True)
    np.testing.assert_array_equal(pixels(path), expected)
  half = np.full((2, 2, 4), [0, 0, 0, 128], np.uint8)
  path = save(tmp_path / 'half.png', half)
  np.testing.assert_allclose(pixels(path).astype(int), 127, atol=1)


@pytest.mark.parametrize('transparency', [1, bytes([255, 0, 255])])
def test_palettes_with_alpha(tmp_path, transparency):
  image = Image.new('P', (3, 1))
  image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
  image.putdata([0, 1, 2])
  path = save(tmp_path / 'a.png', image, transparency=transparency)
  expected = [[[10, 20, 30], [255, 255, 255], [70, 80, 90]]]
  np.testing.assert_array_equal(pixels(path), expected)
  opaque = save(tmp_path / 'b.png', image)
  np.testing.assert_array_equal(pixels(opaque)[0, 1], [40, 50, 60])


@pytest.mark.parametrize('extension', ['gif', 'png', 'webp'])
def test_of_an_animation_the_first_picture(tmp_path, extension):
  red, blue = (Image.new('RGB', (16, 16), color) for color in ('red', 'blue'))
  path = save(tmp_path / f'a.{extension}', red, save_all=True, lossless=True,
              append_images=[blue])  # fmt: skip
  with Image.open(path) as image:
    assert image.n_frames == 2
  assert pixels(path).shape == (16, 16, 3)
  np.testing.assert_array_equal(pixels(path)[3, 3], [255, 0, 0])


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('extension', ['jpg', 'png', 'webp'])
def test_exif_says_what_is_up(tmp_path, extension, orientation):
  exif = Image.Exif()
  exif[ORIENTATION] = orientation
  path = save(
    tmp_path / f'a.{extension}', PIXELS, exif=exif, lossless=True
  )  # fmt: skip
  upright = save(tmp_path / f'b.{extension}', PIXELS, lossless=True)
  with Image.open(path) as image:
    assert image.getexif()[ORIENTATION] == orientation
  turn = Image.fromarray(pixels(upright))
  turn.getexif()[ORIENTATION] = orientation
  expected = np.asarray(ImageOps.exif_transpose(turn)).astype(int)
  again = extension == 'jpg' and orientation > 1  # encoded again
  np.testing.assert_allclose(pixels(path), expected, atol=24 if again else 0)
  assert abs(pixels(path) - expected).mean() < (5 if again else 1e-9)
  assert images.read(path)[:2] == (
    b'\xff\xd8' if extension == 'jpg' else b'\x89P'
  )


def test_damaged_exif_does_not_matter(tmp_path):
  path = save(tmp_path / 'a.jpg', PIXELS, exif=b'Exif\0\0MM\0*garbage' * 9)
  upright = save(tmp_path / 'b.jpg', PIXELS)
  np.testing.assert_array_equal(pixels(path), pixels(upright))


def test_of_large_images_there_is_one_at_a_time(tmp_path, monkeypatch):
  path = save(tmp_path / 'a.bmp', PIXELS)
  lock = mock.MagicMock()
  monkeypatch.setattr(images, '_many_pixels', lock)
  images.read(path)
  assert not lock.__enter__.called
  monkeypatch.setattr(images, '_MANY_PIXELS', PIXELS[..., 0].size - 1)
  np.testing.assert_array_equal(pixels(path), PIXELS)
  assert lock.__enter__.called


def test_what_is_no_file_is_not_opened(tmp_path):
  os.mkfifo(tmp_path / 'p.png')
  (tmp_path / 'zero.png').symlink_to('/dev/zero')
  for name in ('p.png', 'zero.png'):
    with pytest.raises(ValueError, match='a pipe, socket or device, not'):
      images.read(tmp_path / name)


def test_files_beyond_the_limit_are_not_read(tmp_path, monkeypatch):
  monkeypatch.setattr(images, '_MAX_BYTES', 99)
  (tmp_path / 'x.png').write_bytes(b'x' * 100)
  with pytest.raises(ValueError, match='larger than 99 bytes'):
    images.read(tmp_path / 'x.png')


def png_header(width, height):
  """Returns a PNG that says it is large, and ends."""
  header = b'IHDR' + struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
  chunk = struct.pack('>I', 13) + header + struct.pack('>I', zlib.crc32(header))
  return b'\x89PNG\r\n\x1a\n' + chunk + b'\0\0\0\0IDAT'


def encoded(kind):
  stream = io.BytesIO()
  Image.fromarray(PIXELS).save(stream, kind)
  return stream.getvalue()


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'', 'the file is empty'),
    (b'plain text', r'not an image \(BMP, GIF, JPEG, PNG, WEBP\)'),
    (b'%!PS-Adobe-3.0 EPSF-3.0\n', 'not an image'),
    (png_header(20_000, 20_000), '400000000 pixels'),
    (png_header(20_000, 50), '20000 x 50 pixels: one side is over 200 times'),
    (png_header(20, 12), 'PNG'),
    (encoded('PNG')[:400], 'PNG'),
    (encoded('JPEG')[:700], 'JPEG'),
    (encoded('WEBP')[:200], 'decod'),
    (encoded('GIF')[:900], 'truncated'),
    (encoded('BMP')[:300], 'truncated'),
  ],
)
def test_what_cannot_be_read_raises(tmp_path, content, message):
  path = tmp_path / 'a.png'
  path.write_bytes(content)
  with pytest.raises(Exception, match=message):
    pixels(path)
