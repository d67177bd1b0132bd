"""What calibration would refuse is refused before training."""

import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx
from dynexit.core.labels import IGNORED
from dynexit.data.source import from_leaves
from dynexit.evaluation.preflight import check_experiment


def changed(experiment, **leaves):
    """The experiment with other leaves in its calibration split."""
    examples = {**experiment.calibration.examples(), **leaves}
    return experiment._replace(calibration=from_leaves("calibration", examples))


def test_what_can_be_calibrated_passes(experiment):
    check_experiment(experiment)
    check_experiment(experiment._replace(method=dx.methods.confidence_exits()))
    check_experiment(experiment._replace(method=dx.methods.fixed_depth()))


def test_a_method_that_lacks_something_is_named(experiment):
    for name in ("candidates", "predict", "criterion"):
        method = experiment.method._replace(**{name: None})
        with pytest.raises(TypeError, match=f"`method.{name}` must be"):
            check_experiment(experiment._replace(method=method))
    wrong = experiment.method._replace(predict=lambda output: output)
    with pytest.raises(TypeError, match="`prediction` must be integers, got float32"):
        check_experiment(experiment._replace(method=wrong))
    gate = experiment.method._replace(criterion=lambda point: dx.criteria.gate_above(0.5))
    with pytest.raises(ValueError, match="reads output"):
        check_experiment(experiment._replace(method=gate))


def test_a_split_without_a_label_is_refused(experiment):
    with pytest.raises(ValueError, match=r"`experiment.calibration` holds no row with a label"):
        check_experiment(changed(experiment, labels=np.full(30, IGNORED, np.int32)))


def test_real_labels_need_a_score(experiment):
    labels = np.linspace(0, 1, 30, dtype=np.float32)
    real = changed(experiment, labels=labels)
    real = real._replace(test=from_leaves("test", {**real.calibration.examples()}))
    with pytest.raises(TypeError, match=r"a method for real labels has a `score` of its own"):
        check_experiment(real)
    method = experiment.method._replace(
        predict=lambda output: output.mean(axis=-1),
        score=lambda prediction, labels: -jnp.abs(prediction - labels),
    )
    check_experiment(real._replace(method=method))
