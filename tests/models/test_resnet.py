"""The residual network against convolutions written out in loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx
from dynexit.models.vision.resnet import HIDDEN, Block, Head

IMAGE, CLASSES = (14, 10, 3), 4


def scattered(params):
    """Parameters away from their initial zeros and ones, so that no bias or scale is idle."""
    draw = np.random.default_rng(1)
    return jax.tree.map(
        lambda a: np.asarray(a) + np.float32(0.2) * draw.standard_normal(a.shape, np.float32),
        params,
    )


def conv(x, kernel, stride):
    """One image `[h, w, c]`; zeros around it so that stride 1 keeps the size, the odd zero at the
    bottom and right.
    """
    size = kernel.shape[0]
    out = [-(-side // stride) for side in x.shape[:2]]
    missing = [
        max((o - 1) * stride + size - side, 0) for o, side in zip(out, x.shape[:2], strict=True)
    ]
    x = np.pad(np.asarray(x), [*((m // 2, m - m // 2) for m in missing), (0, 0)])
    result = np.zeros((*out, kernel.shape[-1]), np.float32)
    for i in range(out[0]):
        for j in range(out[1]):
            window = x[i * stride : i * stride + size, j * stride : j * stride + size]
            result[i, j] = np.einsum("abc,abcd->d", window, kernel)
    return result


def norm(x, p):
    """Groups of 8 channels of one image, over its pixels."""
    p, size, result = p["GroupNorm_0"], min(8, x.shape[-1]), np.array(x)
    for start in range(0, x.shape[-1], size):
        group = x[..., start : start + size]
        result[..., start : start + size] = (group - group.mean()) / np.sqrt(group.var() + 1e-6)
    return result * np.asarray(p["scale"]) + np.asarray(p["bias"])


def block_of_one_image(x, p, stride):
    h = np.maximum(norm(x, p["norm1"]), 0)
    short = conv(h, np.asarray(p["shortcut"]["kernel"]), stride) if "shortcut" in p else x
    h = conv(h, np.asarray(p["conv1"]["kernel"]), stride)
    return short + conv(np.maximum(norm(h, p["norm2"]), 0), np.asarray(p["conv2"]["kernel"]), 1)


@pytest.mark.parametrize(
    "channels, out, stride, shortcut",
    [(16, 16, 1, False), (16, 24, 1, True), (16, 16, 2, True), (8, 16, 2, True), (4, 4, 1, False)],
)
def test_a_block_is_two_convolutions_and_a_shortcut(channels, out, stride, shortcut):
    x = jax.random.normal(jax.random.key(2), (2, 5, 4, channels))
    module = Block(out, stride)
    p = scattered(jax.jit(module.init)(jax.random.key(0), x)["params"])
    assert ("shortcut" in p) == shortcut
    found = jax.jit(module.apply)({"params": p}, x)
    assert found.shape == (2, -(-5 // stride), -(-4 // stride), out)
    for b in range(2):
        np.testing.assert_allclose(
            found[b], block_of_one_image(np.asarray(x[b]), p, stride), rtol=1e-4, atol=1e-4
        )


def test_the_head_reads_the_whole_map():
    x = jax.random.normal(jax.random.key(3), (2, 3, 4, 8))
    module = Head(CLASSES)
    p = scattered(jax.jit(module.init)(jax.random.key(0), x)["params"])
    found = jax.jit(module.apply)({"params": p}, x)
    assert p["hidden"]["kernel"].shape == (3 * 4 * 8, HIDDEN)
    for b in range(2):
        h = np.asarray(x[b]).ravel() @ p["hidden"]["kernel"] + p["hidden"]["bias"]
        h = (h - h.mean()) / np.sqrt(h.var() + 1e-6) * p["norm"]["LayerNorm_0"]["scale"] + p[
            "norm"
        ]["LayerNorm_0"]["bias"]
        expected = np.maximum(h, 0) @ p["logits"]["kernel"] + p["logits"]["bias"]
        np.testing.assert_allclose(found[b], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "stages, depth, spaces",
    [
        (((8, 3),), (3,), [(7, 5, 8)]),
        (((8, 1), (16, 1)), (1, 1), [(7, 5, 8), (4, 3, 16)]),
        (((8, 2), (16, 3), (24, 1)), (2, 1, 2, 1), [(7, 5, 8), (4, 3, 16), (4, 3, 16), (2, 2, 24)]),
    ],
)
def test_stages_halve_the_resolution_and_their_convolutions_are_counted(stages, depth, spaces):
    """1 + 2 x blocks convolutions of 3 x 3; one of 1 x 1 where the shape changes."""
    model = dx.models.Resnet(tuple(c for c, _ in stages), tuple(n for _, n in stages)).build(
        IMAGE, CLASSES
    )
    assert model.depth == depth and len(model.names) == sum(count for _, count in stages)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    state = jax.eval_shape(model.embed, shapes, jax.ShapeDtypeStruct((2, *IMAGE), jnp.float32))
    assert state.shape == (2, 7, 5, stages[0][0])
    for k, space in enumerate(spaces):
        state, logits = jax.eval_shape(
            lambda p, s, k=k: model.steps(p)[k].apply(model.steps(p)[k].select(0), jnp.int32(0), s),
            shapes,
            state,
        )
        assert state.shape == (2, *space) and logits.shape == (2, CLASSES)
    found = {3: 0, 1: 0}
    for path, leaf in jax.tree_util.tree_flatten_with_path(shapes)[0]:
        name = jax.tree_util.keystr(path)
        if "conv" in name or "shortcut" in name:
            found[leaf.shape[-4]] += leaf.shape[0] if "blocks" in name else 1
    assert found == {3: 1 + 2 * len(model.names), 1: len(stages) - 1}


def test_the_stem_has_stride_two():
    model = dx.models.Resnet(channels=(8,), blocks=(1,)).build(IMAGE, CLASSES)
    params = model.init(jax.random.key(0))
    images = jax.random.normal(jax.random.key(4), (2, *IMAGE))
    kernel = np.asarray(params["embed"]["conv"]["kernel"])
    found = model.embed(params, images)
    for b in range(2):
        np.testing.assert_allclose(found[b], conv(images[b], kernel, 2), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "channels, blocks, words",
    [
        ((), (), "channels must hold integers of at least 1"),
        ((8, 12), (2, 1), "channels must be below 8 or multiples of 8"),
        ((8,), (0,), "blocks must hold integers of at least 1"),
        ((8, -8), (1, 1), "channels must hold integers of at least 1"),
        ((8,), (1.0,), "blocks must be a tuple of int"),
        ((8, 16), (1,), "channels and blocks must have as many stages"),
    ],
)
def test_what_is_refused(channels, blocks, words):
    with pytest.raises(ValueError, match=f"`Resnet`: {words}"):
        dx.models.Resnet(channels, blocks).build(IMAGE, CLASSES)
