"""Checkpoints: slices of arrays, their manifest, writing and reading."""
