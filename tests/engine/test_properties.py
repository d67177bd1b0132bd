"""Random networks, batches, criteria and schedules against a Python loop over rows.

The arithmetic is exact in every dtype: states are integers modulo 7, weights are -1, 0 and 1,
logits are quarters. So no decision flips by rounding, the loop is numpy in float64, and results are
compared for equality.
"""

from typing import Any, NamedTuple

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx

FEW: dict = {
    "derandomize": True,
    "deadline": None,
    "database": None,
    "suppress_health_check": list(hypothesis.HealthCheck),
}
FEW["phases"] = (hypothesis.Phase.generate,)  # shrinking compiles hundreds of programs
MANY = hypothesis.settings(max_examples=200, **FEW)
DTYPES = ("float32", "bfloat16", "float16")
CLASSES = 3


class Part(NamedTuple):
    """Blocks of one stage; `tied` has one weight tree for all of them."""

    kind: str  # "stacked", "switched" or "tied"
    blocks: int  # a step
    weights: list
    depth: int


class Problem(NamedTuple):
    """Attributes:
    parts: one, handed to the engine as it is, or several, handed over as stages.
    form: of the state, "bare", "dict" or "nested".
    rows: of the batch, arrays `[B, ...]`: x, age and flag.
    rule: the criterion as nested tuples.
    """

    parts: list[Part]
    form: str
    rows: tuple
    rule: tuple

    @property
    def several(self):
        return len(self.parts) > 1

    @property
    def exits(self):
        return sum(p.depth // p.blocks for p in self.parts)


# The network, as the engine gets it.


def pack(x, age, flag, like):
    """A state of the form of `like`, a state or the name of a form; in a bare one there is x alone."""
    form = (
        like if isinstance(like, str) else {dict: "dict", tuple: "nested"}.get(type(like), "bare")
    )
    return {"bare": x, "dict": {"x": x, "age": age}, "nested": (age, ({"x": x}, flag))}[form]


def unpack(state):
    if isinstance(state, dict):
        return state["x"], state["age"], None
    if isinstance(state, tuple):
        return state[1][0]["x"], state[0], state[1][1]
    return state, None, None


def block(p, state):
    x, age, flag = unpack(state)
    dtype = p["w"].dtype
    shift = p["k"] if age is None else (p["k"] + age % 2)[:, None]
    x = jnp.mod(x.astype(dtype) @ p["w"] + shift.astype(dtype), jnp.asarray(7, dtype))
    return pack(
        x, None if age is None else (3 * age + p["k"]) % 97, None if flag is None else ~flag, state
    )


def head(p, state):
    x, age, _ = unpack(state)
    logits = x.astype(p["out"].dtype) @ p["out"]
    return logits if age is None else {"logits": logits, "age": age}


def step_of(part):
    if part.kind == "tied":
        return dx.tied_step(block, head, part.weights[0])
    if part.kind == "switched":
        return dx.switched_step(block, head, part.weights)
    return dx.stacked_step(
        block, head, jax.tree.map(lambda *a: np.stack(a), *part.weights), blocks=part.blocks
    )


def network(problem):
    """`step` and `depth` as the engine takes them."""
    steps, depths = [step_of(p) for p in problem.parts], [p.depth for p in problem.parts]
    return (steps, depths) if problem.several else (steps[0], depths[0])


def criterion_of(rule):
    name, *values = rule
    if name in ("any_of", "all_of"):
        return getattr(dx.criteria, name)(*map(criterion_of, values))
    if name == "not_before":
        return dx.criteria.not_before(values[0], criterion_of(values[1]))
    return {
        "at_depth": dx.criteria.at_depth,
        "max": dx.criteria.max_probability_above,
        "patience": dx.criteria.patience,
    }[name](*values)


# The oracle: a row, block by block.


def first_memory(rule, b):
    name, *values = rule
    if name in ("any_of", "all_of"):
        return tuple(first_memory(r, b) for r in values)
    if name == "not_before":
        return first_memory(values[1], b)
    return {"at_depth": lambda: values[0][b], "max": lambda: (), "patience": lambda: (-1, 0)}[
        name
    ]()


def verdict(rule, exit, logits, memory):
    """What the rule says of one row at one exit, and what it then remembers."""
    name, *values = rule
    if name in ("any_of", "all_of"):
        said = [verdict(r, exit, logits, m) for r, m in zip(values, memory, strict=True)]
        return (any if name == "any_of" else all)(halt for halt, _ in said), tuple(
            m for _, m in said
        )
    if name == "not_before":
        halt, memory = verdict(values[1], exit, logits, memory)
        return halt and exit + 1 >= values[0], memory
    if name == "at_depth":
        return exit + 1 >= memory, memory
    if name == "patience":
        prediction = -1 if np.isnan(logits).any() else int(np.argmax(logits))
        agreements = memory[1] + 1 if prediction == memory[0] and prediction >= 0 else 0
        return agreements >= values[0], (prediction, agreements)
    p = np.exp(logits - logits.max())
    score, threshold = (p / p.sum()).max(), np.ravel(values[0])
    if not threshold.size:
        return False, memory
    threshold = threshold[min(exit, threshold.size - 1)]
    hypothesis.assume(not abs(score - threshold) < 1e-4)
    return bool(score > threshold), memory


def parted(rule, memory):
    """A memory as the engine keeps it: that of the scores, and that of the decisions."""
    name, *values = rule
    if name in ("any_of", "all_of"):
        return tuple(zip(*(parted(r, m) for r, m in zip(values, memory, strict=True)), strict=True))
    if name == "not_before":
        return parted(values[1], memory)
    return {"patience": lambda: memory, "at_depth": lambda: ((), memory), "max": lambda: ((), ())}[
        name
    ]()


class Row(NamedTuple):
    exit: int
    depth: int
    output: Any
    states: list
    memory: Any
    nans: int


def run_row(problem, b):
    """Row b alone: the definition. A state for every stage: as the row left it, None where it never
    came.
    """
    x, age, flag = (
        np.asarray(a[b], t) for a, t in zip(problem.rows, (np.float64, int, bool), strict=True)
    )
    memory, states, found, exit, nans, depth = first_memory(problem.rule, b), [], None, -1, 0, 0
    for part in problem.parts:
        if found is not None:
            states.append(None)
            continue
        for n in range(part.depth):
            p = part.weights[0 if part.kind == "tied" else n]
            w, k = np.asarray(p["w"], np.float64), int(p["k"])
            x = np.mod(x @ w + k + (0 if problem.form == "bare" else age % 2), 7)
            age, flag, depth = (3 * age + k) % 97, ~flag, depth + 1
            if (n + 1) % part.blocks:
                continue
            exit += 1
            logits = x @ np.asarray(p["out"], np.float64)
            halt, memory = verdict(problem.rule, exit, logits, memory)
            nan = bool(np.isnan(logits).any())
            nans += nan
            if (halt and not nan) or exit == problem.exits - 1:
                found = logits if problem.form == "bare" else {"logits": logits, "age": age}
                break
        states.append(pack(x, age, flag, problem.form))
    return Row(exit, depth, found, states, parted(problem.rule, memory), nans)


def run_rows(problem):
    return [run_row(problem, b) for b in range(len(problem.rows[0]))]


def assert_equal(halted, rows, several, replayed=False):
    """`halted` is what the loop over rows found, exactly."""
    same = lambda got, want: np.testing.assert_array_equal(
        np.asarray(got, np.float64), np.asarray(want, np.float64)
    )
    same(halted.exit, [r.exit for r in rows])
    same(halted.nan_exits, [r.nans for r in rows])
    same(halted.exit_depth, [r.exit + 1 if replayed else r.depth for r in rows])
    for b, row in enumerate(rows):
        of_row = lambda tree, b=b: [np.asarray(a, np.float64)[b] for a in jax.tree.leaves(tree)]
        assert jax.tree.leaves(row.output)[-1].shape == of_row(halted.output)[-1].shape
        for got, want in ((halted.output, row.output), (halted.memory, row.memory)):
            jax.tree.map(same, of_row(got), jax.tree.leaves(want))
        if not replayed and halted.state is not None:
            for got, want in zip(
                halted.state if several else [halted.state], row.states, strict=True
            ):
                jax.tree.map(
                    same,
                    of_row(got),
                    [0 * a for a in of_row(got)] if want is None else jax.tree.leaves(want),
                )


# How the engine may run it.


def until(executor):
    def run(problem, step, depth, state, criterion, draw):
        keep = draw(st.booleans()) if executor == "compacted" else True
        tile = draw(tiles(problem)) if executor == "compacted" else None
        return dx.run_until(step, state, depth, criterion, executor, tile, keep_state=keep)

    return run


def bounded(executor):
    def run(problem, step, depth, state, criterion, draw):
        return dx.run_bounded(
            step,
            state,
            depth,
            criterion,
            executor,
            draw(tiles(problem)) if executor == "compacted" else None,
        )

    return run


def streamed(problem, step, depth, state, criterion, draw):
    return dx.run_stream(step, state, depth, criterion, slots=draw(st.integers(1, 26)))


def replayed(problem, step, depth, state, criterion, draw):
    return dx.replay(
        criterion, jax.jit(lambda step, state: dx.run_all(step, state, depth))(step, state)
    )


def sharded(problem, step, depth, state, criterion, draw):
    each = problem.parts[0].blocks
    rebalance = (
        sorted(draw(st.sets(st.sampled_from(range(each, depth, each))))) if depth > each else []
    )
    mesh = jax.make_mesh((2,), ("data",))
    return dx.run_sharded(
        step, state, depth, criterion, mesh, rebalance=rebalance, tile=draw(tiles(problem))
    )


EVERYWHERE = {
    "compacted": until("compacted"),
    "masked": until("masked"),
    "per_row": until("per_row"),
    "bounded, masked": bounded("masked"),
    "bounded, compacted": bounded("compacted"),
    "replay": replayed,
}
ONE_STEP = {"stream": streamed, "sharded": sharded}


def tilings(rows):
    sizes = st.sets(st.integers(1, rows + 3), min_size=1, max_size=3).map(
        lambda s: sorted(s, reverse=True)
    )
    cost = lambda s: st.lists(st.floats(0.5, 8), min_size=len(s), max_size=len(s))
    return sizes.flatmap(lambda s: cost(s).map(lambda c: dx.Tiling(tuple(s), tuple(c))))


def tiles(problem):
    rows = len(problem.rows[0])
    return st.one_of(
        st.none(),
        st.integers(1, rows + 3),
        tilings(rows),
        st.tuples(*(tilings(rows) for _ in problem.parts)),
    )


@st.composite
def rules(draw, rows, exits):
    """A criterion for so many rows and exits, one in four of them made of two others."""
    numbers = np.random.default_rng(draw(st.integers(0, 999)))
    leaf = lambda: draw(
        st.one_of(
            st.just(("at_depth", numbers.integers(1, exits + 2, rows).astype(np.int32))),
            st.floats(0.36, 0.9).map(lambda t: ("max", t)),
            st.just(("max", numbers.uniform(0.36, 0.9, exits - 1))),
            st.integers(1, 3).map(lambda k: ("patience", k)),
        )
    )
    made = draw(st.sampled_from(["leaf"] * 5 + ["any_of", "all_of", "not_before"]))
    if made == "leaf":
        return leaf()
    return (
        (made, draw(st.integers(1, exits + 1)), leaf())
        if made == "not_before"
        else (made, leaf(), leaf())
    )


@st.composite
def problems(draw, dtypes=DTYPES, poison=True):
    numbers = np.random.default_rng(draw(st.integers(0, 999)))
    rows, dtype, form = (
        draw(st.integers(1, 24)),
        draw(st.sampled_from(dtypes)),
        draw(st.sampled_from(["bare", "dict", "nested"])),
    )
    several, width, inner = draw(st.booleans()) and draw(st.booleans()), 4, dtype
    x = numbers.integers(0, 7, (rows, width)).astype(jnp.dtype(dtype))
    parts, left = [], draw(st.integers(1 + several, 7))
    while left and len(parts) < 4:
        kind, each = draw(
            st.sampled_from([("stacked", 1), ("stacked", 2), ("switched", 1), ("tied", 1)])
        )
        depth = (
            draw(st.integers(1, left - (not parts)) | st.just(1)) if several else left
        )  # one block may change width and dtype
        each = each if depth % each == 0 else 1
        wide, narrow = width, draw(st.sampled_from([2, 3])) if depth == 1 and several else width
        inner = draw(st.sampled_from([dtype, "float32"])) if depth == 1 and several else inner
        weights = [
            {
                "w": numbers.integers(-1, 2, (wide, narrow)).astype(jnp.dtype(inner)),
                "out": (numbers.integers(-1, 2, (narrow, CLASSES)) / 4).astype(jnp.dtype(dtype)),
                "k": np.int32(numbers.integers(0, 5)),
            }
            for _ in range(1 if kind == "tied" else depth)
        ]
        parts.append(Part(kind, each, weights, depth))
        width, left = narrow, left - depth
    if poison and draw(st.integers(0, 3)) == 0:
        x[numbers.integers(rows), 0] = np.nan
    age, flag = (
        numbers.integers(0, 97, rows).astype(np.int32),
        numbers.integers(0, 2, (rows, 2)).astype(bool),
    )
    problem = Problem(parts, form, (x, age, flag), ())
    return problem._replace(rule=draw(rules(rows, problem.exits)))


def chosen(problem, order):
    """The problem for some of its rows."""
    pick = lambda rule: tuple(
        value[order]
        if rule[0] == "at_depth" and n
        else pick(value)
        if isinstance(value, tuple)
        else value
        for n, value in enumerate(rule)
    )
    return problem._replace(rows=tuple(a[order] for a in problem.rows), rule=pick(problem.rule))


def engine(problem, way, draw):
    step, depth = network(problem)
    run = {**EVERYWHERE, **ONE_STEP}[way]
    return run(
        problem, step, depth, pack(*problem.rows, problem.form), criterion_of(problem.rule), draw
    )


def ways(problem, most):
    even = len(problem.rows[0]) % 2 == 0
    fit = [*EVERYWHERE] + ([] if problem.several else ["stream"] + ["sharded"] * even)
    return st.lists(st.sampled_from(fit), min_size=min(2, most), max_size=most, unique=True)


def check_schedules(problem, data):
    rows = run_rows(problem)
    for way in data.draw(ways(problem, 3)):
        halted = engine(problem, way, data.draw)
        assert_equal(halted, rows, problem.several, way == "replay")
        needed, ran = sum(r.exit + 1 for r in rows), int(np.sum(halted.rows_executed))
        if way in ("per_row", "replay"):
            assert ran == needed
        elif "masked" in way:
            assert ran == len(rows) * (1 + max(r.exit for r in rows))
        else:
            assert ran >= needed


def check_company(problem, data):
    """The order of the batch and who else is in it change nothing: the loop over the rows is asked
    once.
    """
    rows, order = (
        run_rows(problem),
        np.asarray(data.draw(st.permutations(range(len(problem.rows[0]))))),
    )
    (way,) = data.draw(ways(problem, 1))
    replay = way == "replay"
    assert_equal(
        engine(chosen(problem, order), way, data.draw),
        [rows[b] for b in order],
        problem.several,
        replay,
    )
    few = order[: data.draw(st.integers(1, 3))]
    alone = chosen(problem, few)
    way = way if way != "sharded" or len(few) == 2 else "stream"
    assert_equal(engine(alone, way, data.draw), [rows[b] for b in few], problem.several, replay)


def gradient_of_rows(problem, rows, of_logits, of_x):
    """Backwards by hand, row by row: modulo 7 has the slope 1 and decisions have none. For x, and
    for w and out of each block.
    """
    weights = problem.parts[0].weights
    of_w, of_out = ([np.zeros(p[name].shape) for p in weights] for name in ("w", "out"))
    of_start = np.zeros(problem.rows[0].shape)
    for b, row in enumerate(rows):
        at = [0 if problem.parts[0].kind == "tied" else n for n in range(row.depth)]
        x, age, entered = problem.rows[0][b].astype(np.float64), int(problem.rows[1][b]), []
        for n in at:
            w, k = weights[n]["w"], int(weights[n]["k"])
            entered.append(x)
            x = np.mod(x @ w + k + (0 if problem.form == "bare" else age % 2), 7)
            age = (3 * age + k) % 97
        of_out[at[-1]] += np.outer(x, of_logits[b])
        g = of_x[b] + weights[at[-1]]["out"] @ of_logits[b]
        for n, x in zip(reversed(at), reversed(entered), strict=True):
            of_w[n] += np.outer(x, g)
            g = weights[n]["w"] @ g
        of_start[b] = g
    return of_start, of_w, of_out


def check_gradients(problem, data):
    hypothesis.assume(not problem.several)
    rows, (part,) = run_rows(problem), problem.parts
    numbers = np.random.default_rng(len(rows))
    of_logits = numbers.integers(-2, 3, (len(rows), CLASSES)).astype(np.float32)
    of_x = numbers.integers(-2, 3, problem.rows[0].shape).astype(np.float32)
    floats = [{"w": p["w"], "out": p["out"]} for p in part.weights]
    tile = data.draw(tiles(problem))

    for executor in ("masked", "compacted"):

        def loss(floats, x, executor=executor):
            whole = [{**f, "k": p["k"]} for f, p in zip(floats, part.weights, strict=True)]
            stack = lambda *a: jnp.stack(a)
            step = {
                "tied": lambda: dx.tied_step(block, head, whole[0]),
                "switched": lambda: dx.switched_step(block, head, whole),
                "stacked": lambda: dx.stacked_step(
                    block, head, jax.tree.map(stack, *whole), blocks=part.blocks
                ),
            }[part.kind]()
            state = pack(x, *problem.rows[1:], problem.form)
            halted = dx.run_bounded(
                step, state, part.depth, criterion_of(problem.rule), executor, tile
            )
            logits = halted.output if problem.form == "bare" else halted.output["logits"]
            return (logits * of_logits).sum() + (unpack(halted.state)[0] * of_x).sum()

        of_floats, of_start = jax.jit(jax.grad(loss, argnums=(0, 1)))(floats, problem.rows[0])
        start, w, out = gradient_of_rows(problem, rows, of_logits, of_x)
        np.testing.assert_array_equal(of_start, start, err_msg=executor)
        for n, got in enumerate(of_floats):
            np.testing.assert_array_equal(got["w"], w[n], err_msg=executor)
            np.testing.assert_array_equal(got["out"], out[n], err_msg=executor)


def tried(check, examples=None, **how):
    """`check` on random problems: so many in every run of the tests, 200 by hand."""
    given = hypothesis.given(problem=problems(**how), data=st.data())
    if examples is not None:
        return hypothesis.settings(max_examples=examples, **FEW)(given(check))

    def check_and_forget(problem, data):
        check(problem, data)
        jax.clear_caches()

    return pytest.mark.slow(MANY(given(check_and_forget)))


EXACT = {"dtypes": ("float32",), "poison": False}

test_every_schedule_is_the_loop_over_rows = tried(check_schedules, 8)
test_every_schedule_is_the_loop_over_rows_at_length = tried(check_schedules)
test_company_changes_no_row = tried(check_company, 6)
test_company_changes_no_row_at_length = tried(check_company)
test_gradients_are_those_of_each_row_alone = tried(check_gradients, 3, **EXACT)
test_gradients_are_those_of_each_row_alone_at_length = tried(check_gradients, **EXACT)
