"""The most certain answer so far against a loop over rows and exits, in all schedules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx
from dynexit.transforms.best_so_far import best_so_far as best_so_far
from dynexit.transforms.best_so_far import certainty

EXITS, ROWS, PLACES, CLASSES = 5, 7, 3, 4
SAID = 2 * np.random.default_rng(0).normal(size=(EXITS, ROWS, PLACES, CLASSES)).astype(np.float32)


def speaking(said, depth=EXITS):
    """A model whose row b says `said[i, b]` at exit i; its inputs are the rows' numbers."""
    says = lambda p, s: {"logits": p[s["exit"], s["row"]]}
    step = lambda p: dx.tied_step(lambda p, s: s | {"exit": s["exit"] + 1}, says, p)
    embed = lambda p, rows: {"row": rows, "exit": jnp.full(rows.shape, -1, jnp.int32)}
    return dx.Model(
        lambda key: jnp.asarray(said), embed, step, depth, tuple(f"s{i}" for i in range(EXITS))
    )


def certainty_by_hand(logits):
    """Of one row at one exit."""
    found = []
    for place in logits.reshape(-1, logits.shape[-1]).astype(np.float64):
        p = np.exp(place) / np.exp(place).sum()
        found.append(1 + (p * np.log(p)).sum() / np.log(len(p)))
    return np.mean(found)


CERTAIN = np.array([[certainty_by_hand(row) for row in exit] for exit in SAID])
BEST = np.array([[CERTAIN[: i + 1, b].argmax() for b in range(ROWS)] for i in range(EXITS)])


def run(said, rows=ROWS):
    model = best_so_far(speaking(said))
    params = model.init(jax.random.key(0))
    step, state = model.steps(params), model.embed(params, jnp.arange(rows))
    return step, state, dx.run_all(step, state, EXITS)


def test_the_answer_is_the_most_certain_so_far():
    _, _, outputs = run(SAID)
    np.testing.assert_allclose(
        jax.vmap(certainty)(jnp.asarray(SAID)), CERTAIN, rtol=1e-4, atol=1e-5
    )
    np.testing.assert_array_equal(outputs["current"], SAID)
    np.testing.assert_array_equal(outputs["logits"], SAID[BEST, np.arange(ROWS)[None]])
    assert 1 < len({*BEST[-1]}) and (BEST[-1] < EXITS - 1).any()


@pytest.mark.parametrize("executor", ["compacted", "masked", "per_row", "stream"])
def test_rows_leave_as_without_it_but_the_last_gives_its_best(executor):
    step, state, outputs = run(SAID)
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
        np.testing.assert_array_equal(halted.output["logits"][b], SAID[wanted, b])
    np.testing.assert_array_equal(
        dx.replay(criterion, outputs).output["logits"], halted.output["logits"]
    )


def test_of_equals_the_first_and_a_nan_is_never_better():
    two = SAID[..., :2]  # of two classes either order has the same sums
    said = np.stack(
        [
            two[:2, 0],
            two[:2, 0][:, :, ::-1],
            two[1:3, 1],
            np.full_like(two[:2, 0], np.nan),
            two[3:5, 2],
        ]
    )
    certain = np.array([[certainty_by_hand(row) for row in exit] for exit in said])
    np.testing.assert_allclose(certain[0], certain[1])
    _, _, outputs = run(said, rows=2)
    best = np.array(
        [[np.nanargmax(np.round(certain[: i + 1, b], 9)) for b in range(2)] for i in range(EXITS)]
    )
    assert (best[1] == 0).all() and (best[3] == best[2]).all()
    np.testing.assert_array_equal(outputs["logits"], said[best, np.arange(2)[None]])
    assert np.isnan(outputs["current"][3]).all()


def test_the_gradient_goes_to_the_exit_that_was_kept():
    model = best_so_far(speaking(SAID))
    answer = lambda said: dx.run_all(model.steps(said), model.embed(said, jnp.arange(ROWS)), EXITS)[
        "logits"
    ][-1]
    slope = np.asarray(jax.grad(lambda said: answer(said)[..., 0].sum())(jnp.asarray(SAID)))
    wanted = np.zeros_like(SAID)
    wanted[BEST[-1], np.arange(ROWS), :, 0] = 1
    np.testing.assert_array_equal(slope, wanted)


def test_refusals():
    with pytest.raises(
        TypeError, match="`model` must be one block or stack of blocks, not 2 stages"
    ):
        best_so_far(speaking(SAID)._replace(depth=(2, 3)))
    model = best_so_far(speaking(SAID[..., :1]))
    with pytest.raises(ValueError, match="`logits` must have at least 2 classes"):
        dx.run_all(
            model.steps(jnp.asarray(SAID[..., :1])),
            model.embed(jnp.asarray(SAID[..., :1]), jnp.arange(ROWS)),
            EXITS,
        )
    silent = speaking(SAID)._replace(
        steps=lambda p: dx.tied_step(lambda p, s: s, lambda p, s: {"gate": s["row"]}, p)
    )
    with pytest.raises(ValueError, match="the output has the keys"):
        best_so_far(silent).embed(jnp.asarray(SAID), jnp.arange(ROWS))
