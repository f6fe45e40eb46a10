"""Starts JAX's devices and computes on each; a process of its own.

On a TPU pod, under Slurm and on GKE it joins the processes of the other
machines as training does, so it has to be started on all. A device that another
process holds makes it wait for ever; whoever started it can end it. Prints one
line of JSON; why JAX could not use an accelerator is in the log on stderr.
"""

import json
import logging
import sys

SIZE = 256


def main():
  """Prints the devices, or the error that kept them from starting.

  The argument is how many seconds the other machines of a pod may take.
  """
  logging.basicConfig(level=logging.INFO, stream=sys.stderr)
  try:
    from vit_jax import processes

    with processes.joined(start_timeout=float(sys.argv[1])):
      _print(probe)
  except Exception as error:
    _print_error(error)


def _print(function):
  # Within: an error there would make the other processes stop.
  try:
    print(json.dumps(function()), flush=True)
  except Exception as error:
    _print_error(error)


def _print_error(error):
  # Whatever it is, it is what the report is about.
  text = f'{type(error).__name__}: {error}'
  print(json.dumps({'error': text.strip(': ')}), flush=True)


def probe():
  """Returns {'backend', 'devices', 'local', 'kind', 'memory', 'wrong'}.

  'devices' and 'local' are numbers of devices, of all processes and of this
  one; 'memory' bytes of one device, or None; 'wrong' the ids of local devices
  that computed something else than NumPy.
  """
  import jax
  import numpy as np

  # Small integers: exact in every dtype that a device may multiply in.
  factor = np.arange(SIZE * SIZE).reshape(SIZE, SIZE) % 7
  expected = factor @ factor
  local = jax.local_devices()
  wrong = []
  for device in local:
    x = jax.device_put(factor.astype(np.float32), device)
    if not np.array_equal(np.asarray(x @ x), expected):
      wrong.append(device.id)
  return {
    'backend': jax.default_backend(),
    'devices': jax.device_count(),
    'local': len(local),
    'kind': local[0].device_kind,
    'memory': (local[0].memory_stats() or {}).get('bytes_limit'),
    'wrong': wrong,
  }


if __name__ == '__main__':
  main()
