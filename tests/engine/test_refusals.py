"""Bad input to the engine: each message names the argument, what came and what was wanted."""

import dataclasses

import jax
import jax.numpy as jnp
import oracle
import pytest

import dynexit as dx

LEAVE = dx.criteria.max_probability_above(0.5)


def run(step=None, state=None, depth=6, criterion=LEAVE, **kwargs):
    problem = oracle.homogeneous()
    return dx.run_until(
        step or problem.step, problem.state if state is None else state, depth, criterion, **kwargs
    )


def plain(apply):
    return dx.Step(lambda i: (), apply)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (dict(depth=0), ValueError, "`depth` must be at least 1, got 0"),
        (dict(depth=2.5), TypeError, "`depth` must be a Python integer, got float 2.5"),
        (dict(depth=[3, 3]), TypeError, "`step` is one step, so `depth` must be one integer, got"),
        (dict(step=7), TypeError, "`step` must be a dx.Step, got int"),
        (
            dict(executor="fast"),
            ValueError,
            "`executor` must be one of 'auto', 'compacted', 'masked', 'per_row', got 'fast'",
        ),
        (dict(tile=0), ValueError, "`tile` must be at least 1, got 0"),
        (dict(criterion=0.9), TypeError, "`criterion` must be a dx.Criterion, got float"),
        (dict(state={"x": jnp.zeros((0, 4))}), ValueError, r"`state` is an empty batch \(0 rows\)"),
        (
            dict(state={"x": jnp.zeros((2, 4)), "y": jnp.zeros(3)}),
            ValueError,
            r"leading axes differ: `state`\['x'\] has 2, `state`\['y'\] has 3",
        ),
        (
            dict(criterion=dx.criteria.max_probability_above(jnp.full(6, 0.5))),
            ValueError,
            r"has thresholds of shape \[6\], but the run has 6 exits and wants \[5\] \(or temperatures of \[7\], where \[6\]",
        ),
        (
            dict(criterion=dx.criteria.at_depth(jnp.ones(7, jnp.int32))),
            ValueError,
            "for a batch of 13 rows",
        ),
        (
            dict(criterion=dx.Criterion(lambda i, o, m: (o["gate"], m), lambda i, s, m: s > 0)),
            TypeError,
            r"`criterion.decide` must return the pair \(exit, memory\)",
        ),
        (
            dict(criterion=dx.Criterion(lambda i, o, m: o["gate"], lambda i, s, m: (s > 0, m))),
            TypeError,
            r"`criterion.score` must return the pair \(score, memory\)",
        ),
        (
            dict(criterion=dx.Criterion(lambda i, o, m: (i, m), lambda i, s, m: (s > 0, m))),
            ValueError,
            "`criterion.score` must return a score with the leading axis 13",
        ),
        (
            dict(criterion=dx.Criterion(lambda i, o, m: (o["gate"], m), lambda i, s, m: (s, m))),
            ValueError,
            r"must return exit as bool\[13\], one entry per row, got float32\[13\]",
        ),
        (
            dict(
                criterion=dx.Criterion(
                    lambda i, o, m: (o["gate"], m),
                    lambda i, s, m: (m > 1, m.astype(jnp.int32)),
                    init_decide=lambda b: jnp.zeros(b),
                )
            ),
            ValueError,
            "`criterion.decide` changed its memory",
        ),
        (
            dict(
                criterion=dx.Criterion(
                    lambda i, o, m: (m, m.astype(jnp.int32)),
                    lambda i, s, m: (s > 1, m),
                    lambda b, output: jnp.zeros(b),
                )
            ),
            ValueError,
            "`criterion.score` changed its memory",
        ),
        (
            dict(step=plain(lambda w, i, h: h)),
            TypeError,
            r"`step.apply` must return the pair \(state, output\), got dict",
        ),
        (
            dict(step=plain(lambda w, i, h: ({**h, "x": h["x"][:, :2]}, h["bias"]))),
            ValueError,
            r"`step.apply` changed state\['x'\] from float32\[13, 4, 6\] to float32\[13, 2, 6\]",
        ),
        (
            dict(step=plain(lambda w, i, h: (h["x"], h["bias"]))),
            TypeError,
            "`step.apply` changed the structure of the state",
        ),
        (
            dict(step=plain(lambda w, i, h: (h, h["bias"].mean()))),
            ValueError,
            r"was given 13 rows and returned output of shape \[\]; its leading axis must be the 13 rows",
        ),
        (
            dict(step=plain(lambda w, i, h: (h, ()))),
            ValueError,
            "returned an output without arrays",
        ),
    ],
)
def test_bad_input_is_refused_by_name(arguments, kind, message):
    with pytest.raises(kind, match=message):
        run(**arguments)


def test_stages_are_refused_by_place():
    problem = oracle.staged()
    leave = dx.criteria.patience(1)
    with pytest.raises(ValueError, match="`step` has 4 stages and `depth` has 3"):
        dx.run_until(problem.step, problem.state, [2, 1, 3], leave)
    with pytest.raises(ValueError, match=r"`depth\[1\]` must be at least 1, got 0"):
        dx.run_until(problem.step, problem.state, [2, 0, 3, 1], leave)
    with pytest.raises(
        ValueError, match=r"`depth\[1\]` is 2, and `step\[1\]` is made for 1 blocks at most"
    ):
        dx.run_until(problem.step, problem.state, [2, 2, 3, 1], leave)
    endless = [dataclasses.replace(step, depth=None) for step in problem.step]
    with pytest.raises(ValueError, match=r"`step\[1\].apply` changed state\['x'\]"):
        dx.run_until(endless, problem.state, [2, 2, 3, 1], leave)
    wider = dx.tied_step(
        lambda p, h: h,
        lambda p, h: {**oracle.head(p, h), "gate": h["bias"]},
        {"out": jnp.ones((6, 5))},
    )
    with pytest.raises(
        ValueError,
        match=r"`step\[1\]` gives output\['gate'\] as float32\[13, 6\], `step\[0\]` as float32\[13\]",
    ):
        dx.run_all([problem.step[0], wider], problem.state, [2, 1])


def test_blocks_a_step_must_divide():
    params = oracle.parameters(jax.random.key(0), 6)
    with pytest.raises(ValueError, match="`blocks` must divide the 6 blocks of `params`, got 4"):
        dx.stacked_step(oracle.block, oracle.head, params, blocks=4)
    with pytest.raises(TypeError, match=r"`blocks` must be a Python integer, got float 2.0"):
        dx.stacked_step(oracle.block, oracle.head, params, blocks=2.0)
    with pytest.raises(TypeError, match=r"`blocks` must be a Python integer, got float 1.5"):
        dx.tied_step(oracle.block, oracle.head, params, blocks=1.5)
    step = dx.stacked_step(oracle.block, oracle.head, params, blocks=2)
    with pytest.raises(
        ValueError, match="`depth` is 5, not a multiple of the 2 blocks that one step executes"
    ):
        run(step=step, depth=5)
    with pytest.raises(ValueError, match="`params` must hold at least one block, got none"):
        dx.switched_step(oracle.block, oracle.head, [])


@pytest.mark.parametrize("blocks", [1, 2])
def test_no_run_goes_deeper_than_there_are_weights(blocks):
    params = oracle.parameters(jax.random.key(0), 4)
    stacked = dx.stacked_step(oracle.block, oracle.head, params, blocks=blocks)
    switched = dx.switched_step(oracle.block, oracle.head, dx.core.stacking.unstack(params))
    for step in (stacked, switched):
        for go in (
            lambda s: run(step=s, depth=6),
            lambda s: dx.run_all(s, oracle.staged().state, 6),
        ):
            with pytest.raises(
                ValueError, match="`depth` is 6, and `step` is made for 4 blocks at most"
            ):
                go(step)
    assert run(step=stacked, depth=4).exit_depth.max() <= 4


def test_switched_blocks_of_different_shapes_are_named():
    """Heads of different class counts, and blocks of different widths."""
    block, head = lambda p, h: h @ p["block"], lambda p, h: {"logits": h @ p["head"]}
    of = lambda width, classes: {"block": jnp.ones((3, width)), "head": jnp.ones((width, classes))}
    for other, leaf in ((of(3, 5), r"output\['logits'\]"), (of(4, 2), "state")):
        step = dx.switched_step(block, head, [of(3, 2), of(3, 2), other])
        with pytest.raises(ValueError, match=rf"^`params\[2\]` must give {leaf} as float32"):
            dx.run_all(step, jnp.ones((2, 3)), 3)
    wrong = dx.switched_step(lambda p, h: h @ p, lambda p, h: h.logits, [jnp.ones((3, 3))] * 2)
    with pytest.raises(AttributeError, match="logits"):
        dx.run_all(wrong, jnp.ones((2, 3)), 2)


def test_a_model_is_no_step():
    with pytest.raises(
        TypeError, match=r"`step` must be a dx.Step, got a dx.Model: hand in `model.steps"
    ):
        dx.run_all(dx.models.Mlp(width=8, depth=2).build((4,), 2), jnp.ones((3, 4)), 2)


def test_replay_refuses_nothing_to_replay():
    with pytest.raises(ValueError, match="`outputs` must have at least one exit"):
        dx.replay(LEAVE, jnp.zeros((0, 3, 4)))
    with pytest.raises(ValueError, match=r"is an empty batch"):
        dx.replay(LEAVE, jnp.zeros((2, 0, 4)))
    with pytest.raises(
        ValueError, match=r"thresholds of shape \[5\], but the run has 3 exits and wants \[2\]"
    ):
        dx.replay(dx.criteria.max_probability_above(jnp.full(5, 0.5)), jnp.zeros((3, 2, 4)))


@pytest.mark.parametrize("name", ["run_until", "run_stream"])
def test_a_reverse_gradient_is_refused_by_name_and_a_forward_one_is_taken(name):
    rule = dx.criteria.at_depth(jnp.array([1, 3]))

    def total(p):
        step = dx.tied_step(lambda p, h: h * p, lambda p, h: h, p)
        return getattr(dx, name)(step, jnp.ones(2), 4, rule).output.sum()

    for reverse in (jax.grad(total), jax.jit(jax.grad(total)), jax.grad(jax.jit(total))):
        with pytest.raises(TypeError, match=rf"`dx.{name}` has no gradient .* `dx.run_bounded`"):
            reverse(jnp.float32(2.0))
    value, slope = jax.jvp(total, (jnp.float32(2.0),), (jnp.float32(1.0),))
    assert (float(value), float(slope)) == (2.0 + 8.0, 1.0 + 12.0)
