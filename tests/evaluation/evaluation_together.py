"""Evaluates on the devices of two processes: `python evaluation_together.py RANK PORT`.

Prints as JSON the sha256 of every figure that is no time, the rows that this process read of each
batch of the test split, and whether it measured time.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import ClassVar

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))


class Watched(np.ndarray):
    """An array that notes which rows are read."""

    read: ClassVar[list[list[int]]] = []

    def __getitem__(self, rows):
        taken = np.asarray(self)[rows]
        Watched.read.append(np.arange(len(self))[rows].tolist())
        return taken


def digests(figures):
    """sha256 of the leaves of every figure."""
    bits = lambda tree: b"".join(np.asarray(a).tobytes() for a in jax.tree.leaves(tree))
    return {name: hashlib.sha256(bits(tree)).hexdigest() for name, tree in figures.items()}


def main():
    import conftest
    import sharded_evaluation
    from jax.sharding import AxisType

    made = conftest.build(conftest.alike_model())
    params = jax.jit(made.model.init)(jax.random.key(0))
    whole = made.test.examples()
    watched = {**whole, "inputs": whole["inputs"].view(Watched)}
    made = made._replace(test=made.test._replace(examples=lambda: watched))
    mesh = jax.make_mesh((2, 2, 1), ("data", "fsdp", "model"), (AxisType.Auto,) * 3)
    found = sharded_evaluation.figures(made, params, mesh)
    print(json.dumps([digests(found), Watched.read]))


if __name__ == "__main__":
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{sys.argv[2]}", 2, int(sys.argv[1]))
    main()
