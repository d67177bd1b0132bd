"""Records equal every block applied by hand, whatever the batch size; passes equal stored outputs;
memory does not grow with the vocabulary times the rows.
"""

import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stored

import dynexit as dx
from dynexit.calibration import rules
from dynexit.calibration.choose import choose
from dynexit.core.labels import IGNORED, share
from dynexit.core.stages import stages_of
from dynexit.data.source import from_leaves
from dynexit.evaluation.batches import batches, fingerprint, prepared
from dynexit.evaluation.calibrate import calibrate
from dynexit.evaluation.recording import fitted, record


def by_hand(experiment, params, inputs):
    """Logits [E, M, C], block by block."""
    state = experiment.model.embed(params, experiment.prepare(jnp.asarray(inputs)))
    read = []
    for step, steps, _, _ in stages_of(experiment.model.steps(params), experiment.model.depth):
        for i in range(steps):
            state, output = step.apply(step.select(i), i, state)
            read.append(np.asarray(output, np.float32))
    return np.stack(read)


@pytest.mark.parametrize("batch_size", [7, 43, 64])
def test_records_are_every_exit_of_every_example(experiment, params, batch_size, operating_point):
    criterion = experiment.method.criterion(operating_point)
    found = record(experiment, params, experiment.test, batch_size, criterion)
    examples = experiment.test.examples()
    logits, labels = by_hand(experiment, params, examples["inputs"]), examples["labels"]
    log_p = np.asarray(jax.nn.log_softmax(logits))
    np.testing.assert_allclose(found.scores, np.exp(log_p).max(-1), atol=1e-5)
    np.testing.assert_array_equal(found.predictions, logits.argmax(-1))
    np.testing.assert_array_equal(found.right, logits.argmax(-1) == labels)
    wanted = -np.take_along_axis(log_p, np.tile(labels[:, None], (5, 1, 1)), axis=-1)[..., 0]
    np.testing.assert_allclose(found.losses, wanted, atol=1e-5)
    np.testing.assert_array_equal(found.labels, labels)
    assert found.counts.all() and not found.nan.any() and found.split == "test"
    assert found.scores.dtype == found.losses.dtype == np.float32


def test_half_precision_scores_are_kept_as_float32(experiment, params, operating_point):
    cast = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)
    half = experiment._replace(prepare=lambda x: x.astype(jnp.bfloat16) / 8)
    found = record(half, cast, experiment.test, 16, experiment.method.criterion(operating_point))
    assert found.scores.dtype == np.float32


def test_batches_read_memory_maps_in_parts(tmp_path):
    mapped = np.memmap(tmp_path / "x", np.float32, "w+", shape=(11, 3))
    mapped[:] = np.arange(33).reshape(11, 3)
    examples = {"inputs": {"a": mapped}, "labels": np.arange(11)}
    got = list(batches(examples, 4))
    assert [b.kept for b in got] == [4, 4, 3] and got[-1].rows.tolist() == [8, 9, 10, 0]
    np.testing.assert_array_equal(np.concatenate([b.inputs["a"] for b in got])[:11], mapped)
    assert not isinstance(got[0].inputs["a"], np.memmap) or got[0].inputs["a"].nbytes == 48
    assert fingerprint(examples) == fingerprint(
        {"inputs": {"a": np.array(mapped)}, "labels": np.arange(11)}
    )


def test_fingerprints_tell_splits_apart(experiment, monkeypatch):
    test, again = (
        experiment.test.examples(),
        {k: v.copy() for k, v in experiment.test.examples().items()},
    )
    assert fingerprint(test) == fingerprint(again) != fingerprint(experiment.calibration.examples())
    whole = fingerprint(test)
    monkeypatch.setattr("dynexit.evaluation.batches.HASHED", 5)
    assert fingerprint(test) == whole, "in parts as at once"
    again["labels"][3] += 1
    assert whole != fingerprint(again)


# A language model: rows of L places, some without a label, and a vocabulary.


def language_model(vocabulary, rows, exits=4, places=6, width=8, ignored=True):
    """An experiment of `exits` exits whose logits are one small matrix product of the inputs."""

    def init(key):
        a, b, c = jax.random.split(key, 3)
        shared = jax.random.normal(b, (1, width, vocabulary))
        own = jax.random.normal(c, (exits, width, vocabulary))
        unlike = jnp.linspace(0.3, 0.0, exits)[:, None, None]  # exits become alike with depth
        return {"embed": jax.random.normal(a, (97, width)), "heads": shared + unlike * own}

    block = lambda p, h: 1.2 * h
    head = lambda p, h: h @ p
    steps = lambda params: dx.stacked_step(block, head, params["heads"])
    model = dx.Model(init, lambda p, x: p["embed"][x], steps, exits, tuple("abcdefghijkl"[:exits]))

    def source(split, seed):
        draw = np.random.default_rng(seed)
        labels = draw.integers(0, vocabulary, (rows, places)).astype(np.int32)
        if ignored:
            labels[draw.random((rows, places)) < 0.3] = IGNORED
            labels[:2] = IGNORED
        return from_leaves(
            split, {"inputs": draw.integers(0, 97, (rows, places)), "labels": labels}
        )

    method = dx.methods.confidence_exits(shared=8)._replace(score=share)
    splits = source("train", 1), source("calibration", 2), source("test", 3)
    return dx.Experiment(model, method, *splits)


def learnt(experiment, params):
    """The calibration split with labels that the last exit is often right about."""
    examples = experiment.calibration.examples()
    logits = all_logits(experiment, params, examples)
    guess = np.asarray(jax.random.categorical(jax.random.key(5), 3 * logits[-1]))
    labels = np.where(examples["labels"] == IGNORED, IGNORED, guess).astype(np.int32)
    return experiment._replace(
        calibration=from_leaves("calibration", {**examples, "labels": labels})
    )


def all_logits(experiment, params, examples):
    model = experiment.model
    state = model.embed(params, jnp.asarray(examples["inputs"]))
    return dx.run_all(model.steps(params), state, model.depth)


@pytest.mark.parametrize("batch_size", [16, 50])
def test_passes_over_batches_choose_what_stored_logits_choose(batch_size):
    experiment = language_model(vocabulary=29, rows=60)
    params = experiment.model.init(jax.random.key(0))
    experiment = learnt(experiment, params)
    examples, method = experiment.calibration.examples(), experiment.method
    logits = all_logits(experiment, params, examples)
    rule = rules.accept_loss(0.05)
    found = calibrate(experiment, params, rule, batch_size)
    wanted = choose(
        stored.curve_of(method, logits, examples["labels"], found.costs.until), rule
    )._replace(split="calibration")
    np.testing.assert_allclose(
        found.choice.operating_point["temperature"],
        dx.calibration.fit_temperature(logits, examples["labels"]),
        rtol=1e-4,
    )
    assert found.choice.index == wanted.index and found.choice.rows == 58
    np.testing.assert_allclose(
        found.choice.operating_point["threshold"], wanted.operating_point["threshold"], rtol=1e-5
    )
    np.testing.assert_allclose(found.choice.accuracy, wanted.accuracy, rtol=1e-6)
    np.testing.assert_allclose(found.choice.exit_fraction, wanted.exit_fraction)
    assert 0.0 < found.choice.exit_fraction[-1] < 1.0, "rows exit at different depths"


def test_a_fit_may_leave_rows_out():
    experiment = language_model(vocabulary=7, rows=40)
    params = experiment.model.init(jax.random.key(0))
    some = np.arange(40) % 2 == 0
    found, remarks = fitted(experiment, params, experiment.calibration, 16, some)
    examples = experiment.calibration.examples()
    logits = all_logits(experiment, params, examples)[:, some]
    np.testing.assert_allclose(
        found["temperature"],
        dx.calibration.fit_temperature(logits, examples["labels"][some]),
        rtol=1e-4,
    )
    assert remarks == ()


def test_a_guarantee_takes_candidates_and_order_from_other_rows():
    experiment = language_model(vocabulary=7, rows=200, ignored=False)
    params = experiment.model.init(jax.random.key(0))
    found = calibrate(experiment, params, rules.risk_control(0.5, 0.1, "disagreement"), 64)
    assert found.choice.rows == 100 and "with probability 0.9" in found.choice.guarantee
    assert (found.points["threshold"][0] == np.inf).all(), "full depth is tested first"
    assert found.choice.index > 0 and found.choice.mean_depth < 4


def test_nan_rows_are_counted_and_a_diverged_network_is_refused():
    experiment = language_model(vocabulary=7, rows=20)
    params = experiment.model.init(jax.random.key(0))
    token = int(experiment.calibration.examples()["inputs"][5, 0])
    broken = {**params, "embed": params["embed"].at[token].set(jnp.nan)}
    said = []
    calibrate(experiment, broken, rules.accept_loss(0.1), 8, said.append)
    assert any("rows hold a NaN and do not exit there" in line for line in said)
    with pytest.raises(ValueError, match="a NaN for every row at exit 0"):
        calibrate(
            experiment,
            {**params, "embed": jnp.full_like(params["embed"], jnp.nan)},
            rules.accept_loss(0.1),
            8,
        )


def temporaries(vocabulary, batch_size=8, exits=4):
    """Bytes of the compiled recording program beside its arguments and results."""
    from dynexit.evaluation.recording import kept_of

    experiment = language_model(vocabulary, rows=batch_size, exits=exits)
    params = jax.eval_shape(experiment.model.init, jax.random.key(0))
    full = experiment.method.candidates.full(exits, {"temperature": np.ones(exits, np.float32)})
    batch = next(iter(batches(experiment.calibration.examples(), batch_size)))
    program = jax.jit(lambda *args: kept_of(experiment, *args)).lower(
        params, experiment.method.criterion(full), batch.inputs, batch.labels
    )
    return program.compile().memory_analysis().temp_size_in_bytes


def test_memory_of_a_batch_is_that_of_one_exit():
    """Outputs of all exits would be `exits` times one exit's logits."""
    logits = 8 * 6 * 4000 * 4
    assert temporaries(4000, exits=12) < 8 * logits < 12 * logits


@pytest.mark.slow
def test_memory_of_a_split_does_not_grow_with_rows_times_vocabulary():
    """Host memory of calibration: records alone, some hundred bytes a row and exit."""
    peaks = {}
    for vocabulary in (50, 2000):
        experiment = language_model(vocabulary, rows=2000, ignored=False)
        params = experiment.model.init(jax.random.key(0))
        calibrate(experiment, params, rules.accept_loss(0.1), 100)  # compiled before
        tracemalloc.start()
        calibrate(experiment, params, rules.accept_loss(0.1), 100)
        peaks[vocabulary] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    stored_logits = 4 * 2000 * 6 * 2000 * 4
    assert peaks[2000] < stored_logits / 40
    assert peaks[2000] < 1.5 * peaks[50]


def test_prepared_inputs(experiment):
    x = np.ones((2, 2), np.int8)
    np.testing.assert_array_equal(prepared(experiment, jnp.asarray(x)), x / 8)
    assert prepared(experiment._replace(prepare=None), x) is x
