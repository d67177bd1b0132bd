"""A program for eight devices: `python eight_devices.py OPTIONS MESH...`.

OPTIONS is JSON; a mesh is "data,fsdp,model". It trains a vision transformer, or another "family",
on every mesh and on one device, and prints a line of JSON for each mesh.
"""

import collections
import dataclasses
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
TOKENS = dx.Tokens(16, 8)
FAMILIES = {
    "Resnet": (dx.models.Resnet(channels=(64,), blocks=(3,)), IMAGE),
    "DeepThinking": (dx.models.DeepThinking(width=32, steps=4, blocks=1), (8, 8)),
    "Equilibrium": (dx.models.Equilibrium(width=16, steps=4), IMAGE),
    "NeuralOde": (dx.models.NeuralOde(width=16, hidden=32, steps=4), (64,)),
    "Gru": (dx.models.Gru(width=32, steps=4), (64,)),
    "Rnn, plain": (dx.models.Rnn(width=32, depth=3, cell="elman"), TOKENS),
    "CausalLM": (dx.models.CausalLM(width=32, depth=3, heads=8, qkv_bias=True), TOKENS),
    "Rnn, GRU": (dx.models.Rnn(width=32, depth=3, cell="gru"), TOKENS),
}


class Trained(NamedTuple):
    """What training on one mesh gave."""

    losses: np.ndarray
    depths: np.ndarray
    fractions: dict[str, float]
    collectives: dict[str, int]
    sha256: str


def points(family: str) -> dict[str, np.ndarray]:
    """64 examples, whose labels are the bin of the mean or of every place."""
    images = np.random.default_rng(0).normal(size=(64, *IMAGE)).astype(np.float32)
    labels = np.digitize(images.mean((1, 2, 3)), [-0.1, 0.0, 0.1])
    shape = FAMILIES[family][1] if family in FAMILIES else IMAGE
    if isinstance(shape, dx.Tokens):
        inputs = np.digitize(images[:, 0, :, 0], np.linspace(-1.5, 1.5, 7)).astype(np.int32)
        return {"inputs": inputs, "labels": inputs.cumsum(1) % CLASSES}
    inputs = images.reshape(64, *shape)
    inputs = inputs.astype(np.float64) if jax.config.read("jax_enable_x64") else inputs
    if family == "DeepThinking":
        labels = np.digitize(inputs.mean(-1), [-0.3, 0.0, 0.3])
    return {"inputs": inputs, "labels": labels}


def experiment(options: dict[str, Any]) -> dx.Experiment:
    family = options.get("family", "Vit")
    vit = lambda: dx.models.Vit(options["patch"], None, options["width"], options["depth"], 8)
    settings, inputs = FAMILIES[family] if family in FAMILIES else (vit(), IMAGE)
    examples = points(family)

    def batch(seed: int, step: int, size: int) -> dict[str, np.ndarray]:
        rows = np.random.default_rng((seed, step)).integers(64, size=size)
        return {name: array[rows] for name, array in examples.items()}

    splits = [dx.Source(s, batch, lambda: examples, 64) for s in ("train", "calibration", "test")]
    method = dx.methods.ConfidenceExits().build()
    return dx.Experiment(settings.build(inputs, CLASSES), method, *splits)


def train(options: dict[str, Any], mesh: jax.sharding.Mesh) -> Trained:
    made, steps = experiment(options), options["steps"]
    training = dx.Training(
        steps=max(steps, 1), batch_size=ROWS, learning_rate=3e-3, remat=options["remat"]
    )
    if options.get("float64"):
        training = dataclasses.replace(training, precision="float64")
    state, step = create_state(made, training, 0, mesh), make_train_step(made, training, mesh)
    if options.get("float64"):
        wide = lambda a: a.astype(np.float64) if a.dtype == np.float32 else a
        state = state._replace(
            params=jax.tree.map(wide, state.params), opt_state=jax.tree.map(wide, state.opt_state)
        )
    leaves = jax.tree_util.tree_leaves_with_path((state.params, state.opt_state))
    fractions = {
        jax.tree_util.keystr(path): max(s.data.size for s in leaf.addressable_shards) / leaf.size
        for path, leaf in leaves
        if leaf.ndim
    }
    found: dict[str, int] = {}
    if options["count"]:
        first = put_batch(made.train.batch(0, 0, ROWS), mesh)
        program = step.lower(state, first).compile().as_text()
        found = dict(collections.Counter(COLLECTIVE.findall(program)))
    losses = []
    for s in range(steps):
        state, metrics = step(state, put_batch(made.train.batch(0, s, ROWS), mesh))
        losses.append(float(metrics["loss"]))
    depths = np.zeros(64, np.int32)
    if steps:
        params, inputs = whole(state.params), made.train.examples()["inputs"]
        step, rows = made.model.steps(params), made.model.embed(params, inputs)
        if "threshold" not in options:
            outputs = dx.run_all(step, rows, made.model.depth)
            options["threshold"] = middle(
                outputs["logits"] if isinstance(outputs, dict) else outputs
            )
        rule = dx.criteria.max_probability_above(options["threshold"])
        halted = dx.run_until(step, rows, made.model.depth, rule)
        depths = np.asarray(halted.exit_depth)
    return Trained(np.array(losses), depths, fractions, found, digest(state))


def middle(logits: jax.Array) -> float:
    """A threshold that half of the rows pass at the first exit, for logits `[E, B, ..., C]`."""
    certain = np.asarray(jax.nn.softmax(logits)).max(-1)
    return float(np.median(certain.reshape(*certain.shape[:2], -1).min(-1)[0]))


def digest(state: Any) -> str:
    """The sha256 of all leaves of a state."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(whole((state.params, state.opt_state))):
        found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()


def main(options: dict[str, Any], meshes: list[str]) -> None:
    one = Trained(np.zeros(0), np.zeros(64, np.int32), {}, {}, "")
    if options["steps"]:
        count, options["count"] = options["count"], False
        one = train(options, make_mesh(devices=jax.devices()[:1]))
        options["count"] = count
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
    jax.config.update("jax_enable_x64", json.loads(sys.argv[1]).get("float64", False))
    main(json.loads(sys.argv[1]), sys.argv[2:])
