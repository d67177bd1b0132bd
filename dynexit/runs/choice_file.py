"""`calibration.json`: the operating point of a run, and what evaluation needs of calibration."""

import dataclasses
import json
from typing import TYPE_CHECKING, Any, TypeAlias

from dynexit.core.settings import Calibration
from dynexit.runs.experiment_file import SettingsError
from dynexit.runs.run_folder import Run, write_json

if TYPE_CHECKING:
    import dynexit.calibration.rules.rule
    import dynexit.evaluation.calibrate

# names alone: they would load JAX
Rule: TypeAlias = "dynexit.calibration.rules.rule.Rule"
Calibrated: TypeAlias = "dynexit.evaluation.calibrate.Calibrated"

CALIBRATION = "calibration.json"
SCHEMA = 1


def rule_of(settings: Calibration) -> Rule:
    """The rule that the settings name."""
    from dynexit.calibration.rules.accept_loss import accept_loss
    from dynexit.calibration.rules.budget import budget
    from dynexit.calibration.rules.risk_control import risk_control

    if settings.risk is not None:
        return risk_control(settings.risk, settings.delta)
    if settings.budget is not None:
        return budget(settings.budget)
    assert settings.accept_loss is not None, "validated: one of the three is given"
    return accept_loss(settings.accept_loss, settings.max_negative_flips)


def write_choice(run: Run, calibrated: Calibrated, rule: Calibration, step: int) -> dict[str, Any]:
    """Writes `calibration.json`; returns its content."""
    choice, costs = calibrated.choice, calibrated.costs
    content = {
        "schema_version": SCHEMA,
        "rule": dataclasses.asdict(rule),
        "chosen_by": choice.accepted,
        "guarantee": choice.guarantee,
        "remarks": list(calibrated.remarks),
        "training_step": step,
        "split": choice.split,
        "examples": choice.rows,
        "fingerprint": choice.fingerprint,
        "accuracy": choice.accuracy,
        "accuracy_full": choice.accuracy_full,
        "standard_error": choice.standard_error,
        "index": choice.index,
        "flops": choice.cost,
        "flops_ratio": choice.cost_fraction,
        "mean_depth": choice.mean_depth,
        "exit_fraction": choice.exit_fraction.tolist(),
        "operating_point": _written(choice.operating_point),
        "points": _written(calibrated.points),
        "flops_per_row": _written(costs._asdict()),
    }
    write_json(run.folder / CALIBRATION, content)
    return content


def read_choice(run: Run) -> tuple[Calibrated, dict[str, Any]] | None:
    """What `write_choice` wrote, and the content of the file; None where there is no such file.

    Raises:
      SettingsError: the file is damaged or of another schema.
    """
    path = run.folder / CALIBRATION
    if not path.exists():
        return None
    again = f"`dynexit calibrate {run.folder} ...` writes it again"
    try:
        content = json.loads(path.read_text())
        if content.get("schema_version") != SCHEMA:
            raise SettingsError(
                f"{path} has schema {content.get('schema_version')}, and this version reads "
                f"{SCHEMA}; {again}"
            )
        return _calibrated(content), content
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SettingsError(f"{path} is damaged: {error}; {again}") from error


def _calibrated(content: dict[str, Any]) -> Calibrated:
    import numpy as np

    from dynexit.calibration.choose import Choice
    from dynexit.evaluation.calibrate import Calibrated
    from dynexit.evaluation.costs import RowCosts

    choice = Choice(
        operating_point=_read(content["operating_point"]),
        accepted=content["chosen_by"],
        rows=content["examples"],
        cost=content["flops"],
        cost_fraction=content["flops_ratio"],
        exit_fraction=np.array(content["exit_fraction"]),
        **{
            name: content[name]
            for name in (
                "index",
                "accuracy",
                "accuracy_full",
                "standard_error",
                "mean_depth",
                "guarantee",
                "split",
                "fingerprint",
            )
        },
    )
    costs: dict[str, Any] = {
        name: np.array(value) if isinstance(value, list) else value
        for name, value in content["flops_per_row"].items()
    }
    return Calibrated(
        choice, _read(content["points"]), RowCosts(**costs), tuple(content["remarks"])
    )


def _written(tree: Any) -> Any:
    """Arrays as lists, in the dicts that hold them.

    Raises:
      TypeError: arrays in something else than dicts, which could not be read back.
    """
    import numpy as np

    if isinstance(tree, dict):
        return {name: _written(value) for name, value in tree.items()}
    if isinstance(tree, (tuple, list)):
        raise TypeError(
            "`method`: an operating point must be an array or a dict of them, got a "
            f"{type(tree).__name__}"
        )
    return np.asarray(tree).tolist()


def _read(tree: Any) -> Any:
    """Lists and numbers as arrays of 32 bits, in the dicts that held them."""
    import numpy as np

    if isinstance(tree, dict):
        return {name: _read(value) for name, value in tree.items()}
    array = np.array(tree)
    return array.astype({"i": np.int32, "b": np.bool_}.get(array.dtype.kind, np.float32))
