"""Curves of training are drawn from whatever the records have."""

import pytest

from dynexit.evaluation.reports import training_plot
from dynexit.evaluation.reports.training_plot import best_step, exits_of, training_curves


def records_of(exits, halting):
    for step in range(1, 21):
        record = {"step": step, "loss": 3.0 / step}
        if halting:
            record |= {"mean_steps": 2.0, "halting_entropy": 0.5}
        if step % 5 == 0 and exits:
            record |= {"eval_accuracy": 0.1 * (step % 4), "eval_mean_steps": 3.0}
            for e in range(exits):
                record |= {f"eval_accuracy_exit_{e}": 0.1 * e, f"eval_loss_exit_{e}": 1.0 / step}
        yield record
    yield {"step": 21, "loss": None}


@pytest.fixture
def panels(monkeypatch):
    """The axis labels and the number of curves of each panel that was drawn."""
    drawn = []

    def save(figure, path):
        drawn.extend((ax.get_ylabel(), len(ax.get_lines())) for ax in figure.axes)
        return keep(figure, path)

    keep = training_plot.save
    monkeypatch.setattr(training_plot, "save", save)
    return drawn


@pytest.mark.parametrize("exits", [0, 1, 3, 12])
@pytest.mark.parametrize("halting", [False, True])
def test_a_panel_for_each_kind_of_curve(tmp_path, panels, exits, halting):
    path = training_curves(list(records_of(exits, halting)), tmp_path / "training.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    best = int(exits > 0)  # one more line marks the best step
    wanted = {"loss: training, and calibration (nats)": 1 + exits + best}
    if exits:
        wanted["calibration accuracy (%)"] = exits + best
    if halting or exits:
        wanted["steps"] = 1 + best
    if halting:
        wanted["entropy (nats), fraction of rows"] = 1
    assert {label: lines for label, lines in panels if label in wanted} == wanted
    others = {label for label, _ in panels} - set(wanted)
    assert others == ({"exit"} if exits > 8 else set())


def test_exits_are_in_numerical_order_and_the_best_step_is_the_first_of_the_highest():
    records = list(records_of(12, False))
    assert exits_of(records, "accuracy") == list(range(12))
    assert best_step(records) == 15
    assert best_step([*records, {"step": 35, "eval_accuracy": records[14]["eval_accuracy"]}]) == 15
    assert best_step([{"step": 1}]) is None
