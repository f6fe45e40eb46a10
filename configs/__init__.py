"""Recipes: one file an experiment, each a diff of `common.base`."""
