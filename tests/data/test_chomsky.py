"""The table of the suite, and its layout: the string, empty tokens, padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx
from dynexit.core.labels import IGNORED, share
from dynexit.data.tasks.chomsky import TASKS, chomsky

COUNTS = {"R": 4, "DCF": 4, "CS": 7}


def test_there_are_fifteen_tasks():
    for level, count in COUNTS.items():
        assert sum(task.level == level for task in TASKS.values()) == count
    assert [name for name, task in TASKS.items() if task.masked] == [
        "stack_manipulation",
        "binary_addition",
        "binary_multiplication",
    ]


@pytest.mark.parametrize("name", TASKS)
def test_what_the_table_says_is_what_is_drawn(name):
    task, inputs_seen, targets_seen = TASKS[name], set(), set()
    for length in (*range(1, 13), 40):
        inputs, targets = task.draw(np.random.default_rng(length), 100, length)
        assert inputs.shape == (100, length - (name == "modular_arithmetic" and length % 2 == 0))
        assert targets.shape == (100, task.output_length(length))
        inputs_seen |= set(inputs.ravel().tolist())
        targets_seen |= set(targets.ravel().tolist())
    unused = {"modular_arithmetic": {8}, "modular_arithmetic_brackets": {10}}.get(name, set())
    assert inputs_seen == set(range(task.vocabulary)) - unused
    assert targets_seen == set(range(task.classes))


@pytest.mark.parametrize("name", TASKS)
def test_a_constant_guess_scores_about_the_chance(name):
    task = TASKS[name]
    _, targets = task.draw(np.random.default_rng(0), 2000, 30)
    if task.masked:  # only up to the first 2
        counted = [row[: row.tolist().index(2)] for row in targets]
        targets = np.concatenate(counted)
    best = np.bincount(np.ravel(targets)).max() / np.size(targets)
    # Signs and zeros make some values likelier; a product has more zeros than ones, and a root's
    # top bit is often 1.
    assert task.chance - 0.02 < best < task.chance + 0.15


@pytest.mark.parametrize("name", ["parity_check", "bucket_sort"])
def test_untrained_networks_score_about_the_chance(name):
    """Eight of them, each near it and none at 0 or 1: their mean within 0.03."""
    task = TASKS[name]
    rows = {
        leaf: a[:: 1 if task.output_length(40) == 1 else 5]
        for leaf, a in chomsky(task).train.examples().items()
    }
    assert (rows["labels"] != IGNORED).sum() >= 2000
    model = dx.models.Rnn(width=16).build(dx.Tokens(task.vocabulary + 2), task.classes)

    @jax.jit
    @jax.vmap
    def score(key):
        params = model.init(key)
        logits = dx.run_all(
            model.steps(params), model.embed(params, jnp.asarray(rows["inputs"])), model.depth
        )[-1]
        return share(logits.argmax(axis=-1), rows["labels"]).mean()

    scores = score(jax.random.split(jax.random.key(0), 8))
    np.testing.assert_allclose(scores, np.full(8, task.chance), atol=0.1)
    np.testing.assert_allclose(scores.mean(), task.chance, atol=0.03)


@pytest.mark.parametrize("name", TASKS)
def test_layout(name):
    task = TASKS[name]
    train = chomsky(task, lengths=(1, 9)).train
    width, lengths = 9 + task.output_length(9), set()
    for step in range(30):
        batch = train.batch(0, step, 6)
        assert batch["inputs"].shape == batch["labels"].shape == (6, width)
        assert batch["inputs"].dtype == batch["labels"].dtype == batch["steps"].dtype == np.int32
        (length,) = set(batch["steps"].tolist())
        lengths.add(length)
        read = length - (name == "modular_arithmetic" and length % 2 == 0)
        for inputs, labels in zip(batch["inputs"].tolist(), batch["labels"].tolist(), strict=True):
            answer = task.output_length(length)
            rest = width - read - answer
            assert max(inputs[:read]) < task.vocabulary
            assert inputs[read:] == [task.vocabulary] * answer + [task.vocabulary + 1] * rest
            assert labels[:read] == [IGNORED] * read and labels[read + answer :] == [IGNORED] * rest
            targets = labels[read : read + answer]
            if task.masked:
                end = targets.index(2) + 1
                assert targets[end:] == [IGNORED] * (answer - end) and IGNORED not in targets[:end]
            else:
                assert min(targets) >= 0
    assert lengths == set(range(1, 10))


def test_the_length_is_uniform_and_one_for_a_batch():
    train = chomsky(TASKS["parity_check"], lengths=(3, 7)).train
    steps = np.array([train.batch(1, step, 3)["steps"] for step in range(3000)])
    assert (steps == steps[:, :1]).all()
    np.testing.assert_allclose(np.bincount(steps[:, 0], minlength=8)[3:] / 3000, 0.2, atol=0.037)


def test_inputs_and_labels_belong_together():
    batch = chomsky(TASKS["bucket_sort"], lengths=(5, 8)).train.batch(0, 0, 20)
    length = batch["steps"][0]
    np.testing.assert_array_equal(
        np.sort(batch["inputs"][:, :length], axis=1), batch["labels"][:, length : 2 * length]
    )


def test_fixed_sets_have_all_lengths_in_turn():
    train, calibration, test = chomsky(
        TASKS["reverse_string"], lengths=(1, 5), test_lengths=(6, 25), examples=10
    )
    for source in (train, calibration):
        assert source.examples()["steps"].tolist() == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert test.examples()["steps"].tolist() == [6, 8, 10, 12, 14, 16, 18, 20, 22, 24]
    assert test.examples()["inputs"].shape == (10, 50) and test.size == 10
    mixed = test.batch(0, 0, 10)
    for inputs, labels, length in zip(
        mixed["inputs"], mixed["labels"], mixed["steps"], strict=True
    ):
        np.testing.assert_array_equal(labels[length : 2 * length], inputs[:length][::-1])


def test_long_strings_of_the_published_test():
    test = chomsky(
        TASKS["binary_multiplication"], test_lengths=(499, 500), examples=4
    ).test.examples()
    assert test["inputs"].shape == (4, 1000) and test["steps"].tolist() == [499, 499, 500, 500]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            {"lengths": (0, 4)},
            r"`lengths` must be \(low, high\) with 1 <= low <= high, got \(0, 4\)",
        ),
        ({"test_lengths": (5, 4)}, r"`test_lengths` must be .* got \(5, 4\)"),
        ({"examples": 0}, "`examples` must be at least 1, got 0"),
    ],
)
def test_refusals_name_the_argument(arguments, text):
    with pytest.raises(ValueError, match=text):
        chomsky(TASKS["parity_check"], **arguments)
