import jax
import jax.numpy as jnp
import pytest
from etils import epath

from vit_jax import profiling


def test_traces_the_steps_it_is_told_to(tmp_path):
  profiler = profiling.Profiler(epath.Path(tmp_path), start=2, num_steps=2)
  x, said = jnp.zeros(()), []
  for number in range(6):

    def step(x):
      return x + 1

    step.__name__ = f'step{number}'
    said.append(profiler.before_step(x))
    x = jax.jit(step)(x)
  assert [len(lines) for lines in said] == [0, 0, 0, 0, 1, 0]
  assert said[4][0].startswith('Traced 2 steps')
  (trace,) = (tmp_path / 'tensorboard/plugins/profile').glob('*/*.xplane.pb')
  data = jax.profiler.ProfileData.from_file(str(trace))
  names = {e.name for p in data.planes for li in p.lines for e in li.events}
  ran = {name for name in names if name.startswith('PjitFunction(step')}
  assert ran == {'PjitFunction(step2)', 'PjitFunction(step3)'}


def test_a_run_that_ends_first_writes_what_it_has(tmp_path):
  profiler = profiling.Profiler(epath.Path(tmp_path), start=0, num_steps=100)
  assert profiler.before_step(jnp.zeros(())) == []
  assert 'shows them under Profile' in profiler.end()[0]
  assert list((tmp_path / 'tensorboard/plugins/profile').glob('*/*.xplane.pb'))
  assert profiler.end() == []


def test_a_trace_that_cannot_be_written_is_told(tmp_path):
  (tmp_path / 'tensorboard').write_text('a file is in the way')
  profiler = profiling.Profiler(epath.Path(tmp_path), start=0, num_steps=1)
  profiler.before_step(None)
  (line,) = profiler.before_step(None)
  assert line.startswith('WARNING: the trace of the steps is lost: ')


def test_an_error_ends_the_trace(tmp_path):
  with (
    pytest.raises(KeyError),
    profiling.Profiler(epath.Path(tmp_path), start=0, num_steps=9) as profiler,
  ):
    profiler.before_step(None)
    raise KeyError
  assert list((tmp_path / 'tensorboard/plugins/profile').glob('*/*.xplane.pb'))
  with pytest.raises(RuntimeError):  # none is running
    jax.profiler.stop_trace()


def test_a_run_that_is_too_short_says_so(tmp_path):
  profiler = profiling.Profiler(epath.Path(tmp_path), start=5, num_steps=9)
  profiler.before_step(None)
  (line,) = profiler.end()
  assert 'this process made 1, and config.profile.start=5' in line


def test_no_trace_unless_asked(tmp_path):
  profiler = profiling.Profiler(epath.Path(tmp_path))
  assert [profiler.before_step(None) for _ in range(20)] == [[]] * 20
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('name', ['start', 'num_steps'])
def test_mistakes_are_explained(tmp_path, name):
  with pytest.raises(ValueError, match=f'config.profile.{name}=-1 is no numb'):
    profiling.Profiler(epath.Path(tmp_path), **{name: -1})
