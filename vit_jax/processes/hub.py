"""The middle of the line between the processes of a run; see `channel`."""

import contextlib
import json
import selectors
import threading
import time

_MAX_BYTES = 2**24  # of a message; more is no member of ours
_SEND_SECONDS = 5


class Hub:
  """Passes messages among the members, and says when one is lost."""

  def __init__(self, server, num_members, lost_timeout):
    """Starts to listen.

    Args:
      server: a listening socket; the hub closes it.
      num_members: how many there will be.
      lost_timeout: seconds of silence after which a member is lost.
    """
    self._num, self._lost_timeout = num_members, lost_timeout
    self._server = server
    self._peers = []  # connections, of members or not yet
    self._gatherings = {}  # name -> (when it is late, {member: value})
    self._begun = self._over = False
    self._closed = threading.Event()
    self._selector = selectors.DefaultSelector()
    self._selector.register(server, selectors.EVENT_READ)
    self._thread = threading.Thread(target=self._run, name='hub', daemon=True)
    self._thread.start()

  def close(self, timeout):
    """Ends, at best once all members have said goodbye."""
    self._over = True
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline and any(
      not peer.left for peer in self._members()
    ):
      time.sleep(0.02)
    self._closed.set()
    self._thread.join()

  def _run(self):
    try:
      self._pass_on()
    finally:
      self._selector.close()
      for connection in (self._server, *(p.connection for p in self._peers)):
        connection.close()

  def _pass_on(self):
    tick = min(self._lost_timeout / 5, 0.5)
    beaten = woken = time.monotonic()
    while not self._closed.is_set():
      for key, _ in self._selector.select(tick):
        if key.data is None:
          self._accept()
        else:
          self._receive(key.data)
      now = time.monotonic()
      if now - woken > self._lost_timeout / 2:
        # It was this process that slept; the others could not be heard.
        for peer in self._peers:
          peer.heard = now
      woken = now
      for peer in self._members():
        if now - peer.heard > self._lost_timeout:
          seconds = f'{self._lost_timeout:g} s'
          self._stop(f'process {peer} has not been heard of for {seconds}.')
          self._lose(peer, '')
      if now - beaten > tick:
        beaten = now
        self._send(self._members(), kind='beat')
      self._check_late(now)

  def _members(self):
    return [peer for peer in self._peers if peer.number is not None]

  def _accept(self):
    connection, _ = self._server.accept()
    connection.settimeout(_SEND_SECONDS)
    peer = _Peer(connection)
    self._peers.append(peer)
    self._selector.register(connection, selectors.EVENT_READ, peer)

  def _receive(self, peer):
    try:
      data = peer.connection.recv(2**16)
    except TimeoutError:
      return
    except OSError:
      data = b''
    peer.heard = time.monotonic()
    peer.buffer += data
    *lines, peer.buffer = peer.buffer.split(b'\n')
    try:
      for line in lines:
        message = json.loads(line)
        if message['kind'] == 'hello':
          self._admit(peer, message)
        elif peer.number is not None:
          self._handle(peer, message)
    except Exception:  # a stranger, or half a message; the hub must go on
      return self._lose(peer, 'sent what is no message')
    if len(peer.buffer) > _MAX_BYTES:
      return self._lose(peer, 'sent a message without end')
    if not data:
      self._lose(peer, 'ended without a word (killed, or out of memory)')

  def _admit(self, peer, message):
    number, num = message['number'], message['num']
    peer.host = message['host']
    who = f'a process on {peer.host}'
    twin = next((p for p in self._members() if p.number == number), None)
    if self._begun:
      self._send(
        [peer],
        kind='stop',
        text=f'the run that process {number} ({peer.host}) wants to join has '
        'begun without it; start all processes anew, or give another port.',
      )
    elif num != self._num or not 0 <= number < num:
      self._stop(
        f'{who} was started with --num_processes={num} --process_id={number}, '
        f'but process 0 with --num_processes={self._num}; give all the same '
        f'number, and each its own id from 0 to {self._num - 1}.'
      )
    elif twin:
      self._stop(
        f'--process_id={number} was given twice, to {who} and one on '
        f'{twin.host}; give each its own id from 0 to {self._num - 1}.'
      )
    else:
      peer.number = number

  def _handle(self, peer, message):
    if message['kind'] == 'gather':
      name, seconds = message['name'], message['timeout']
      late = time.monotonic() + seconds
      _, values = self._gatherings.setdefault(name, (late, {}))
      values[peer.number] = message['value']
      if len(values) == self._num:
        del self._gatherings[name]
        self._begun = True
        groups = {}  # equal values are sent once
        for number, value in sorted(values.items()):
          groups.setdefault(json.dumps(value), []).append(number)
        groups = [[json.loads(value), who] for value, who in groups.items()]
        self._send(self._members(), kind='gathered', name=name, groups=groups)
    elif message['kind'] == 'failed':
      self._stop(f'process {peer} stopped: {message["text"]}', peer)
    elif message['kind'] == 'bye':
      peer.left = True
      self._send([peer], kind='bye')

  def _check_late(self, now):
    for name, (late, values) in list(self._gatherings.items()):
      if now > late:
        del self._gatherings[name]
        there = [peer for peer in self._members() if peer.number in values]
        known = {peer.number: str(peer) for peer in self._members()}
        missing = [
          known.get(number, str(number))
          for number in range(self._num)
          if number not in values
        ]
        self._send(there, kind='late', name=name, missing=missing)

  def _lose(self, peer, how):
    if peer not in self._peers:
      return
    self._peers.remove(peer)
    self._selector.unregister(peer.connection)
    peer.connection.close()
    if peer.number is not None and not peer.left:
      self._stop(f'process {peer} {how}.')

  def _stop(self, text, *but):
    """Tells all others to stop, and why. The first reason is the cause."""
    if not self._over:
      self._over = True
      others = [peer for peer in self._peers if peer not in but]
      self._send(others, kind='stop', text=text)

  def _send(self, peers, **message):
    line = json.dumps(message).encode() + b'\n'
    for peer in peers:
      with contextlib.suppress(OSError):  # its end will be read
        peer.connection.sendall(line)


class _Peer:
  """The hub's end of a connection."""

  def __init__(self, connection):
    self.connection, self.heard = connection, time.monotonic()
    self.number, self.host, self.buffer, self.left = None, '', b'', False

  def __str__(self):
    return f'{self.number} ({self.host})'
