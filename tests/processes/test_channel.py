"""The line between processes, with threads in their place."""

import contextlib
import json
import socket
import threading
import time

import pytest

from vit_jax.processes import channel, hub


@contextlib.contextmanager
def line(num, lost_timeout=5.0):
  """Yields (address, a function that makes members, what they were told)."""
  server = socket.create_server(('127.0.0.1', 0))
  address = server.getsockname()
  center = hub.Hub(server, num, lost_timeout)
  told, members = {}, []

  def join(number, num=num):
    member = channel.Member(
      [address], number, num, f'host{number}', 5, lost_timeout,
      lambda text: told.setdefault(number, []).append(text),
    )  # fmt: skip
    members.append(member)
    return member

  yield address, join, told
  for member in members:
    member.close()
  center.close(timeout=0)


def together(*calls):
  """Returns what the calls, all at once, return or raise."""
  results = [None] * len(calls)

  def run(i, call):
    try:
      results[i] = call()
    except Exception as error:
      results[i] = error

  threads = [
    threading.Thread(target=run, args=pair) for pair in enumerate(calls)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(20)
    assert not thread.is_alive()
  return results


def start(members, seconds=5):
  return together(
    *(
      lambda i=i, m=m: m.gather('start', {'host': f'host{i}'}, seconds)
      for i, m in enumerate(members)
    )
  )


def wait_for(condition):
  deadline = time.monotonic() + 10
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.01)


def test_everyone_gets_everyones_values_in_order():
  with line(3) as (_, join, told):
    members = [join(i) for i in (2, 0, 1)]
    members = members[1:] + members[:1]
    assert start(members) == [[{'host': f'host{i}'} for i in range(3)]] * 3
    for _ in range(2):  # a name may be used again
      values = together(
        *(
          lambda i=i, m=m: m.gather('x', [i % 2, None], 5)
          for i, m in enumerate(members)
        )
      )
      assert values == [[[0, None], [1, None], [0, None]]] * 3
    assert not told


def test_who_does_not_come_is_named():
  with line(3) as (_, join, _):
    members = [join(i) for i in range(2)]
    results = start(members, seconds=0.3)
  for error in results:
    assert isinstance(error, TimeoutError)
    assert str(error) == "Process 2 did not come to 'start' within 0.3 s."

  with line(2) as (_, join, _):
    members = [join(i) for i in range(2)]
    start(members)
    with pytest.raises(TimeoutError) as error:
      members[0].gather('the end of epoch 3', None, 0.3)
  assert str(error.value) == (
    "Process 1 (host1) did not come to 'the end of epoch 3' within 0.3 s."
  )


def test_a_process_that_dies_stops_all_others():
  with line(3) as (_, join, told):
    members = [join(i) for i in range(3)]
    start(members)
    members[1].close()  # as the system does
    wait_for(lambda: {0, 2} <= set(told))
    expected = (
      'process 1 (host1) ended without a word (killed, or out of memory).'
    )
    assert told[0] == told[2] == [expected]


def test_a_process_that_waits_is_told_too():
  with line(2) as (_, join, told):
    members = [join(i) for i in range(2)]
    start(members)
    error, _ = together(
      lambda: members[0].gather('never', None, 60),
      lambda: members[1].fail('ValueError: 3 images are broken.'),
    )
    assert isinstance(error, ConnectionError)
    assert str(error) == (
      'process 1 (host1) stopped: ValueError: 3 images are broken.'
    )
    time.sleep(0.1)
    assert 1 not in told  # it knows


def silent_member(address, number, num):
  """Returns the socket of a member that says hello, and nothing more."""
  connection = socket.create_connection(address)
  hello = dict(kind='hello', number=number, num=num, host='frozen')
  mine = dict(kind='gather', name='start', value={'host': 'frozen'}, timeout=9)
  for message in (hello, mine):
    connection.sendall(json.dumps(message).encode() + b'\n')
  return connection


def test_silence_is_noticed():
  with line(2, lost_timeout=1) as (address, join, told):
    member = join(0)
    with silent_member(address, 1, 2):
      member.gather('start', {'host': 'host0'}, 5)
      begin = time.monotonic()
      wait_for(lambda: 0 in told)
      assert 0.8 < time.monotonic() - begin < 3
  assert told[0] == ['process 1 (frozen) has not been heard of for 1 s.']


def test_a_silent_hub_is_noticed():
  with socket.create_server(('127.0.0.1', 0)) as server:
    told = []
    address = server.getsockname()
    member = channel.Member([address], 1, 2, 'host1', 5, 0.5, told.append)
    connection, _ = server.accept()
    wait_for(lambda: told)
    assert told == ['process 0 has not been heard of for 0.5 s.']
    connection.close()
    member.close()


@contextlib.contextmanager
def fake_hub(on_stop):
  """Yields a member of a hub, and the hub's end of its connection."""
  with socket.create_server(('127.0.0.1', 0)) as server:
    member = channel.Member(
      [server.getsockname()], 1, 2, 'host1', 5, 5, on_stop
    )
    connection, _ = server.accept()
    with connection:
      yield member, connection
    member.close()


@pytest.mark.parametrize(
  ('sent', 'how'),
  [
    (b'{"kind": "gath{"kind": "beat"}\n', 'sent what is no message'),
    (b'{"kind": "gathered", "name": "never asked"}\n',
     'sent what is no message'),
    (b'[' * 10**5 + b'\n', 'sent what is no message'),
    (b'x' * 2000, 'sent a message without end'),
  ],
)  # fmt: skip
def test_what_is_no_message_breaks_the_line(monkeypatch, sent, how):
  monkeypatch.setattr(channel, '_MAX_BYTES', 10**6 if b'\n' in sent else 1000)
  told = []
  with fake_hub(told.append) as (member, connection):
    connection.sendall(sent)
    wait_for(lambda: told)
    with pytest.raises(ConnectionError, match=how):
      member.gather('x', None, 5)
  assert told == [f'process 0 {how}.']


@pytest.mark.parametrize(
  ('sent', 'how'),
  [
    (b'{"kind": "gath{"kind": "beat"}\n', 'sent what is no message'),
    (b'[' * 10**5 + b'\n', 'sent what is no message'),
    (b'x' * 2000, 'sent a message without end'),
  ],
)
def test_the_hub_goes_on_after_what_is_no_message(monkeypatch, sent, how):
  monkeypatch.setattr(hub, '_MAX_BYTES', 10**6 if b'\n' in sent else 1000)
  with line(3) as (address, join, told):
    members = [join(i) for i in (0, 2)]
    with silent_member(address, 1, 3) as broken:
      start(members)
      broken.sendall(sent)
      wait_for(lambda: {0, 2} <= set(told))
    assert told[0] == told[2] == [f'process 1 (frozen) {how}.']


def test_the_news_come_before_an_error():
  told, go_on = [], threading.Event()

  def on_stop(text):
    told.append(text)
    go_on.wait(10)

  with fake_hub(on_stop) as (member, connection):
    connection.sendall(b'{"kind": "stop", "text": "Why."}\n')
    wait_for(lambda: told)
    threading.Timer(0.5, go_on.set).start()
    with pytest.raises(ConnectionError, match=r'Why\.'):
      member.gather('x', None, 5)
    assert go_on.is_set()


@pytest.mark.parametrize(
  ('number', 'num', 'message'),
  [
    (1, 3, 'a process on host1 was started with --num_processes=3 --process_id'
     '=1, but process 0 with --num_processes=2; give all the same number, and '
     'each its own id from 0 to 1.'),
    (0, 2, '--process_id=0 was given twice, to a process on host0 and one on '
     'host0; give each its own id from 0 to 1.'),
  ],
)  # fmt: skip
def test_wrong_numbers_stop_the_start(number, num, message):
  with line(2) as (_, join, told):
    first = join(0)
    error, _ = together(
      lambda: first.gather('start', None, 30),
      lambda: join(number, num).gather('start', None, 30),
    )
    assert str(error) == message
    wait_for(lambda: number in told)
    assert told[number][0] == message


def test_a_late_comer_and_a_stranger_do_no_harm():
  with line(2) as (address, join, told):
    members = [join(i) for i in range(2)]
    start(members)
    with pytest.raises(ConnectionError, match='has begun without it'):
      join(1).gather('start', None, 5)
    told.clear()
    for text in (b'GET / HTTP/1.1\r\n\r\n', b'{"kind": "bye"}\n', b'[]\n', b''):
      with socket.create_connection(address) as stranger:
        stranger.sendall(text)
    values = together(*(lambda m=m: m.gather('x', 1, 5) for m in members))
    assert values == [[1, 1]] * 2
    assert not told


def test_after_goodbye_nobody_is_missed():
  with line(2) as (_, join, told):
    members = [join(i) for i in range(2)]
    start(members)
    members[1].leave(timeout=5)
    time.sleep(0.3)
    assert not told


def test_nobody_answers():
  with socket.create_server(('127.0.0.1', 0)) as server:
    address = server.getsockname()
  begin = time.monotonic()
  with pytest.raises(ConnectionError) as error:
    channel.Member([address], 1, 2, 'host1', 0.5, 5, print)
  assert time.monotonic() - begin < 3
  assert f'process 0 does not answer at 127.0.0.1:{address[1]} (' in str(
    error.value
  )
  assert 'after 0.5 s.' in str(error.value)
