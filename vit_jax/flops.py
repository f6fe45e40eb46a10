"""FLOPs of any function that JAX can trace.

Matrix products and convolutions are counted, a multiply-add as 2 FLOPs. What
works on elements (activations, norms, softmax) is left out, as is usual.
"""

import math
from typing import NamedTuple

import jax
import numpy as np
from jax.extend import core

from vit_jax import chips


class Count(NamedTuple):
  """What a function computes.

  Attributes:
    flops: of matrix products and convolutions, as the field counts them: the
      zeros with which an image is padded take part like all else.
    padding_flops: how many of those multiply with such a zero. XLA's cost
      analysis, and with it the paper, leaves them out.
    activations: elements that the products and convolutions make.
  """

  flops: int
  padding_flops: int
  activations: int


def count(function, *args):
  """Returns the `Count` of a function, which is traced and not run.

  The body of a scan counts as often as it runs, and of a conditional the branch
  with most FLOPs. The zeros between the elements of a dilated image (of them
  the gradients of strided convolutions are made) do not count at all.

  Args:
    function: any function that JAX can trace.
    *args: its arguments: trees of arrays or of `jax.ShapeDtypeStruct`.

  Raises:
    ValueError: if the function holds a loop whose number of turns depends on
      values, or a part whose number of runs is set elsewhere.
  """
  return of_jaxpr(jax.make_jaxpr(function)(*args).jaxpr)


def step_seconds_at_peak(predict, params, image_shape, mesh):
  """Returns how long a train step takes at the devices' peak, or None.

  Its FLOPs are 3 times those of the forward pass: what is computed again to
  save memory does not count.

  Args:
    predict: (params, uint8 images) -> (logits, features).
    params: tree of arrays or `jax.ShapeDtypeStruct`.
    image_shape: (B, height, width, channels), B over all devices.
    mesh: the device mesh. Where the peak of its devices is not known, as of
      CPUs, the result is None.
  """
  chip = chips.find(mesh.devices.flat[0].device_kind)
  if chip is None:
    return None
  images = jax.ShapeDtypeStruct(image_shape, np.uint8)
  return (
    3 * count(predict, params, images).flops / (chip.peak_flops * mesh.size)
  )


def of_jaxpr(jaxpr):
  """Returns the `Count` of a jaxpr; see `count`."""
  return _sum(_equation(equation) for equation in jaxpr.eqns)


def _sum(counts, times=1):
  """Returns `times` the sum of counts."""
  totals = [sum(numbers) for numbers in zip(*counts, strict=True)]
  return Count(*(times * total for total in totals or (0, 0, 0)))


def _equation(equation):
  """Returns the `Count` of one equation of a jaxpr, and of all within."""
  name, params = equation.primitive.name, equation.params
  if name == 'dot_general':
    (contracted, _), _ = params['dimension_numbers']
    left, output = equation.invars[0].aval, equation.outvars[0].aval
    terms = math.prod(left.shape[axis] for axis in contracted)
    return Count(2 * output.size * terms, 0, output.size)
  if name == 'conv_general_dilated':
    return _convolution(equation)
  within = [of_jaxpr(part) for part in core.jaxprs_in_params(params)]
  # A random number may be drawn again and again: that takes no products.
  if name in ('while', 'shard_map', 'pallas_call') and any(map(any, within)):
    raise ValueError(
      f'{name} cannot be counted: how often its body runs is not known from '
      'the program; use lax.scan, or lax.fori_loop with constant bounds.'
    )
  if name == 'cond':
    return max(within)
  return _sum(within, params['length'] if name == 'scan' else 1)


def _convolution(equation):
  params, numbers = equation.params, equation.params['dimension_numbers']
  image, kernel = (variable.aval.shape for variable in equation.invars)
  output = equation.outvars[0].aval
  batch, features, *axes = numbers.out_spec
  # The kernel's input channels are those of one group.
  channels = kernel[numbers.rhs_spec[1]]
  padded = inside = output.shape[batch] * output.shape[features] * channels
  for i, axis in enumerate(axes):
    outputs, dilation = output.shape[axis], params['lhs_dilation'][i]
    taps = kernel[numbers.rhs_spec[2 + i]]
    pixels = image[numbers.lhs_spec[2 + i]]
    # Where on the dilated image each output's taps fall: [outputs, taps].
    places = (
      np.arange(outputs)[:, None] * params['window_strides'][i]
      + np.arange(taps) * params['rhs_dilation'][i]
      - params['padding'][i][0]
    )
    on_grid = places % dilation == 0
    on_image = (places >= 0) & (places <= (pixels - 1) * dilation)
    padded *= int(on_grid.sum())
    inside *= int((on_grid & on_image).sum())
  return Count(2 * padded, 2 * (padded - inside), output.size)
