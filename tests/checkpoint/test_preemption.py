import os
import signal

import pytest

from vit_jax.checkpoint import preemption


@pytest.mark.parametrize('name', ['SIGTERM', 'SIGINT'])
def test_the_first_signal_is_remembered_the_second_is_not_held_up(name, capfd):
  number = getattr(signal, name)
  outside = signal.getsignal(number)
  with preemption.Notice() as notice:
    assert not notice.reached(1)
    os.kill(os.getpid(), number)
    assert notice.name == name
    assert notice.reached(1)
    assert signal.getsignal(number) is outside
  assert f'{name}: saving after the step' in capfd.readouterr().err


def test_handlers_are_put_back():
  outside = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
  with preemption.Notice():
    assert signal.getsignal(signal.SIGTERM) != outside[0]
  inside = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
  assert inside == outside


def test_one_process_agrees_with_itself():
  assert preemption.exchange(3) == [3]
  assert preemption.exchange_text('damaged') == ['damaged']
