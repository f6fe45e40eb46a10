"""Names: choosing a part by name, calling it by name, naming a tree's leaves.

Every table of parts (models, objectives, optimizers, evaluators, data sets,
preprocessing ops) is a plain dict, and every config section is the keyword
arguments of one function. The errors of both are made here.
"""

import difflib
import inspect
import re

import jax

_MANY = 40  # choices, more than an error should show


def lookup(table, name, field):
  """Returns `table[name]`.

  Args:
    table: dict from name to part.
    name: the name to look for.
    field: what the user wrote it in, such as 'config.model.name'.

  Raises:
    ValueError: with the choices (the nearest, if they are many), and the
      nearest one first if there is one.
  """
  if name in table:
    return table[name]
  raise ValueError(
    f'{field}={name!r} is unknown{_did_you_mean(name, table)}; '
    f'choose one of {", ".join(_nearest(name, table))}.'
  )


def call(function, section, field, /, **context):
  """Returns `function(**context, **section)`, after checking the names.

  Args:
    function: any callable whose signature names its arguments.
    section: mapping of config fields, the user's arguments.
    field: the section's name, such as 'config.optimizer'.
    **context: arguments that the caller provides, not the user.

  Raises:
    ValueError: if a field is no argument of the function (with the nearest
      match), or an argument without default is missing.
  """
  required, optional = [], []
  for name, parameter in inspect.signature(function).parameters.items():
    if name not in context:
      has_default = parameter.default is not parameter.empty
      (optional if has_default else required).append(name)
  check_fields(section, field, required, optional)
  return function(**context, **section)


def check_fields(section, field, required, optional=()):
  """Raises ValueError on a field that is unknown, or required and missing.

  Args:
    section: mapping of config fields.
    field: the section's name, such as 'config.optimizer'.
    required: names that have to be there.
    optional: names that may be there.
  """
  fields = [*required, *optional]
  for name in section:
    if name not in fields:
      raise ValueError(
        f'{field}.{name} is not a field{_did_you_mean(name, fields)}; '
        f'{field} has {", ".join(fields)}.'
      )
  missing = [name for name in required if name not in section]
  if missing:
    raise ValueError(f'{field} lacks {", ".join(missing)}.')


def flatten(tree, prefix=''):
  """Returns nested dicts as one dict, from names like 'model.depth' to values.

  Args:
    tree: dict of dicts; an empty one is a value.
    prefix: what all names start with, such as 'config.'.
  """
  if not isinstance(tree, dict) or not tree:
    return {prefix[:-1]: tree}
  flat = {}
  for name, value in tree.items():
    flat |= flatten(value, f'{prefix}{name}.')
  return flat


def leaf_names(tree):
  """Returns the tree with each leaf replaced by its '/'-joined path."""
  return jax.tree_util.tree_map_with_path(lambda path, _: join(path), tree)


def join(path):
  """Returns a JAX key path as one string: 'blocks/mlp/dense_1/kernel'."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def mask(tree, pattern):
  """Returns a tree of bools: whether `pattern` matches the leaf's whole name.

  Args:
    tree: any tree, such as parameters.
    pattern: regular expression over names like 'head/kernel'.
  """
  return jax.tree.map(
    lambda name: re.fullmatch(pattern, name) is not None, leaf_names(tree)
  )


def _nearest(name, choices):
  choices = [str(choice) for choice in sorted(choices)]
  if len(choices) <= _MANY:
    return choices
  nearest = difflib.get_close_matches(str(name), choices, _MANY // 4, 0)
  return [*nearest, f'... ({len(choices)} in all)']


def _did_you_mean(name, choices):
  matches = difflib.get_close_matches(str(name), map(str, choices), 1, 0.6)
  return f' (did you mean {matches[0]!r}?)' if matches else ''
