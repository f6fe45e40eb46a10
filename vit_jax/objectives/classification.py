"""Supervised classification, of one label an image or of many."""

import chex
import jax
import jax.numpy as jnp
import optax

from vit_jax import models, names


def build(model, loss='softmax', label_smoothing=0.0):
  """Returns (init, loss, predict) of an Objective.

  Args:
    model: a linen module, see `vit_jax.models`.
    loss: 'softmax' or 'sigmoid', see `LOSSES`.
    label_smoothing: e; targets become (1 - e) target + e / C.

  Raises:
    ValueError: on an unknown loss, or a smoothing out of [0, 1).
  """
  example_loss = names.lookup(LOSSES, loss, 'config.objective.loss')
  if not 0 <= label_smoothing < 1:
    raise ValueError(
      f'config.objective.label_smoothing={label_smoothing} is not in [0, 1).'
    )

  if not model.num_classes:
    raise ValueError(
      "config.model: num_classes=0 and head='none' make no logits, which "
      'classification needs; set both.'
    )

  def init(rng, images):
    return model.init(rng, models.scale_pixels(images))['params']

  def batch_loss(params, batch, rng):
    logits, _ = model.apply(
      {'params': params},
      models.scale_pixels(batch['image']),
      train=True,
      rngs={'dropout': rng},
    )
    targets = one_hot(batch['label'], logits.shape[-1])
    smoothed = optax.smooth_labels(targets, label_smoothing)
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


def top_1(logits, targets):
  """Returns whether the highest logit is of a true class, [B] float32."""
  chex.assert_equal_shape([logits, targets])
  best = logits.argmax(axis=-1)[:, None]
  return (jnp.take_along_axis(targets, best, axis=-1)[:, 0] > 0).astype(
    jnp.float32
  )
