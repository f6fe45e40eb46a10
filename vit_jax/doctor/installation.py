"""Python and packages against the ranges that setup.py gives as tested.

The ranges are read from the metadata of the installed package: there is no
second list.
"""

import platform
from importlib import metadata

from vit_jax.doctor.finding import FAIL, OK, WARN, Finding

# The packages that drive an accelerator -> the extra of jax that pins them.
_PLUGINS = {
  'libtpu': 'tpu',
  'jax-cuda12-plugin': 'cuda12',
  'jax-cuda13-plugin': 'cuda13',
}
_NEEDS = {
  'data': 'only TFDS data sets need it',
  'gcs': 'paths at gs:// need it',
}
_INSTALL = "pip install -e '.[{}]'"


def installed(name):
  """Returns the version of an installed package, or None."""
  try:
    return metadata.version(name)
  except metadata.PackageNotFoundError:
    return None


def check(remote=False):
  """Returns Findings on Python, vit_jax's packages, jax's own.

  Args:
    remote: whether the run's folder is at gs://.
  """
  try:
    needed = metadata.metadata('vit_jax')['Requires-Python']
    import packaging.requirements
    import packaging.specifiers
  except metadata.PackageNotFoundError:
    return [
      Finding('packages', FAIL, 'vit_jax is not installed', 'pip install -e .')
    ]
  except ImportError:
    return [
      Finding(
        'packages', FAIL, 'packaging is not installed', 'pip install -e .'
      )
    ]
  python = platform.python_version()
  fits = packaging.specifiers.SpecifierSet(needed).contains(
    python, prereleases=True
  )
  findings = [
    Finding('python', OK, python)
    if fits
    else Finding(
      'python',
      FAIL,
      f'{python} is not {needed}',
      'make a new environment: python3.11 -m venv .venv',
    )
  ]
  return [*findings, *_packages(remote), *_pins()]


def _requirements(package, extra=''):
  """Yields (name, specifiers) that a package has for an extra."""
  from packaging.requirements import Requirement

  for text in metadata.requires(package) or ():
    need = Requirement(text)
    plain = need.marker is None or need.marker.evaluate({'extra': ''})
    if extra:
      if not plain and need.marker.evaluate({'extra': extra}):
        yield need.name, need.specifier
    elif plain:
      yield need.name, need.specifier


def _packages(remote):
  """Returns one Finding for all that is right, one each for what is not."""
  wrong, right = [], []
  for extra in ('', 'data', *(('gcs',) if remote else ())):
    for name, specifiers in _requirements('vit_jax', extra):
      version = installed(name)
      needs = _NEEDS.get(extra)
      if version is None:
        text, remedy = 'not installed', _INSTALL.format(extra)
      elif not specifiers.contains(version, prereleases=True):
        text = f'{version} is outside of the tested range {specifiers}'
        remedy = f"pip install '{name}{specifiers}'"
      else:
        right.append(f'{name} {version}')
        continue
      wrong.append(
        Finding(
          name,
          WARN if extra == 'data' else FAIL,
          f'{text} ({needs})' if needs else text,
          remedy.replace("'.[]'", '.'),
        )
      )
  return [
    Finding(
      'packages', OK, f'{len(right)} in the tested ranges: {", ".join(right)}'
    ),
    *wrong,
  ]


def _pins():
  """Returns Findings on jaxlib and the plugins: what jax asks for of them."""
  if installed('jax') is None:
    return []  # said already
  findings = [_pin('jaxlib', 'jax', '')]
  for plugin, extra in _PLUGINS.items():
    if installed(plugin) is not None:
      findings.append(_pin(plugin, 'jax', extra))
      # The accelerator's extra may ask for a closer jaxlib.
      findings[0] = max(
        findings[0],
        _pin('jaxlib', 'jax', extra),
        key=lambda finding: finding.status == FAIL,
      )
  for version in ('12', '13'):  # the two halves of the CUDA plugin
    plugin, pjrt = (
      installed(f'jax-cuda{version}-{half}') for half in ('plugin', 'pjrt')
    )
    if plugin and plugin != pjrt:
      findings.append(
        Finding(
          f'jax-cuda{version}-pjrt',
          FAIL,
          f'{pjrt or "missing"}, but jax-cuda{version}-plugin is {plugin}',
          f"pip install 'jax-cuda{version}-pjrt=={plugin}'",
        )
      )
  return findings


def _pin(name, package, extra):
  version, jax = installed(name), installed(package)
  specifiers = dict(_requirements(package, extra)).get(name)
  shown = f'{version}, for {package} {jax}'
  if version is not None and (
    specifiers is None or specifiers.contains(version, prereleases=True)
  ):
    return Finding(name, OK, shown)
  full = f'{package}[{extra}]' if extra else package
  return Finding(
    name,
    FAIL,
    f'{shown}, which asks for {name}{specifiers}',
    f"pip install '{full}=={jax}'",
  )
