"""Which options and environments make several processes."""

import pytest

from dynexit.cli.distributed import connect, place_of
from dynexit.runs.experiment_file import SettingsError

NONE = {
    "coordinator": None,
    "processes": None,
    "process": None,
    "start_timeout": 300,
    "distributed": False,
}
ALL = {"coordinator": "host:1234", "processes": 4, "process": 3}
SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node1",
    "SLURM_NTASKS": "2",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in (*SLURM, "TPU_WORKER_HOSTNAMES", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def test_a_lone_process_is_connected_with_none():
    assert place_of(NONE) is None
    lines = []
    assert connect(NONE | ALL | {"processes": 1, "process": 0}, lines.append) is None
    assert lines == []


def test_options_win_over_the_environment(monkeypatch):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    place = place_of(NONE)
    assert place is not None and place[1:3] == (2, 1) and place.source == "SLURM"
    place = place_of(NONE | ALL)
    assert place is not None and place[:3] == ("host:1234", 4, 3)


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"processes": 2}, "--coordinator, --process must be given too"),
        ({**ALL, "processes": 0}, r"--processes must lie in 1\.\.65536, got 0"),
        ({**ALL, "process": 4}, r"--process must lie in 0\.\.3, got 4"),
        ({"start_timeout": 0}, "--start-timeout must be at least 1, got 0"),
        ({"distributed": True}, "--distributed: no cluster is known here"),
        ({**ALL, "coordinator": "host"}, "`coordinator` must be HOST:PORT, got 'host'"),
        ({**ALL, "coordinator": "host:99999"}, "`coordinator` must be HOST:PORT"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, sentence):
    with pytest.raises(SettingsError, match=sentence):
        connect(NONE | options, print)
