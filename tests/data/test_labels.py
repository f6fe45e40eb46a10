import pytest

from vit_jax.data import datasets, labels


@pytest.mark.parametrize(
  ('dataset', 'facts'),
  [
    ('cifar10', {0: 'airplane', 3: 'cat', 9: 'truck'}),
    ('digits', {0: '0', 9: '9'}),
    (
      'imagenet2012',
      {
        0: 'tench, Tinca tinca',
        1: 'goldfish, Carassius auratus',
        207: 'golden retriever',
        285: 'Egyptian cat',
        817: 'sports car, sport car',
        999: 'toilet tissue, toilet paper, bathroom tissue',
      },
    ),
    ('imagenet21k', {0: 'organism, being', 21842: 'knothole'}),
  ],
)
def test_names_are_those_of_the_classes(dataset, facts):
  names = labels.names_of(dataset)
  assert len(names) == datasets.DATASETS[dataset].num_classes
  assert len(set(names)) == len(names)
  assert {index: names[index] for index in facts} == facts


def test_classes_of_the_same_name_stay_apart():
  names = labels.names_of('imagenet2012')
  synsets = labels.synsets('imagenet2012')
  assert names[134] == 'crane (n02012849)'  # the bird
  assert names[517] == 'crane (n03126707)'  # the machine
  assert names[638:640] == ('maillot', 'maillot, tank suit')
  assert synsets[638:640] == ('n03710637', 'n03710721')


def test_synsets_are_sorted_and_differ():
  for dataset, count in (('imagenet2012', 1000), ('imagenet21k', 21843)):
    synsets = labels.synsets(dataset)
    assert len(synsets) == len(set(synsets)) == count
    assert list(synsets) == sorted(synsets)
    assert all(len(s) == 9 and s[0] == 'n' for s in synsets)


def test_imagenet_21k_has_the_classes_of_1k_but_the_teddy_bear():
  small, large = (
    dict(zip(labels.synsets(name), labels.names_of(name), strict=True))
    for name in ('imagenet2012', 'imagenet21k')
  )
  assert len(small.keys() & large.keys()) == 999
  missing = small.keys() - large.keys()
  assert [small[synset] for synset in missing] == ['teddy, teddy bear']
  assert large['n02099601'] == 'golden retriever'


def test_what_has_no_names_is_explained():
  with pytest.raises(ValueError, match="dataset='cifar100' .* digits, imagen"):
    labels.names_of('cifar100')
  with pytest.raises(ValueError, match='choose one of imagenet2012, imagenet2'):
    labels.synsets('digits')
