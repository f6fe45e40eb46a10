"""Checkpoints of this project: of runs, and of weights alone."""

import json

import jax
import numpy as np
import orbax.checkpoint as ocp

from vit_jax import names, storage


def find(path):
  """Returns the folder of one checkpoint, or None if the path holds none.

  Args:
    path: `epath.Path` of a run (its last checkpoint is meant), of its
      checkpoints/, or of one checkpoint in it.
  """
  if not path.is_dir():
    return None
  if (path / 'state').is_dir() and (path / 'config').is_dir():
    return path
  if (path / 'checkpoints').is_dir():
    path = path / 'checkpoints'
  steps = [p for p in path.iterdir() if p.name.isdecimal() and _is_whole(p)]
  return max(steps, key=lambda p: int(p.name)) if steps else None


def load(path):
  """Returns (params, config, inputs) of a checkpoint.

  Args:
    path: folder of one checkpoint, see `find`; local or gs://.

  Returns:
    Dict from name to float32 numpy array: the Polyak average if the run kept
    one, else the parameters; the run's config, a dict; and what is known of its
    inputs, a dict with 'image_shape'.

  Raises:
    ValueError: if it is damaged.
  """
  path = storage.absolute(path)  # Orbax takes no others
  try:
    config = _read_json(path / 'config')
    inputs = _read_json(path / 'inputs') if (path / 'inputs').exists() else {}
    with _checkpointer() as checkpointer:
      tree = checkpointer.metadata(path).item_metadata['state'].tree
      part = 'average' if tree.get('average') else 'params'
      target = {part: tree[part]}
      restored = checkpointer.restore(
        path,
        args=ocp.args.Composite(
          state=ocp.args.PyTreeRestore(
            item=target,
            restore_args=jax.tree.map(
              lambda _: ocp.RestoreArgs(restore_type=np.ndarray), target
            ),
            partial_restore=True,
          )
        ),
      ).state[part]
  except Exception as error:  # tensorstore has many kinds
    raise ValueError(
      f'{path} cannot be read ({type(error).__name__}: {error}); use another '
      'checkpoint of the run.'
    ) from None
  flat = dict(
    zip(
      jax.tree.leaves(names.leaf_names(restored)),
      jax.tree.leaves(restored),
      strict=True,
    )
  )
  return flat, config, inputs


def save(path, params, arguments, inputs, overwrite):
  """Writes weights alone, as a folder that `load` reads.

  Args:
    path: folder; it is there whole or not at all.
    params: tree of arrays.
    arguments: dict, the arguments of models.build.
    inputs: dict, see `load`.
    overwrite: whether the folder may be replaced.

  Raises:
    ValueError: if it cannot be written.
  """
  try:
    with _checkpointer() as checkpointer:
      checkpointer.save(
        storage.absolute(path),
        args=ocp.args.Composite(
          state=ocp.args.PyTreeSave({'params': params}),
          config=ocp.args.JsonSave({'model': arguments}),
          inputs=ocp.args.JsonSave(inputs),
        ),
        force=overwrite,
      )
  except Exception as error:  # tensorstore has many kinds
    raise ValueError(
      f'{path} cannot be written: {error}; mend that, or choose another name.'
    ) from None


def _is_whole(path):
  """Returns whether a step's folder is a checkpoint that was saved to its end.

  A local one has its name only then. Buckets do not rename: Orbax writes a file
  at last.
  """
  return not storage.is_remote(path) or (path / 'commit_success.txt').exists()


def _checkpointer():
  return ocp.Checkpointer(
    ocp.CompositeCheckpointHandler(
      state=ocp.PyTreeCheckpointHandler(),
      config=ocp.JsonCheckpointHandler(),
      inputs=ocp.JsonCheckpointHandler(),
    )
  )


def _read_json(folder):
  return json.loads((folder / 'metadata').read_text())
