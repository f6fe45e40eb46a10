import hashlib
import http.server
import io
import socket
import threading
import time

import numpy as np
import pytest

from vit_jax.weights import files, public


def npz_bytes(value):
  buffer = io.BytesIO()
  np.savez(buffer, a=np.full(3, value))
  return buffer.getvalue()


GOOD = npz_bytes(1.0)


@pytest.fixture
def serve(monkeypatch):
  """Returns a function from {path: body} to the URL of a server of them.

  A body of None is a 404, and a body after an int says that it has that length.
  """
  monkeypatch.setenv('no_proxy', '*')
  servers = []

  def start(bodies):
    class Handler(http.server.BaseHTTPRequestHandler):
      def do_GET(self):
        body = bodies[self.path]
        if body is None:
          self.send_error(404)
          return
        length, body = body if isinstance(body, tuple) else (len(body), body)
        self.send_response(200)
        self.send_header('Content-Length', str(length))
        self.end_headers()
        self.wfile.write(body)

      def log_message(self, *args):
        pass

    server = http.server.HTTPServer(('127.0.0.1', 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    servers.append((server, thread))
    return f'http://127.0.0.1:{server.server_port}'

  yield start
  for server, thread in servers:
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def add(monkeypatch):
  """Returns a function that adds a row of these sources, named 'tiny'."""

  def call(*sources, sha256=()):
    row = public.Public('a tiny one', sources, 'imagenet2012', 8, sha256)
    monkeypatch.setitem(public.WEIGHTS, 'tiny', row)

  return call


def found_in(folder):
  return sorted(path.name for path in folder.iterdir())


def test_downloads_once(serve, add, tmp_path, monkeypatch):
  bodies = {'/a/model.npz': GOOD}
  add(serve(bodies) + '/a/model.npz')
  monkeypatch.setenv('VIT_JAX_CACHE', str(tmp_path / 'new' / 'cache'))
  path = public.fetch('tiny')
  assert path == tmp_path / 'new' / 'cache' / 'tiny.npz'
  np.testing.assert_array_equal(files.read(path)['a'], np.ones(3))
  assert found_in(path.parent) == ['tiny.npz', 'tiny.npz.sha256']
  digest = hashlib.sha256(GOOD).hexdigest()
  record = path.with_name('tiny.npz.sha256')
  assert record.read_text() == f'{digest}  tiny.npz\n'
  bodies.clear()
  assert public.fetch('tiny') == path


def test_tries_the_next_source(serve, add, tmp_path):
  files.write(tmp_path / 'b.safetensors', {'a': np.full(3, 2.0)})
  second = (tmp_path / 'b.safetensors').read_bytes()
  host = serve({'/a.npz': None, '/b.safetensors': second})
  add(f'{host}/a.npz', f'{host}/b.safetensors')
  path = public.fetch('tiny', tmp_path / 'cache')
  assert path.name == 'tiny.safetensors'
  assert files.read(path)['a'][0] == 2
  assert public.fetch('tiny', tmp_path / 'cache') == path


@pytest.mark.parametrize(
  ('body', 'sha256', 'reason'),
  [
    (None, (), 'HTTP Error 404: Not Found'),
    (
      (len(GOOD) + 5, GOOD),
      (),
      f'it ended after {len(GOOD)} of {len(GOOD) + 5} bytes',
    ),
    (GOOD, ('0' * 64,), 'its sha256 is [0-9a-f]{64}, not 0{64}'),
    (b'<html>Please log in</html>', (), "it is a text, '<html>Please log in"),
  ],
)
def test_keeps_nothing_of_a_bad_download(
  serve, add, tmp_path, body, sha256, reason
):
  url = serve({'/a.npz': body}) + '/a.npz'
  add(url, sha256=sha256)
  with pytest.raises(ValueError, match=f'(?s){url}: .*{reason}') as error:
    public.fetch('tiny', tmp_path)
  assert f'curl -fL -o {tmp_path}/tiny.npz {url}' in str(error.value)
  assert found_in(tmp_path) == []


def test_checks_a_known_sha256(serve, add, tmp_path):
  digest = hashlib.sha256(GOOD).hexdigest()
  add(serve({'/a.npz': GOOD}) + '/a.npz', sha256=(digest,))
  path = public.fetch('tiny', tmp_path)
  path.write_bytes(npz_bytes(2.0))
  path.with_name('tiny.npz.sha256').unlink()
  with pytest.raises(ValueError, match=f'has changed: .*, not {digest}'):
    public.fetch('tiny', tmp_path)


def test_says_what_to_do_without_a_network(add, tmp_path, monkeypatch):
  monkeypatch.setenv('no_proxy', '*')
  with socket.socket() as unused:  # bound, but nobody listens
    unused.bind(('127.0.0.1', 0))
    url = f'http://127.0.0.1:{unused.getsockname()[1]}/a.npz'
    add(url)
    start = time.monotonic()
    with pytest.raises(ValueError, match='could not be downloaded') as error:
      public.fetch('tiny', tmp_path)
  assert time.monotonic() - start < 5
  assert f'\n  {url}: ' in str(error.value)
  assert 'Connection refused' in str(error.value)


def test_names_the_commands_of_each_source(tmp_path, monkeypatch):
  def refuse(request, timeout):
    raise OSError(f'no network within {timeout} s')

  monkeypatch.setattr('urllib.request.urlopen', refuse)
  with pytest.raises(ValueError, match='at exactly this path') as error:
    public.fetch('vit_l16_i21k_i1k_224', tmp_path)
  lines = [line.strip() for line in str(error.value).splitlines()]
  npz = tmp_path / 'vit_l16_i21k_i1k_224.npz'
  bucket = 'vit_models/imagenet21k{}imagenet2012/ViT-L_16-224.npz'
  url = f'https://storage.googleapis.com/{bucket.format("%2B")}'
  assert f'{url}: no network within 20 s' in lines
  assert f'curl -fL -o {npz} {url}' in lines
  assert f'gsutil cp gs://{bucket.format("+")} {npz}' in lines
  assert (
    'huggingface-cli download google/vit-large-patch16-224 model.safetensors '
    f'--revision refs/pr/2 --local-dir {tmp_path} && '
    f'mv {tmp_path}/model.safetensors {npz.with_suffix(".safetensors")}'
  ) in lines


def test_takes_a_file_that_was_put_there(add, tmp_path):
  add('http://nowhere.invalid/a.npz')
  path = tmp_path / 'tiny.npz'
  path.write_bytes(GOOD)
  assert public.fetch('tiny', tmp_path) == path
  assert found_in(tmp_path) == ['tiny.npz', 'tiny.npz.sha256']


def test_notices_a_changed_file(serve, add, tmp_path):
  add(serve({'/a.npz': GOOD}) + '/a.npz')
  path = public.fetch('tiny', tmp_path)
  path.write_bytes(GOOD[:-1])
  with pytest.raises(
    ValueError, match=r'has changed: .*Delete it and tiny\.np'
  ):
    public.fetch('tiny', tmp_path)


def test_needs_a_cache_it_can_write(add, tmp_path):
  add('http://nowhere.invalid/a.npz')
  (tmp_path / 'file').touch()
  with pytest.raises(ValueError, match='file/cache cannot be made .*VIT_JAX_C'):
    public.fetch('tiny', tmp_path / 'file' / 'cache')


def test_shows_progress_on_a_terminal(serve, add, tmp_path, monkeypatch):
  class Terminal(io.StringIO):
    def isatty(self):
      return True

  terminal = Terminal()
  monkeypatch.setattr('sys.stderr', terminal)
  add(serve({'/a.npz': GOOD}) + '/a.npz')
  public.fetch('tiny', tmp_path)
  assert terminal.getvalue() == '\ra.npz: 0 of 0 MB\n'


def test_suggests_a_name(tmp_path):
  with pytest.raises(ValueError, match=r"weights='vit_b16_i21' .*'vit_b16_i2"):
    public.fetch('vit_b16_i21', tmp_path)


def test_catalogue_is_consistent():
  hosts = ('https://storage.googleapis.com/', 'https://huggingface.co/')
  assert len(public.WEIGHTS) > 90
  for name, row in public.WEIGHTS.items():
    assert name == name.lower() and name.replace('_', '').isalnum()
    assert row.description
    assert row.labels in ('imagenet2012', 'imagenet21k', None)
    assert row.image_size in (160, 224, 384, 448, 480)
    suffixes = [url.rpartition('.')[2] for url in row.sources]
    assert suffixes in (['npz'], ['safetensors'], ['npz', 'safetensors'])
    assert all(url.startswith(hosts) for url in row.sources)
    assert not any(c in url for url in row.sources for c in ' +')
  urls = [url for row in public.WEIGHTS.values() for url in row.sources]
  assert len(urls) == len(set(urls))


def test_table_is_aligned(add, tmp_path):
  add('http://a.org/a.npz', 'http://b.org/a.safetensors')
  (tmp_path / 'vit_b16_i21k.npz').touch()
  lines = public.table(tmp_path).splitlines()
  assert len(lines) == len(public.WEIGHTS) + 1
  column = lines[0].index('cached')
  cached = {line.split()[0]: line[column:] for line in lines[1:]}
  assert cached.pop('vit_b16_i21k') == 'yes'
  assert set(cached.values()) == {'no'}
  assert ' '.join(lines[-1].split()) == 'tiny a tiny one 8 a.org, b.org no'
