"""A language model whose attention and MLP are split along "model", against one device."""

import jax
import numpy as np
import pytest

import dynexit as dx
from dynexit.core.settings import Mesh
from dynexit.training.parallel.mesh import make_mesh
from dynexit.training.parallel.placement import put_batch
from dynexit.training.state import create_state
from dynexit.training.step import make_train_step

ROWS, INPUTS = 4, dx.Tokens(12, 6)
SPLIT = {  # name -> the split axis of the stacked parameter
    "query/weight": 1, "key/weight": 1, "value/weight": 1, "query/bias": 1, "key/bias": 1,
    "value/bias": 1, "out/weight": 2, "up/weight": 1, "gate/weight": 1, "down/weight": 2,
}  # fmt: skip


def batch(seed: int, step: int, size: int) -> dict[str, np.ndarray]:
    starts = np.random.default_rng((seed, step)).integers(12, size=(size, 1))
    tokens = (starts + np.arange(7)) % 12
    return {"inputs": tokens[:, :-1], "labels": tokens[:, 1:]}


def losses(mesh):
    """Of three updates, and the state after them."""
    settings = dx.models.CausalLM(width=8, depth=2, heads=4, kv_heads=2, qkv_bias=True)
    splits = [
        dx.Source(s, batch, lambda: batch(0, 0, 4), 4) for s in ("train", "calibration", "test")
    ]
    method = dx.methods.ConfidenceExits().build()
    made = dx.Experiment(settings.build(INPUTS, 12), method, *splits)
    training = dx.Training(steps=3, batch_size=ROWS, learning_rate=3e-3, warmup=0.0)
    state, step = create_state(made, training, 0, mesh), make_train_step(made, training, mesh)
    found = []
    for s in range(3):
        state, metrics = step(state, put_batch(batch(0, s, ROWS), mesh))
        found.append(float(metrics["loss"]))
    return np.array(found), state


@pytest.mark.slow
def test_updates_are_those_of_one_device():
    one, _ = losses(make_mesh(devices=jax.devices()[:1]))
    several, state = losses(make_mesh(Mesh(model=2)))
    np.testing.assert_allclose(several, one, rtol=1e-5)
    assert one[-1] < one[0]
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.params["blocks"]):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        part = leaf.addressable_shards[0].data.shape
        wanted = [n // 2 if SPLIT.get(name) == axis else n for axis, n in enumerate(leaf.shape)]
        assert list(part) == wanted, name
