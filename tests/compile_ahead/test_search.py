"""The search, on machines whose memory follows a formula."""

from types import SimpleNamespace

import pytest

from vit_jax.compile_ahead import forecast, search


def machine(fixed, per_image, count=4, model=1, says=True):
  """Returns make(config) for shares of memory by the policy, and the calls."""
  calls = []

  def make(config):
    def train_memory():
      batch, remat = config.train.batch_size / count, config.model.remat
      calls.append((remat, batch))
      share = fixed + per_image[remat] * batch
      fits = share <= 1
      return {'fits': fits, 'hbm_share': share if fits or says else None}

    sizes = {'replica': 1, 'data': count // model, 'model': model}
    return SimpleNamespace(
      mesh=SimpleNamespace(size=count, shape=sizes), train_memory=train_memory
    )

  return make, calls


COSTS = {'none': 0.01, 'dots': 0.005, 'full': 0.001}


def test_the_cheapest_remat_and_the_largest_batch(tiny_config):
  tiny_config.train.batch_size = 4 * 128
  said = []
  make, calls = machine(0.1, COSTS)
  result = search.search(make, tiny_config, said.append)
  assert result['remat'] == 'dots'  # 0.1 + 0.64; without it, 1.38
  assert 180 - 8 <= result['batch_per_core'] <= 180
  assert calls[:2] == [('none', 128), ('dots', 128)]
  assert all(remat == 'dots' for remat, _ in calls[2:])
  assert len(calls) <= 7
  assert len(said) == len(calls) + 1
  assert (
    'remat dots  batch     512,      128 a core   74.0% of the memory  fits'
    in said
  )
  assert tiny_config.train.batch_size == 4 * 128  # the caller's is untouched


def test_all_tries_so_far_are_saved(tiny_config):
  tiny_config.train.batch_size = 4 * 128
  make, calls = machine(0.1, COSTS)
  saved = []
  result = search.search(
    make, tiny_config, lambda line: None, save=lambda r: saved.append(str(r))
  )
  assert len(saved) == len(calls)
  for number, text in enumerate(saved, 1):
    assert text == str({'tries': result['tries'][:number]})


def test_a_policy_that_barely_fits_is_not_cheap_enough(tiny_config):
  tiny_config.train.batch_size = 4 * 85
  make, _ = machine(0.1, COSTS)  # 0.95 without remat
  result = search.search(make, tiny_config, lambda line: None)
  assert result['remat'] == 'dots'


@pytest.mark.parametrize('batch', [1, 3, 2000])
def test_the_largest_batch_from_far_away(tiny_config, batch):
  tiny_config.train.batch_size = 4 * batch
  make, calls = machine(0.2, dict.fromkeys(COSTS, 0.01))
  result = search.search(make, tiny_config, lambda line: None)
  assert 75 <= result['batch_per_core'] <= 80
  assert len(calls) <= 12


def test_batches_divide_over_accumulation_steps(tiny_config):
  tiny_config.train.batch_size = 4 * 9
  tiny_config.step.accum_steps = 3
  make, calls = machine(0.1, dict.fromkeys(COSTS, 0.01))
  result = search.search(make, tiny_config, lambda line: None)
  assert result['batch_per_core'] in (84, 87, 90)
  assert all(batch % 3 == 0 for _, batch in calls)


def test_large_batches_leave_steps_after_the_warm_up(tiny_config):
  tiny_config.total_steps, tiny_config.total_epochs = None, 1.0
  seen = []

  def make(config):
    seen.append((config.total_steps, config.total_epochs))
    return machine(0.5, dict.fromkeys(COSTS, 0.01))[0](config)

  search.search(make, tiny_config, lambda line: None)
  assert set(seen) == {(10**9, None)}


def test_nothing_fits(tiny_config):
  tiny_config.train.batch_size = 4 * 8
  make, _ = machine(1.5, COSTS)
  result = search.search(make, tiny_config, lambda line: None)
  assert (result['remat'], result['batch_per_core']) == (None, 0)


@pytest.mark.parametrize(('batch', 'accum_steps'), [(2, 1), (6, 3), (200, 1)])
def test_a_model_that_is_split_takes_less_than_an_image_a_core(
  tiny_config, batch, accum_steps
):
  tiny_config.train.batch_size = batch
  tiny_config.step.accum_steps = accum_steps
  make, calls = machine(0.2, dict.fromkeys(COSTS, 0.02), count=8, model=4)
  result = search.search(make, tiny_config, lambda line: None)
  assert 37 <= result['batch_per_core'] <= 40  # 0.2 + 0.02 * 40 is all
  assert result['batch_size'] == 8 * result['batch_per_core']
  # Of two parts of the mesh, each in so many accumulation steps.
  assert all(8 * size % (2 * accum_steps) == 0 for _, size in calls)


def test_a_compiler_that_does_not_say_how_much_is_missing(tiny_config):
  tiny_config.train.batch_size = 4 * 400
  make, calls = machine(0.1, dict.fromkeys(COSTS, 0.01), says=False)
  result = search.search(make, tiny_config, lambda line: None)
  assert result['remat'] is None
  assert 84 <= result['batch_per_core'] <= 90
  assert len(calls) <= 12


@pytest.mark.slow
def test_the_compilers_own_figures(tiny_config):
  pytest.importorskip('libtpu')
  tiny_config.train.update(batch_size=8, preprocess='resize(8)')
  # One try beyond the first: each is a compilation.
  result = search.search(
    lambda config: forecast.Forecast(config, 'v3:2x2'),
    tiny_config,
    lambda line: None,
    most_tries=1,
  )
  assert result['remat'] == 'none'
  first, second = result['tries']
  assert first['batch_per_core'] == 1
  assert result['batch_size'] == second['batch_size'] > 8
  assert first['peak_bytes'] < second['peak_bytes']
