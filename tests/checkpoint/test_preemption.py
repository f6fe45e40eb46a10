import os
import signal

import pytest

from vit_jax.checkpoint import preemption


def send(name):
  os.kill(os.getpid(), getattr(signal, name))


@pytest.mark.parametrize('name', ['SIGTERM', 'SIGINT'])
def test_the_first_signal_is_remembered(name, capfd):
  with preemption.Notice() as notice:
    assert not notice.reached()
    send(name)
    assert notice.name == name
    assert notice.reached()
  assert f'{name}: saving after the step' in capfd.readouterr().err


@pytest.fixture(autouse=True)
def ctrl_c():
  """Has Ctrl-C raise, also where the tests run in the background."""
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, before)


def test_a_second_ctrl_c_is_not_held_up():
  with preemption.Notice() as notice:
    send('SIGINT')
    with pytest.raises(KeyboardInterrupt):
      send('SIGINT')
    assert notice.name == 'SIGINT'


def test_further_sigterms_do_not_end_the_save(capfd):
  """Slurm sends several."""
  with preemption.Notice() as notice:
    for _ in range(3):
      send('SIGTERM')
    assert notice.name == 'SIGTERM'
    # A Ctrl-C among them does not, either; the second does.
    send('SIGINT')
    send('SIGTERM')
    assert notice.name == 'SIGTERM'
    with pytest.raises(KeyboardInterrupt):
      send('SIGINT')
  assert capfd.readouterr().err.count('saving after the step') == 1


def test_processes_agree_on_calls_not_on_steps(monkeypatch):
  """The number must grow at each, also between evaluations' batches."""
  asked = []
  monkeypatch.setattr(preemption.jax, 'process_count', lambda: 2)
  monkeypatch.setattr(
    preemption.multihost_utils,
    'reached_preemption_sync_point',
    lambda number: asked.append(number) or number == 3,
  )
  notice = preemption.Notice()
  assert [notice.reached() for _ in range(3)] == [False, False, True]
  assert asked == [1, 2, 3]


def test_handlers_are_put_back():
  outside = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
  with preemption.Notice():
    assert signal.getsignal(signal.SIGTERM) != outside[0]
  inside = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
  assert inside == outside


def test_one_process_agrees_with_itself():
  assert preemption.exchange(3) == [3]
  assert preemption.exchange_text('damaged') == ['damaged']
