"""The recursive network of the Sudoku experiment, trained shortly: it knows which of its answers
are right.
"""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

import dynexit as dx
from dynexit.core.labels import exact
from dynexit.runs.experiment_file import load
from dynexit.training.loop import fit

FILE = load(Path(__file__).parents[2] / "experiments" / "sudoku_trm.py")


def area_under_curve(scores, right):
    """The chance that a right answer's score is above a wrong one's, ties counted half."""
    above = np.sort(scores[~right])
    below, upto = (np.searchsorted(above, scores[right], side=side) for side in ("left", "right"))
    return (below + upto).mean() / 2 / len(above)


def test_the_area_of_known_scores():
    assert (
        area_under_curve(np.array([1.0, 2.0, 3.0, 3.0]), np.array([False, True, False, True]))
        == (1 + 0 + 1 + 0.5) / 4
    )


@pytest.mark.slow
def test_golden_the_halting_logit_tells_right_answers_from_wrong_ones(tmp_path):
    """Sheet, point 3: an area above 0.9 on 4x4 Sudoku, over all answers of the segments of
    training.
    """
    experiment, segments = FILE.build(FILE.settings), FILE.settings.method.most
    training = dataclasses.replace(FILE.settings.training, steps=1200, checkpoint_every=1200)
    params = fit(experiment, training, tmp_path, seed=0, progress=False).params
    batch, model = experiment.test.examples(), experiment.model
    outputs = jax.jit(lambda p, x: dx.run_all(model.steps(p), model.embed(p, x), segments))(
        params, batch["inputs"]
    )
    right = np.stack(
        [
            np.asarray(exact(experiment.method.predict(logits), batch["labels"])) > 0
            for logits in outputs["logits"]
        ]
    )
    assert right[-1].mean() > 0.9 > right[0].mean(), "it has learned, and not every answer is right"
    assert area_under_curve(np.asarray(outputs["halt_logit"]).ravel(), right.ravel()) > 0.9
