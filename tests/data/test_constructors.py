"""Constructors of the data sets: what they promise of an example is what they build."""

import subprocess
import sys

import jax
import numpy as np
import pytest

import dynexit as dx
from dynexit.core.labels import IGNORED
from dynexit.data.tasks.chomsky import TASKS
from dynexit.data.tasks.settings_sequences import CHOMSKY_SIZES

SMALL = {
    "digits": dx.data.Digits(),
    "pixels": dx.data.Digits(shift=0, sequence=True, shift_calibration=False),
    "parity": dx.data.Parity(length=6, train_nonzeros=3, examples=12),
    "prefix_sums": dx.data.PrefixSums(length=6, test_length=9, examples=12),
    "mazes": dx.data.Mazes(size=3, test_size=5, scale=2, examples=12),
    "addition": dx.data.Addition(length=8, carries=(1, 2), examples=12),
    "copying": dx.data.Copying(length=5, test_length=7, shift=4, backwards=True, examples=12),
    "sudoku": dx.data.Sudoku(examples=12),
    "chomsky": dx.data.Chomsky(task="bucket_sort", length=4, test_length=6, examples=12),
    "one_hot": dx.data.Chomsky(length=4, test_length=6, examples=12, one_hot=True),
    "graphs": dx.data.Graphs(algorithm="bellman_ford", nodes=5, test_nodes=7, examples=12),
    "python_source": dx.data.PythonSource(length=16, examples=12),
}


@pytest.mark.parametrize("name", SMALL)
def test_what_is_built_is_what_was_promised(name):
    settings = SMALL[name]
    data = settings.build()
    assert data.inputs == settings.inputs and data.classes == settings.classes
    assert [source.split for source in data[:3]] == ["train", "calibration", "test"]
    batch = data.train.batch(0, 0, 4)
    for labels in (batch["labels"], *(s.examples()["labels"] for s in data[:3])):
        assert labels.dtype == np.int32
        assert labels.min() >= IGNORED and labels.max() < len(data.classes)
    inputs = batch["inputs"]
    if data.augment is not None:
        inputs = data.augment(jax.random.key(0), inputs)
    for each in (inputs, data.test.examples()["inputs"]):
        each = data.prepare(each) if data.prepare is not None else each
        each = each["tokens"] if isinstance(each, dict) else each
        if isinstance(data.inputs, dx.Tokens):
            assert np.issubdtype(each.dtype, np.integer) and each.max() < data.inputs.vocabulary
            assert data.inputs.length in (None, each.shape[1])
        else:
            assert each.dtype == np.float32
            assert len(each.shape[1:]) == len(data.inputs)
            assert each.shape[1:] == data.inputs or each is not inputs


def test_digits_move_in_calibration_only_where_they_should():
    plain, moved = dx.data.Digits(shift_calibration=False).build(), dx.data.Digits(shift=2).build()
    assert (plain.calibration.size, moved.calibration.size) == (347, 347 * 25)
    assert SMALL["pixels"].build().augment is None


def test_sizes_of_the_chomsky_suite_are_those_of_its_tasks():
    assert (
        list(CHOMSKY_SIZES)
        == list(TASKS)
        == list(dx.data.Chomsky.__dataclass_fields__["task"].type.__args__)
    )
    assert all(CHOMSKY_SIZES[n] == (t.vocabulary, t.classes) for n, t in TASKS.items())


@pytest.mark.parametrize(
    "settings, field",
    [
        (dx.data.Digits(shift=8), "shift"),
        (dx.data.FashionMnist(shift=100), "shift"),
        (dx.data.FashionMnist(limit=0), "limit"),
        (dx.data.Parity(length=4, test_nonzeros=9), "test_nonzeros"),
        (dx.data.PrefixSums(test_length=0), "test_length"),
        (dx.data.Mazes(size=4), "size"),
        (dx.data.Mazes(loops=1.5), "loops"),
        (dx.data.Addition(length=2), "length"),
        (dx.data.Addition(length=9, carries=(1, 5)), "carries"),
        (dx.data.Copying(shift=-1), "shift"),
        (dx.data.Sudoku(box=3), "fewest"),
        (dx.data.Sudoku(fewest=9, most=5), "most"),
        (dx.data.Sudoku(box=4), "box"),
        (dx.data.Chomsky(task="parity"), "task"),
        (dx.data.Chomsky(length=9, test_length=9), "test_length"),
        (dx.data.Graphs(nodes=1), "nodes"),
        (dx.data.Graphs(probability=float("nan")), "probability"),
        (dx.data.PythonSource(length=0), "length"),
    ],
)
def test_values_out_of_range_name_their_field(settings, field):
    with pytest.raises(ValueError, match=rf"`{type(settings).__name__}`: .*\b{field} "):
        settings.build()


def test_constructors_load_neither_jax_nor_numpy():
    script = (
        "import sys, dynexit as dx\n"
        "for name in dx.data.__all__:\n"
        "    if name[0].isupper() and name not in ('DataDamaged', 'DataNotPrepared', 'Splits'):\n"
        "        getattr(dx.data, name)\n"
        "found = dx.data.Chomsky().classes, dx.data.Graphs().inputs, dx.Tokens(3)\n"
        "print([name for name in ('jax', 'numpy') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
