"""Checkpoints of any kind: read, converted, written."""
