"""Seconds to save and to restore a state that is split over the devices of this machine.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m dynexit.bench.saves --megabytes 256

Each size is saved and restored in a folder of its own, which is deleted. A save includes digests,
the write and its completion on the disk; a restore verifies every byte. One process writes here; on
several hosts each one writes its own slices.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from dynexit.core.settings import Mesh
from dynexit.training.checkpointing.checkpoints import restore
from dynexit.training.checkpointing.saver import Saver
from dynexit.training.parallel.mesh import make_mesh

LEAVES = 16


def measure(megabytes: float, folder: Path, repeats: int = 3) -> tuple[float, float]:
    """Median seconds of a save and of a restore.

    Args:
      megabytes: 10^6 bytes of the state, of `LEAVES` equal arrays that are split over all devices.
      folder: for the checkpoints.
      repeats: of each.
    """
    count = jax.device_count()
    rows = max(1, round(megabytes * 1e6 / (4 * LEAVES * 256 * count))) * count
    split = jax.NamedSharding(make_mesh(Mesh(1, count)), PartitionSpec("fsdp"))
    make = jax.jit(
        lambda key: [jax.random.normal(k, (rows, 256)) for k in jax.random.split(key, LEAVES)],
        out_shardings=[split] * LEAVES,
    )
    state = {"params": jax.block_until_ready(make(jax.random.key(0)))}
    saving, restoring = [], []
    with Saver(folder, 1, 0) as saver:
        for step in range(repeats):
            start = time.perf_counter()
            saver.save(step + 1, state)
            saver.finish()
            saving.append(time.perf_counter() - start)
    for _ in range(repeats):
        start = time.perf_counter()
        found = restore(folder, state)
        restoring.append(time.perf_counter() - start)
        assert found is not None
        assert jnp.array_equal(found.tree["params"][0], state["params"][0])
    return statistics.median(saving), statistics.median(restoring)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a table in Markdown."""
    parser = argparse.ArgumentParser(prog="python -m dynexit.bench.saves")
    parser.add_argument("--megabytes", type=float, nargs="+", default=[16.0, 256.0])
    options = parser.parse_args(argv)
    print("| MB | save s | MB/s | restore s |\n|---|---|---|---|")
    for size in options.megabytes:
        with tempfile.TemporaryDirectory() as folder:
            save, restored = measure(size, Path(folder))
        print(f"| {size:g} | {save:.2f} | {size / save:.0f} | {restored:.2f} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
