"""A collapse is reported by name, once, and only when it lasts."""

import dataclasses

import pytest

from dynexit.training.collapse import CollapseWatch
from dynexit.training.loop import fit


@pytest.mark.parametrize(
    "name,collapsed,fine,words",
    [
        ("halting_entropy", 1e-5, 0.5, "collapsed to one step"),
        ("mean_steps", 1.0, 3.0, "collapsed to the first step"),
        ("q_at_limit", 1.0, 0.9, "collapsed to the limit"),
    ],
)
def test_a_lasting_collapse_is_reported_once(name, collapsed, fine, words):
    watch = CollapseWatch()
    bad = collapsed
    values = [bad, bad, fine, bad, bad, bad, bad, fine, bad, bad, bad]
    found = [watch.look({"step": k, name: value, "loss": 0.0}) for k, value in enumerate(values)]
    assert [bool(each) for each in found] == [False] * 5 + [True] + [False] * 4 + [True]
    assert words in found[5][0] and "step 5: " in found[5][0] and name in found[5][0]


@pytest.mark.parametrize("every", [0, 3])
def test_a_run_reports_it_once_with_or_without_evaluation(toy, tmp_path, capsys, every):
    experiment = toy.build()
    objective = experiment.method.objective
    at_limit = lambda o, y, p: (objective(o, y, p)[0], {"at_limit": p * 0 + 1})
    fit(
        experiment._replace(method=experiment.method._replace(objective=at_limit)),
        dataclasses.replace(toy.SETTINGS, eval_every=every),
        tmp_path,
        seed=0,
        progress=False,
    )
    found = [line for line in capsys.readouterr().err.splitlines() if "collapsed" in line]
    assert len(found) == 1 and "halting has collapsed to the limit" in found[0]
