"""Trains the toy network on two processes: `python two_processes.py RANK PORT FOLDER OPTIONS`."""

import dataclasses
import hashlib
import json
import sys

import jax


def main(folder: str, options: dict) -> None:
    """Prints the step, the number of leaves that are split, the sha256 of the parameters, the loss."""
    import toy_experiment as toy

    from dynexit.core.settings import Mesh
    from dynexit.training.loop import fit
    from dynexit.training.parallel.mesh import make_mesh
    from dynexit.training.parallel.placement import whole

    settings = dataclasses.replace(toy.SETTINGS, **options["training"])
    mesh = make_mesh(Mesh(**options["mesh"]))
    fitted = fit(toy.build(), settings, folder, 3, progress=False, mesh=mesh)
    split = [not leaf.is_fully_replicated for leaf in jax.tree.leaves(fitted.params)]
    leaves = jax.tree.leaves(jax.device_get(whole(fitted.params)))
    digest = hashlib.sha256(b"".join(leaf.tobytes() for leaf in leaves)).hexdigest()
    print(json.dumps([fitted.step, sum(split), digest, fitted.metrics["loss"]]))


if __name__ == "__main__":
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{sys.argv[2]}", 2, int(sys.argv[1]))
    main(sys.argv[3], json.loads(sys.argv[4]))
