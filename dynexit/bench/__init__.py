"""Benchmarks of the executors on drawn problems, beside peers."""
