"""A new run that continues another from one of its checkpoints."""

import json

import pytest

from dynexit.runs.branch import branch, refuse_branch
from dynexit.runs.experiment_file import SettingsError

RECORD = {"name": "first", "experiment": "/first.py", "sha256": "0", "settings": {}}


@pytest.fixture
def source(tmp_path):
    run = tmp_path / "run"
    for step in (5, 10):
        (run / "checkpoints" / f"{step:08d}").mkdir(parents=True)
        (run / "checkpoints" / f"{step:08d}" / "manifest.json").write_text(str(step))
    (run / "settings.json").write_text(json.dumps(RECORD))
    records = "".join(json.dumps({"step": step}) + "\n" for step in (1, 5, 10, 12))
    (run / "metrics.jsonl").write_text(records + '{"step": 1')
    return run


@pytest.mark.parametrize("step, taken, records", [(5, 5, [1, 5]), (None, 10, [1, 5, 10])])
def test_a_checkpoint_and_its_records_are_copied(tmp_path, source, step, taken, records):
    said, new = [], tmp_path / "new"
    new.mkdir()
    branch(source, step, new, said.append)
    assert [int(path.name) for path in (new / "checkpoints").iterdir()] == [taken]
    assert (new / "checkpoints" / f"{taken:08d}" / "manifest.json").read_text() == str(taken)
    lines = (new / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == records
    assert len(said) == 1 and f"step {taken}" in said[0]
    branch(source, 5 if step is None else None, new, said.append)  # it resumes
    assert len(said) == 1 and [p.name for p in (new / "checkpoints").iterdir()] == [f"{taken:08d}"]


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"from_step": 5}, "--from-step needs --from-run"),
        ({"from_run": "{run}", "init": "{run}"}, "exclude each other"),
        ({"from_run": "{run}", "from_step": 7}, "no checkpoint of step 7; it has 5, 10"),
        ({"from_run": "{run}/nowhere"}, "is not a run folder"),
    ],
)
def test_what_fits_nothing_is_refused(source, options, sentence):
    given = {"from_run": None, "from_step": None, "init": None}
    named = {n: v.format(run=source) if isinstance(v, str) else v for n, v in options.items()}
    with pytest.raises(SettingsError, match=sentence):
        refuse_branch(given | named)
    refuse_branch(given)
    refuse_branch(given | {"from_run": str(source), "from_step": 10})
