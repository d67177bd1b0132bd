"""A program for eight devices: `python eight_devices.py OPTIONS MESH...`.

OPTIONS is JSON; a mesh is "data,fsdp,model". It trains a vision transformer on every mesh and on
one device, and prints a line of JSON for each mesh.
"""

import collections
import hashlib
import json
import re
import sys
from typing import Any, NamedTuple

import jax
import numpy as np

import dynexit as dx
from dynexit.core.settings import Mesh
from dynexit.training.parallel.mesh import make_mesh
from dynexit.training.parallel.placement import put_batch, whole
from dynexit.training.state import create_state
from dynexit.training.step import make_train_step

KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast"
COLLECTIVE = re.compile(rf"= \S.*? ({KINDS})(?:-start)?\(")
ROWS, IMAGE, CLASSES = 32, (8, 8, 1), 16


class Trained(NamedTuple):
    """What training on one mesh gave."""

    losses: np.ndarray
    depths: np.ndarray
    fractions: dict[str, float]
    collectives: dict[str, int]
    sha256: str


def points() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(64, *IMAGE)).astype(np.float32)
    return {"inputs": images, "labels": np.digitize(images.mean((1, 2, 3)), [-0.1, 0.0, 0.1])}


def batch(seed: int, step: int, size: int) -> dict[str, np.ndarray]:
    rows = np.random.default_rng((seed, step)).integers(64, size=size)
    return {name: array[rows] for name, array in points().items()}


def experiment(options: dict[str, Any]) -> dx.Experiment:
    settings = dx.models.Vit(options["patch"], None, options["width"], options["depth"], 8)
    splits = [dx.Source(s, batch, points, 64) for s in ("train", "calibration", "test")]
    method = dx.methods.ConfidenceExits().build()
    return dx.Experiment(settings.build(IMAGE, CLASSES), method, *splits)


def train(options: dict[str, Any], mesh: jax.sharding.Mesh) -> Trained:
    made, steps = experiment(options), options["steps"]
    training = dx.Training(
        steps=max(steps, 1), batch_size=ROWS, learning_rate=3e-3, remat=options["remat"]
    )
    state, step = create_state(made, training, 0, mesh), make_train_step(made, training, mesh)
    leaves = jax.tree_util.tree_leaves_with_path((state.params, state.opt_state))
    fractions = {
        jax.tree_util.keystr(path): max(s.data.size for s in leaf.addressable_shards) / leaf.size
        for path, leaf in leaves
        if leaf.ndim
    }
    found: dict[str, int] = {}
    if options["count"]:
        program = step.lower(state, put_batch(batch(0, 0, ROWS), mesh)).compile().as_text()
        found = dict(collections.Counter(COLLECTIVE.findall(program)))
    losses = []
    for s in range(steps):
        state, metrics = step(state, put_batch(batch(0, s, ROWS), mesh))
        losses.append(float(metrics["loss"]))
    depths = np.zeros(64, np.int32)
    if steps:
        params, rule = whole(state.params), dx.criteria.max_probability_above(options["threshold"])
        rows = made.model.embed(params, points()["inputs"])
        depths = np.asarray(dx.run_until(made.model.steps(params), rows, criterion=rule).exit_depth)
    return Trained(np.array(losses), depths, fractions, found, digest(state))


def digest(state: Any) -> str:
    """The sha256 of all leaves of a state."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(whole((state.params, state.opt_state))):
        found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()


def main(options: dict[str, Any], meshes: list[str]) -> None:
    one = Trained(np.zeros(0), np.zeros(64, np.int32), {}, {}, "")
    if options["steps"]:
        one = train({**options, "count": False}, make_mesh(devices=jax.devices()[:1]))
    for sizes in meshes:
        on = train(options, make_mesh(Mesh(*map(int, sizes.split(",")))))
        error = np.abs(on.losses - one.losses) / np.abs(one.losses)
        line = {
            "mesh": sizes,
            "error": float(error.max()) if len(error) else 0.0,
            "loss": [float(one.losses[0]), float(one.losses[-1])] if len(error) else [],
            "depths_differ": int((on.depths != one.depths).sum()),
            "depths": sorted({int(d) for d in one.depths}),
            "largest": max(on.fractions.values()),
            "split": sum(f < 1 for n, f in on.fractions.items() if n.startswith("[0]")),
            "collectives": on.collectives,
            "sha256": on.sha256,
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), sys.argv[2:])
