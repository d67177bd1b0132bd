"""Benchmarks that run on a machine without the training dependencies."""
