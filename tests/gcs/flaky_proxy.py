"""A proxy before an object store, which fails as it is told to.

Failures are counted, not drawn, so that a test meets the same ones each time.

It also adds what the emulator lacks and TensorStore relies on: the generation
of an object that is read, and requests that hold for one generation only.
"""

import contextlib
import dataclasses
import http.client
import http.server
import json
import re
import socket
import threading
import time
import urllib.parse


@dataclasses.dataclass
class Fault:
  """What to do instead of passing a request on.

  Attributes:
    kind: 'drop' (close the connection), 'cut' (half of the answer, then close),
      'slow' (pass it on after `seconds`), 'trickle' (the answer in pieces, over
      `seconds`), 'silent' (no answer until the client hangs up), or a status
      such as 503.
    method: regex of the HTTP methods it is for.
    path: regex that is searched in the path.
    every: of the requests that match, one in so many.
    times: how often in all.
    seconds: of 'slow' and 'trickle'.
    count: how many requests have matched.
    done: how many it has met.
  """

  kind: str | int
  method: str = '.*'
  path: str = ''
  every: int = 1
  times: int = 10**9
  seconds: float = 0.5
  count: int = 0
  done: int = 0

  def meets(self, method, path):
    if not re.fullmatch(self.method, method) or not re.search(self.path, path):
      return False
    self.count += 1
    if self.count % self.every or self.done >= self.times:
      return False
    self.done += 1
    return True


_MESSAGES = {
  401: 'Anonymous caller does not have storage.objects.list access to the '
  'Google Cloud Storage bucket.',
  403: 'someone@example.com does not have storage.objects.list access.',
  429: 'The rate limit for object mutation was exceeded.',
  503: 'We encountered an internal error. Please try again.',
}


_PIECES = 6  # of what trickles
_OWN_HEADERS = ('content-length', 'connection', 'date', 'server')


def _refusal(path, method, generation):
  """Returns the status if the request is for another generation, else None."""
  query = urllib.parse.parse_qs(urllib.parse.urlparse(path).query)
  for name in ('ifGenerationMatch', 'ifGenerationNotMatch'):
    if name in query:
      is_same = int(query[name][0]) == generation
      if is_same != (name == 'ifGenerationMatch'):
        is_304 = method == 'GET' and name == 'ifGenerationNotMatch'
        return 304 if is_304 else 412
  return None


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'
  # Else the head waits for the body's acknowledgement, 40 ms a request.
  disable_nagle_algorithm = True
  wbufsize = -1

  def _serve(self):
    body = self.rfile.read(int(self.headers.get('Content-Length', 0)))
    server = self.server
    with server.lock:
      server.requests.append((self.command, self.path))
      fault = next(
        (f for f in server.faults if f.meets(self.command, self.path)), None
      )
    kind = fault and fault.kind
    if kind == 'drop':
      self._close()
      return
    if kind == 'silent':
      self.connection.settimeout(100)
      with contextlib.suppress(OSError):
        self.connection.recv(1)
      self._close()
      return
    if isinstance(kind, int):
      text = json.dumps({'error': {'code': kind, 'message': _MESSAGES[kind]}})
      headers = [('Content-Type', 'application/json')]
      self._answer(kind, headers, text.encode())
      return
    if kind == 'slow':
      time.sleep(fault.seconds)
    # One at a time, so that a condition holds until the request is done.
    with server.store_lock:
      generation = self._generation()
      status = _refusal(self.path, self.command, generation)
      if status:
        self._answer(status, [], b'')
        return
      status, headers, content = self._ask(
        self.command, self.path, body, dict(self.headers.items())
      )
    if generation:
      headers.append(('x-goog-generation', str(generation)))
    pause = fault.seconds / _PIECES if kind == 'trickle' else 0
    self._answer(status, headers, content, kind == 'cut', pause)

  def _ask(self, method, path, body=None, headers=None):
    """Returns the store's answer: status, headers and content."""
    store = http.client.HTTPConnection(
      '127.0.0.1', self.server.store, timeout=60
    )
    try:
      store.request(method, path, body, headers or {})
      answer = store.getresponse()
      headers = [
        (name, value)
        for name, value in answer.getheaders()
        if name.lower() not in _OWN_HEADERS
      ]
      return answer.status, headers, answer.read()
    finally:
      store.close()

  def _generation(self):
    """Returns that of the object that is asked for; 0 if there is none."""
    url = urllib.parse.urlparse(self.path)
    query = urllib.parse.parse_qs(url.query)
    if query.get('alt') != ['media'] and 'ifGeneration' not in url.query:
      return 0
    path = url.path.replace('/upload/', '/').replace('/download/', '/')
    if 'name' in query:
      path += '/' + urllib.parse.quote(query['name'][0], safe='')
    status, _, content = self._ask('GET', path)
    return int(json.loads(content)['generation']) if status == 200 else 0

  do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = _serve  # noqa: N815

  def _answer(self, status, headers, content, cut=False, pause=0):
    self.send_response(status)
    for name, value in headers:
      self.send_header(name, value)
    self.send_header('Content-Length', str(len(content)))
    self.end_headers()
    if self.command == 'HEAD':
      return
    if cut:
      content = content[: len(content) // 2]
    size = -(-len(content) // _PIECES) if pause else len(content)
    for start in range(0, len(content), size or 1):
      time.sleep(pause)
      self.wfile.write(content[start : start + size])
      self.wfile.flush()
    if cut:
      self._close()

  def _close(self):
    self.close_connection = True
    with contextlib.suppress(OSError):  # the client was quicker
      self.connection.shutdown(socket.SHUT_RDWR)

  def log_message(self, *args):
    pass


class _Server(http.server.ThreadingHTTPServer):
  daemon_threads = True

  def handle_error(self, *args):  # a client that was killed
    pass


class Proxy:
  """The proxy, on a free port; a context that ends it.

  Attributes:
    port: where it listens, on 127.0.0.1.
    faults: list of Fault, of which the first that meets a request counts.
    requests: list of (method, path) of all requests so far.
  """

  def __init__(self, store):
    """Starts it before the store on that port of 127.0.0.1."""
    self._server = _Server(('127.0.0.1', 0), _Handler)
    self._server.store, self._server.lock = store, threading.Lock()
    self._server.store_lock = threading.Lock()
    self.port = self._server.server_address[1]
    self.faults = self._server.faults = []
    self.requests = self._server.requests = []
    self._thread = threading.Thread(target=self._server.serve_forever)
    self._thread.start()

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    self._server.shutdown()
    self._server.server_close()
    self._thread.join()
