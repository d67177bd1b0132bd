"""Executors of `run_until`: masked, compacted, per_row and sharded."""
