"""Supervised classification, of one label an image or of many."""

import math

import chex
import jax
import jax.numpy as jnp
import optax

from vit_jax import models, names


def build(model, loss='softmax', label_smoothing=0.0, mixup=0.0):
  """Returns (init, loss, predict) of an Objective.

  Args:
    model: a linen module, see `vit_jax.models`.
    loss: 'softmax' or 'sigmoid', see `LOSSES`.
    label_smoothing: e; targets become (1 - e) target + e / C.
    mixup: p of `mixing_weight`; each training example, image and target, is
      mixed with the one before it in the batch, see `mix`. 0 mixes nothing.
      The accuracy in training is then that of mixed images, each judged by the
      label of the image that dominates it.

  Raises:
    ValueError: on an unknown loss, or a number out of range.
  """
  example_loss = names.lookup(LOSSES, loss, 'config.objective.loss')
  if not 0 <= label_smoothing < 1:
    raise ValueError(
      f'config.objective.label_smoothing={label_smoothing} is not in [0, 1).'
    )
  if not 0 <= mixup < math.inf:
    raise ValueError(
      f'config.objective.mixup={mixup} is not a finite number of 0 or more; 0 '
      'mixes nothing.'
    )

  if not model.num_classes:
    raise ValueError(
      "config.model: num_classes=0 and head='none' make no logits, which "
      'classification needs; set both.'
    )

  def init(rng, images):
    return model.init(rng, models.scale_pixels(images))['params']

  def batch_loss(params, batch, rng):
    images = models.scale_pixels(batch['image'])
    if mixup:
      # A key of its own: dropout draws the same with mixup and without.
      weight = mixing_weight(jax.random.fold_in(rng, 0), mixup)
      images = mix(images, weight)
    logits, _ = model.apply(
      {'params': params}, images, train=True, rngs={'dropout': rng}
    )
    targets = one_hot(batch['label'], logits.shape[-1])
    smoothed = optax.smooth_labels(targets, label_smoothing)
    if mixup:
      smoothed = mix(smoothed, weight)
    value = example_loss(logits, smoothed).mean()
    return value, {'loss': value, 'accuracy': top_1(logits, targets).mean()}

  def predict(params, images):
    return model.apply({'params': params}, models.scale_pixels(images))

  return init, batch_loss, predict


def softmax_loss(logits, targets):
  """Returns -sum_c target_c log softmax(logits)_c: [B, C] twice -> [B]."""
  chex.assert_equal_shape([logits, targets])
  return optax.softmax_cross_entropy(logits, targets)


def sigmoid_loss(logits, targets):
  """Returns the sum over classes of binary cross-entropies, [B].

  A sum, as in the published JFT models, so that the gradient of each class does
  not shrink with the number of classes.
  """
  chex.assert_equal_shape([logits, targets])
  return optax.sigmoid_binary_cross_entropy(logits, targets).sum(axis=-1)


LOSSES = {'softmax': softmax_loss, 'sigmoid': sigmoid_loss}


def one_hot(labels, num_classes):
  """Returns targets [B, C] float32 of labels.

  Args:
    labels: class indices [B] of integers, or targets [B, C] as they are: 0 and
      1 for many labels an image, or any weights.
    num_classes: C.
  """
  if labels.ndim == 1:
    return jax.nn.one_hot(labels, num_classes)
  return labels.astype(jnp.float32)


def mixing_weight(rng, p):
  """Returns max(a, 1 - a) of a ~ Beta(p, p), a float32 scalar in [1/2, 1].

  One weight for all of a batch, or of each of its parts if gradients are
  accumulated. The larger of the two, so that the image before only disturbs:
  for small p nearly all weights are close to 1.

  Source: 1710.09412, as in big_vision.
  """
  weight = jax.random.beta(rng, p, p)
  return jnp.maximum(weight, 1 - weight)


def mix(x, weight):
  """Returns weight x_i + (1 - weight) x_(i-1) for all i of B, cyclically.

  Args:
    x: float32 [B, ...].
    weight: float32 scalar.
  """
  return weight * x + (1 - weight) * jnp.roll(x, 1, axis=0)


def top_1(logits, targets):
  """Returns whether the highest logit is of a true class, [B] float32."""
  chex.assert_equal_shape([logits, targets])
  best = logits.argmax(axis=-1)[:, None]
  return (jnp.take_along_axis(targets, best, axis=-1)[:, 0] > 0).astype(
    jnp.float32
  )
