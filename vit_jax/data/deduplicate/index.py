"""The test images, and finding those that an image is a copy of."""

import io

import numpy as np
from etils import epath

from vit_jax.data.deduplicate import fingerprints

# Below, cuts are more alike than those of copies ever are.
_LEAST_LIKENESS = 0.75
_NEIGHBOURS = 128  # cuts that are looked at; many are of one test image
_CANDIDATES = 10  # test images of which an image may be a copy
# Before alignment; copies are below it, and nine in ten of the others above.
_FARTHEST_UNALIGNED = 0.8
_SMALLEST_SIDE = 16  # pixels; anything smaller is compared by its bytes only
_FULL_SIDE = 64  # smaller images have fewer details: they must agree better
_EXACT_SEARCH = 50_000  # cuts; of more, most are not looked at
_TRAINING_PER_LIST = 64
_CHUNK = 512  # images; their features are large while they are computed

EXACT, NEAR = 'exact', 'near'


class Index:
  """Test images.

  Attributes:
    places: int64 [n, 2], number of the test set and index in it.

  Args:
    found: list of n `fingerprints.Fingerprint`.
    places: see above.
  """

  def __init__(self, found, places):
    self.places = np.array(places, np.int64).reshape(-1, 2)
    size = fingerprints.SIZE
    thumbnails = [f.thumbnail for f in found]
    self._thumbnails = np.array(thumbnails, np.uint8).reshape(-1, size, size)
    self._sides = np.array([f.side for f in found], np.int64)
    self._digests = b''.join(f.digest for f in found)
    self._prepare()

  @property
  def num_plain(self):
    """How many show too little to be looked for, except by their bytes."""
    return len(self._sides) - len(self._searched)

  def save(self, path):
    """Writes it to a .npz file, local or gs://."""
    file = io.BytesIO()
    np.savez(
      file,
      places=self.places,
      thumbnails=self._thumbnails,
      sides=self._sides,
      digests=np.frombuffer(self._digests, np.uint8),
    )
    epath.Path(path).write_bytes(file.getvalue())

  @classmethod
  def load(cls, path):
    """Returns what `save` wrote."""
    file = io.BytesIO(epath.Path(path).read_bytes())
    with np.load(file, allow_pickle=False) as arrays:
      digests = arrays['digests'].tobytes()
      rows = zip(arrays['thumbnails'], arrays['sides'].tolist(), strict=True)
      found = [
        fingerprints.Fingerprint(thumbnail, side, digests[16 * i : 16 * i + 16])
        for i, (thumbnail, side) in enumerate(rows)
      ]
      return cls(found, arrays['places'])

  def find(self, found, max_distance):
    """Returns for each image its matches: lists of (row, distance, kind).

    Args:
      found: list of `fingerprints.Fingerprint`.
      max_distance: of what is near, see `fingerprints.distances`.

    Returns:
      A list per image, sorted by row: of `places`; distance, a float; EXACT or
      NEAR.
    """
    matches = [
      {row: (row, 0.0, EXACT) for row in self._by_digest.get(f.digest, ())}
      for f in found
    ]
    if found and len(self._searched):
      for image, row, distance in self._near(found, max_distance):
        known = matches[image].get(row)
        if known is None or distance < known[1]:
          matches[image][row] = (row, distance, NEAR)
    return [sorted(of_image.values()) for of_image in matches]

  def _prepare(self):
    self._by_digest = {}
    for row in range(len(self._sides)):
      digest = self._digests[16 * row : 16 * row + 16]
      self._by_digest.setdefault(digest, []).append(row)
    can = self._sides >= _SMALLEST_SIDE
    can &= ~fingerprints.is_plain(self._thumbnails)
    self._searched = np.flatnonzero(can)
    self._cuts = 2 * len(fingerprints.BOXES)
    if len(self._searched):
      self._search = self._make_search()

  def _make_search(self):
    """Returns a faiss index of all cuts of all images that are searched."""
    faiss = import_faiss()
    size, count = fingerprints.FEATURE_SIZE, len(self._searched) * self._cuts
    if count <= _EXACT_SEARCH:
      search = faiss.IndexFlatIP(size)
    else:
      lists = int(4 * count**0.5)
      search = faiss.index_factory(
        size, f'IVF{lists},SQ8', faiss.METRIC_INNER_PRODUCT
      )
      search.nprobe = 32
      search.cp.max_points_per_centroid = _TRAINING_PER_LIST
      needed = lists * _TRAINING_PER_LIST // self._cuts + 1
      step = max(len(self._searched) // needed, 1)
      search.train(self._features(self._searched[::step]))
    for start in range(0, len(self._searched), _CHUNK):
      search.add(self._features(self._searched[start : start + _CHUNK]))
    return search

  def _features(self, rows):
    """Returns those of all cuts, then of all mirrored ones, of each image."""
    chunks = []
    for start in range(0, len(rows), _CHUNK):
      plain = fingerprints.features(
        self._thumbnails[rows[start : start + _CHUNK]], fingerprints.BOXES
      )
      both = [plain, fingerprints.mirrored_features(plain)]
      chunks.append(np.concatenate(both, axis=1))
    return np.concatenate(chunks).reshape(-1, fingerprints.FEATURE_SIZE)

  def _near(self, found, max_distance):
    """Yields (image, row, distance) of what is near."""
    thumbnails = np.stack([f.thumbnail for f in found])
    sides = np.array([f.side for f in found])
    can = (sides >= _SMALLEST_SIDE) & ~fingerprints.is_plain(thumbnails)
    images, inner, cuts = self._candidates(thumbnails, np.flatnonzero(can))
    if not len(images):
      return
    rows, cuts = self._searched[cuts // self._cuts], cuts % self._cuts
    is_mirrored = cuts >= len(fingerprints.BOXES)
    boxes = fingerprints.BOXES[cuts % len(fingerprints.BOXES)]
    swapped = boxes[:, [2, 1, 0, 3]]
    boxes = np.where(is_mirrored[:, None], swapped, boxes)
    tests = self._thumbnails[rows]
    tests = np.where(is_mirrored[:, None, None], tests[:, :, ::-1], tests)
    seen = fingerprints.sample(
      thumbnails[images], fingerprints.INNER_BOXES[inner]
    )
    unaligned = fingerprints.distances(seen, fingerprints.sample(tests, boxes))
    go_on = np.flatnonzero(unaligned < _FARTHEST_UNALIGNED)
    images, rows, seen = images[go_on], rows[go_on], seen[go_on]
    tests, boxes = tests[go_on], boxes[go_on]
    boxes = fingerprints.align(seen, tests, boxes)
    distances = fingerprints.distances(seen, fingerprints.sample(tests, boxes))
    side = np.minimum(sides[images], self._sides[rows])
    allowed = max_distance * np.minimum(side / _FULL_SIDE, 1)
    for place in np.flatnonzero(distances <= allowed):
      distance = round(max(float(distances[place]), 0.0), 4)
      yield int(images[place]), int(rows[place]), distance

  def _candidates(self, thumbnails, which):
    """Returns int arrays [m]: images, of INNER_BOXES, cuts in the search."""
    queries = fingerprints.features(
      thumbnails[which], fingerprints.INNER_BOXES
    ).reshape(-1, fingerprints.FEATURE_SIZE)
    faiss = import_faiss()
    faiss.omp_set_num_threads(1)  # workers are what runs in parallel
    k = min(_NEIGHBOURS, self._search.ntotal)
    likeness, cuts = (
      self._search.search(queries, k) if len(queries) else ([], [])
    )
    result = []
    for query, (values, ids) in enumerate(zip(likeness, cuts, strict=True)):
      ids = ids[values > _LEAST_LIKENESS]  # the most alike first
      _, first = np.unique(ids // self._cuts, return_index=True)
      image, inner = divmod(query, len(fingerprints.INNER_BOXES))
      for place in np.sort(first)[:_CANDIDATES]:
        result.append((which[image], inner, ids[place]))
    return np.array(result, np.int64).reshape(-1, 3).T


def import_faiss():
  """Returns the module; raises ValueError with the command to install it."""
  try:
    import faiss
  except ImportError:
    raise ValueError(
      'Finding duplicates needs faiss, which is not installed; run '
      "`pip install -e '.[deduplicate]'`."
    ) from None
  return faiss
