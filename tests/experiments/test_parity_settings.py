"""The parity experiments: ranges of non-zeros for extrapolation, and the plain network."""

import dataclasses
from pathlib import Path

import pytest

from dynexit.core.settings import validate
from dynexit.runs.experiment_file import load

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
FILES = [load(EXPERIMENTS / f"parity_{name}.py") for name in ("pondernet", "act")]
both = pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)


def with_data(file, **data):
    return dataclasses.replace(file.settings, data=dataclasses.replace(file.settings.data, **data))


@both
@pytest.mark.parametrize(
    "data, ranges",
    [
        ({}, ((1, 8), (1, 8))),
        ({"train_nonzeros": 5}, ((1, 5), (6, 8))),
        ({"train_nonzeros": 5, "test_nonzeros": 7}, ((1, 5), (6, 7))),
        ({"train_nonzeros": 5, "test_nonzeros": 5}, ((1, 5), (1, 5))),
        ({"length": 30, "train_nonzeros": 25}, ((1, 25), (26, 30))),
    ],
)
def test_the_splits_have_the_non_zeros_of_their_ranges(file, data, ranges):
    settings = with_data(file, **data, examples=300)
    assert settings.data.nonzeros() == ranges and validate(settings) == []
    experiment = file.build(settings)
    for source, (low, high) in zip((experiment.calibration, experiment.test), ranges, strict=True):
        assert set(source.examples()["steps"].tolist()) == set(range(low, high + 1))
    assert set(experiment.train.batch(0, 0, 500)["steps"].tolist()) == set(
        range(1, ranges[0][1] + 1)
    )


@both
@pytest.mark.parametrize(
    "data",
    [{"train_nonzeros": 9}, {"train_nonzeros": 0}, {"train_nonzeros": 5, "test_nonzeros": 4}],
)
def test_ranges_that_do_not_rise_are_faults(file, data):
    (sentence,) = validate(with_data(file, **data))
    assert sentence.startswith("data.train_nonzeros and test_nonzeros must be rising in 1..8, got ")


def test_the_plain_network_is_the_same_cell_at_full_depth():
    plain = load(EXPERIMENTS / "parity_fixed_depth.py")
    assert plain.settings.model == FILES[0].settings.model
    experiment = plain.build(plain.settings)
    full = experiment.method.candidates.full(10, {})
    assert int(full["depth"]) == 10 and experiment.model.depth == 10


def test_both_train_one_network_on_one_task():
    models = [file.build(file.settings) for file in FILES]
    shared = [
        (
            file.settings.data,
            file.settings.training,
            file.settings.model.width,
            file.settings.model.steps,
        )
        for file in FILES
    ]
    assert (
        dataclasses.asdict(shared[0][0]) == dataclasses.asdict(shared[1][0])
        and shared[0][1:] == shared[1][1:]
    )
    assert models[0].classes == models[1].classes
