"""Checks the machine a run is to go on: `python -m vit_jax.doctor`."""
