"""A line between the processes of a run: roll call, comparisons, bad news.

Process 0 runs the hub, a thread; every process, it too, is a `Member`. They
exchange JSON, one object a line, over TCP, and need nothing of JAX: they work
before it starts, while it waits for another process, and when it has failed.
A connection that ends without a goodbye is a process that died; one that is
silent too long is a machine that did.
"""

import contextlib
import json
import queue
import selectors
import socket
import threading
import time

_SEND_SECONDS = 5
_MAX_BYTES = 2**26  # of a message: the values of all processes


class Member:
  """A process's end of the line.

  Attributes:
    number: which process this is.
  """

  def __init__(
    self, addresses, number, num, host, start_timeout, lost_timeout, on_stop
  ):
    """Connects to the hub.

    Args:
      addresses: (host, port) pairs of the hub; the first that answers is used.
      number: which process this is.
      num: how many there are.
      host: this machine's name, for the others' messages.
      start_timeout: how many seconds to try.
      lost_timeout: seconds of silence after which the hub is lost.
      on_stop: function of a text, called in a thread: why all have to stop.

    Raises:
      ConnectionError: if nobody answers.
    """
    self.number = number
    self._lost_timeout, self._on_stop = lost_timeout, on_stop
    self._hub = 'process 0' if number else 'process 0 (this one)'
    self._answers, self._left = {}, threading.Event()
    self._goodbye, self._reason = threading.Event(), None
    self._lock = threading.Lock()
    self._connection = _connect(addresses, start_timeout)
    self._connection.settimeout(_SEND_SECONDS)
    self._send(kind='hello', number=number, num=num, host=host)
    self._closed = threading.Event()
    self._thread = threading.Thread(
      target=self._listen, name='member', daemon=True
    )
    self._thread.start()

  def gather(self, name, value, timeout):
    """Returns the values of all processes, a list, once all have called it.

    Args:
      name: of this gathering, the same everywhere.
      value: anything that is JSON.
      timeout: seconds for all to come.

    Raises:
      TimeoutError: naming those who did not come.
      ConnectionError: if the processes have to stop; see `on_stop`.
    """
    answers = self._answers.setdefault(name, queue.SimpleQueue())
    if self._reason:
      raise ConnectionError(self._reason)
    self._send(kind='gather', name=name, value=value, timeout=timeout)
    try:
      answer = answers.get(timeout=timeout + self._lost_timeout)
    except queue.Empty:
      answer = {'kind': 'late', 'missing': [self._hub.removeprefix('process ')]}
    if answer['kind'] == 'stop':
      raise ConnectionError(answer['text'])
    if answer['kind'] == 'late':
      missing = answer['missing']
      who = 'Process' if len(missing) == 1 else 'Processes'
      raise TimeoutError(
        f'{who} {", ".join(missing)} did not come to {name!r} within '
        f'{timeout:g} s.'
      )
    values = {n: value for value, who in answer['groups'] for n in who}
    return [values[number] for number in sorted(values)]

  def fail(self, text):
    """Tells the others that this process stops, and why."""
    self._left.set()
    self._send(kind='failed', text=text)

  def leave(self, timeout):
    """Says goodbye: from now on this process may end, and others too."""
    self._left.set()
    self._send(kind='bye')
    self._goodbye.wait(timeout)
    self.close()

  def close(self):
    """Ends the line; the others take it for the end of this process."""
    self._left.set()
    self._closed.set()
    self._thread.join()

  def _send(self, **message):
    with self._lock, contextlib.suppress(OSError):  # its end will be read
      self._connection.sendall(json.dumps(message).encode() + b'\n')

  def _listen(self):
    with self._connection, selectors.DefaultSelector() as selector:
      selector.register(self._connection, selectors.EVENT_READ)
      self._follow(selector)

  def _follow(self, selector):
    buffer, heard = b'', time.monotonic()
    interval = min(self._lost_timeout / 5, 0.5)
    woken = beaten = heard
    while not self._closed.is_set():
      data = None
      if selector.select(interval):
        try:
          data = self._connection.recv(2**16)
        except TimeoutError:
          pass
        except OSError:
          data = b''
      now = time.monotonic()
      if data or now - woken > self._lost_timeout / 2:
        heard = now
      woken = now
      if data == b'':
        return self._stop('ended without a word (killed, or out of memory)')
      if now - heard > self._lost_timeout:
        seconds = f'{self._lost_timeout:g} s'
        return self._stop(f'has not been heard of for {seconds}')
      *lines, buffer = (buffer + (data or b'')).split(b'\n')
      try:
        for line in lines:
          self._handle(json.loads(line))
      except Exception:  # half a message; without this thread, no news
        return self._stop('sent what is no message')
      if len(buffer) > _MAX_BYTES:
        return self._stop('sent a message without end')
      if now - beaten > interval:
        beaten = now
        self._send(kind='beat')

  def _handle(self, message):
    if message['kind'] in ('gathered', 'late'):
      if message['name'] == 'start' and message['kind'] == 'gathered':
        self._hub = f'process 0 ({message["groups"][0][0]["host"]})'
      self._answers[message['name']].put(message)
    elif message['kind'] == 'bye':
      self._goodbye.set()
    elif message['kind'] == 'stop':
      self._tell(message['text'])

  def _stop(self, how):
    self._goodbye.set()
    self._tell(f'{self._hub} {how}.')

  def _tell(self, text):
    if not self._left.is_set():
      self._left.set()
      self._on_stop(text)
      # Only now: it may end the process, and say why better than an error.
      self._reason = text
      for answers in list(self._answers.values()):
        answers.put({'kind': 'stop', 'text': text})


def _connect(addresses, timeout):
  deadline = time.monotonic() + timeout
  while True:
    for address in addresses:
      try:
        return socket.create_connection(
          address, timeout=max(0.1, min(5, deadline - time.monotonic()))
        )
      except OSError as error:
        reason = error.strerror or str(error)
    if time.monotonic() > deadline:
      names = ' or '.join(f'{host}:{port}' for host, port in addresses)
      raise ConnectionError(
        f'process 0 does not answer at {names} ({reason}) after {timeout:g} s.'
      )
    time.sleep(0.2)
