"""Vision Transformers on JAX: "An Image Is Worth 16x16 Words", complete."""
