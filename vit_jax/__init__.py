"""Vision Transformers on JAX: "An Image Is Worth 16x16 Words", complete."""


def load(path, **kwargs):
  """Returns (model, params) of any checkpoint; see `weights.load_checkpoint`.

  Here for `import vit_jax; model, params = vit_jax.load('ViT-B_16.npz')`.
  """
  # Imported where it is needed: `import vit_jax.models` stays light.
  from vit_jax import weights

  return weights.load(path, **kwargs)
