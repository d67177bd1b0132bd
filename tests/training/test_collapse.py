"""A collapse is said by name, once, and only when it lasts."""

import pytest

from dynexit.training.collapse import CollapseWatch
from dynexit.training.loop import fit


@pytest.mark.parametrize(
    "name,gone,fine,words",
    [
        ("halting_entropy", 1e-5, 0.5, "collapsed to one step"),
        ("mean_steps", 1.0, 3.0, "collapsed to the first step"),
        ("q_at_limit", 1.0, 0.9, "collapsed to the limit"),
    ],
)
def test_what_lasts_is_said_once(name, gone, fine, words):
    watch = CollapseWatch()
    values = [gone, gone, fine, gone, gone, gone, gone, fine, gone, gone, gone]
    said = [watch.look({"step": k, name: value, "loss": 0.0}) for k, value in enumerate(values)]
    assert [bool(s) for s in said] == [False] * 5 + [True] + [False] * 4 + [True]
    assert words in said[5][0] and "step 5: " in said[5][0] and name in said[5][0]


def test_a_run_says_it(toy, tmp_path, capsys):
    experiment = toy.build()
    objective = experiment.method.objective
    told = lambda o, y, p: (objective(o, y, p)[0], {"at_limit": p * 0 + 1})
    fit(
        experiment._replace(method=experiment.method._replace(objective=told)),
        toy.SETTINGS,
        tmp_path,
        seed=0,
        progress=False,
    )
    said = [line for line in capsys.readouterr().err.splitlines() if "collapsed" in line]
    assert len(said) == 1 and "halting has collapsed to the limit" in said[0]
