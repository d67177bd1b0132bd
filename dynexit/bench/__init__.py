"""Benchmarks of the executors on random networks and sampled depths, with peers."""
