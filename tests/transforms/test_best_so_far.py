"""The most certain output so far against a loop over rows and exits, in all executors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx
from dynexit.transforms.best_so_far import best_so_far, certainty

EXITS, ROWS, POSITIONS, CLASSES = 5, 7, 3, 4
SHAPE = EXITS, ROWS, POSITIONS, CLASSES
LOGITS = 2 * np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)


def prescribed(logits, depth=EXITS):
    """A model whose row b returns `logits[i, b]` at exit i; its inputs are row indices."""
    head = lambda p, s: {"logits": p[s["exit"], s["row"]]}
    step = lambda p: dx.tied_step(lambda p, s: s | {"exit": s["exit"] + 1}, head, p)
    embed = lambda p, rows: {"row": rows, "exit": jnp.full(rows.shape, -1, jnp.int32)}
    names = tuple(f"step{i}" for i in range(EXITS))
    return dx.Model(lambda key: jnp.asarray(logits), embed, step, depth, names)


def certainty_by_hand(logits):
    """Certainty of one row at one exit."""
    found = []
    for position in logits.reshape(-1, logits.shape[-1]).astype(np.float64):
        p = np.exp(position) / np.exp(position).sum()
        found.append(1 + (p * np.log(p)).sum() / np.log(len(p)))
    return np.mean(found)


CERTAIN = np.array([[certainty_by_hand(row) for row in exit] for exit in LOGITS])
BEST = np.array([[CERTAIN[: i + 1, b].argmax() for b in range(ROWS)] for i in range(EXITS)])


def run(logits, rows=ROWS):
    model = best_so_far(prescribed(logits))
    params = model.init(jax.random.key(0))
    step, state = model.steps(params), model.embed(params, jnp.arange(rows))
    return step, state, dx.run_all(step, state, EXITS)


def test_the_output_is_the_most_certain_so_far():
    _, _, outputs = run(LOGITS)
    np.testing.assert_allclose(
        jax.vmap(certainty)(jnp.asarray(LOGITS)), CERTAIN, rtol=1e-4, atol=1e-5
    )
    np.testing.assert_array_equal(outputs["current"], LOGITS)
    np.testing.assert_array_equal(outputs["logits"], LOGITS[BEST, np.arange(ROWS)[None]])
    assert 1 < len({*BEST[-1]}) and (BEST[-1] < EXITS - 1).any()


@pytest.mark.parametrize("executor", ["compacted", "masked", "per_row", "stream"])
def test_rows_exit_at_the_same_depth_and_return_their_most_certain_output(executor):
    step, state, outputs = run(LOGITS)
    threshold = np.sort(CERTAIN.max(axis=0))[2:4].mean()
    criterion = dx.criteria.gate_above(threshold, certainty)
    first = [
        next((i for i in range(EXITS) if CERTAIN[i, b] > threshold), None) for b in range(ROWS)
    ]
    assert None in first and len({*first}) > 2
    if executor == "stream":
        halted = dx.run_stream(step, state, EXITS, criterion, slots=2)
    else:
        halted = dx.run_until(step, state, EXITS, criterion, executor)
    assert halted.exit.tolist() == [EXITS - 1 if i is None else i for i in first]
    for b, i in enumerate(first):
        wanted = CERTAIN[:, b].argmax() if i is None else i
        np.testing.assert_array_equal(halted.output["logits"][b], LOGITS[wanted, b])
    np.testing.assert_array_equal(
        dx.replay(criterion, outputs).output["logits"], halted.output["logits"]
    )


def test_the_first_of_equal_maxima_is_kept_and_a_nan_never_is():
    two = LOGITS[..., :2]  # with two classes the entropy does not depend on their order
    logits = np.stack(
        [
            two[:2, 0],
            two[:2, 0][:, :, ::-1],
            two[1:3, 1],
            np.full_like(two[:2, 0], np.nan),
            two[3:5, 2],
        ]
    )
    certain = np.array([[certainty_by_hand(row) for row in exit] for exit in logits])
    np.testing.assert_allclose(certain[0], certain[1])
    _, _, outputs = run(logits, rows=2)
    best = np.array(
        [[np.nanargmax(np.round(certain[: i + 1, b], 9)) for b in range(2)] for i in range(EXITS)]
    )
    assert (best[1] == 0).all() and (best[3] == best[2]).all()
    np.testing.assert_array_equal(outputs["logits"], logits[best, np.arange(2)[None]])
    assert np.isnan(outputs["current"][3]).all()


def test_the_gradient_reaches_only_the_selected_exit():
    model = best_so_far(prescribed(LOGITS))

    def first_class(p):
        outputs = dx.run_all(model.steps(p), model.embed(p, jnp.arange(ROWS)), EXITS)
        return outputs["logits"][-1, ..., 0].sum()

    slope = np.asarray(jax.grad(first_class)(jnp.asarray(LOGITS)))
    wanted = np.zeros_like(LOGITS)
    wanted[BEST[-1], np.arange(ROWS), :, 0] = 1
    np.testing.assert_array_equal(slope, wanted)


def test_invalid_arguments():
    with pytest.raises(TypeError, match=r"^`model`"):
        best_so_far(prescribed(LOGITS)._replace(depth=(2, 3)))
    rows, one_class = jnp.arange(ROWS), jnp.asarray(LOGITS[..., :1])
    model = best_so_far(prescribed(one_class))
    with pytest.raises(ValueError, match="`logits`"):
        dx.run_all(model.steps(one_class), model.embed(one_class, rows), EXITS)
    gate = lambda p: dx.tied_step(lambda p, s: s, lambda p, s: {"gate": s["row"]}, p)
    without_logits = prescribed(LOGITS)._replace(steps=gate)
    with pytest.raises(ValueError, match="logits"):
        best_so_far(without_logits).embed(jnp.asarray(LOGITS), rows)
