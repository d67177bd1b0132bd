"""Records survive a crash and a resume, wandb never stops a run, signal handlers are restored,
batches are drawn in order.
"""

import json
import os
import signal
import sys
import threading
import time
import types

import pytest

from dynexit.training.logs import Mirror, Records, read_records, without_clock
from dynexit.training.prefetch import ahead
from dynexit.training.signals import Stopped, StopRequest


def test_records_are_on_disk_at_once(tmp_path):
    with Records(tmp_path / "run") as records:
        records.write({"step": 1, "loss": 0.5})
        assert read_records(tmp_path / "run" / "metrics.jsonl") == [{"step": 1, "loss": 0.5}]


def test_resuming_removes_later_records_and_an_incomplete_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        "".join(json.dumps({"step": s, "seconds": 1.0}) + "\n" for s in (1, 5, 10))
        + '{"step": 15, "lo'
    )
    with Records(tmp_path, after=5) as records:
        records.write({"step": 6})
    assert [without_clock(record) for record in read_records(path)] == [
        {"step": 1},
        {"step": 5},
        {"step": 6},
    ]
    assert path.read_text().count("\n") == 3


@pytest.mark.parametrize("garbage", [b'{"step": 5, "lo', b"\xff\x00\xfe", b"", b"[1]", b'{"a": 1}'])
def test_a_damaged_line_in_the_middle_is_skipped_and_counted(tmp_path, garbage):
    lines = [json.dumps({"step": s}).encode() for s in (1, 5, 10, 15)]
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\n".join([lines[0], garbage, *lines[2:], b'{"step": 20, "lo']))
    with pytest.warns(RuntimeWarning, match=r"1 of 4 lines are damaged and skipped: 2$"):
        assert [record["step"] for record in read_records(path)] == [1, 10, 15]
    with pytest.warns(RuntimeWarning, match="damaged"):
        with Records(tmp_path, after=10) as records:
            records.write({"step": 11})
    assert [record["step"] for record in read_records(path)] == [1, 10, 11]


def test_values_that_are_not_finite_are_null(tmp_path):
    with Records(tmp_path) as records:
        records.write({"step": 1, "loss": float("nan"), "norm": float("inf")})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": null, "norm": null}\n'


class FakeRun:
    def __init__(self, fail_at):
        self.fail_at, self.logged, self.finished = fail_at, [], None

    def log(self, record, step):
        if step == self.fail_at:
            raise ConnectionError("no route")
        self.logged.append(step)

    def finish(self, exit_code):
        self.finished = exit_code


@pytest.fixture
def wandb(monkeypatch):
    fake = types.SimpleNamespace(
        run=FakeRun(fail_at=None),
        calls=[],
        key=False,
        util=types.SimpleNamespace(generate_id=lambda: "id7"),
    )
    fake.login = lambda prompt: fake.key
    fake.init = lambda **arguments: (fake.calls.append(arguments), fake.run)[1]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


@pytest.mark.parametrize(
    "mode, key, wanted",
    [("auto", True, "online"), ("auto", False, "offline"), ("offline", True, "offline")],
)
def test_the_mirror_receives_every_record(tmp_path, wandb, monkeypatch, mode, key, wanted):
    monkeypatch.setenv("WANDB_RUN_GROUP", "all")  # as runs of a sweep have it
    wandb.key = key
    for _ in range(2):
        with Mirror(tmp_path, mode, {"steps": 3}) as mirror:
            mirror.write({"step": 1, "loss": 2.0})
    assert {a["group"] for a in wandb.calls} == {"all"}
    assert wandb.run.logged == [1, 1] and wandb.run.finished == 0
    assert [(a["mode"], a["config"]) for a in wandb.calls] == [(wanted, {"steps": 3})] * 2
    assert {a["id"] for a in wandb.calls} == {(tmp_path / "wandb_id.txt").read_text()}


def test_wandb_itself_accepts_the_records(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    # a failure would be a warning, and so an error here
    with Mirror(tmp_path, "offline", {"steps": 3}) as mirror:
        for step in range(3):
            mirror.write({"step": step, "loss": 1.0})
    run = (tmp_path / "wandb_id.txt").read_text()
    # wandb fills the file later
    assert len(list(tmp_path.glob(f"wandb/offline-run-*/run-{run}.wandb"))) == 1


def test_off_does_not_import_wandb(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # an import would raise
    with Mirror(tmp_path, "off", {}) as mirror:
        mirror.write({"step": 1})
    assert list(tmp_path.iterdir()) == []


def test_a_failing_mirror_warns_once(tmp_path, wandb):
    wandb.run.fail_at = 2
    with (
        Mirror(tmp_path, "offline", {}) as mirror,
        pytest.warns(RuntimeWarning, match="metrics.jsonl alone: ConnectionError") as warned,
    ):
        for step in (1, 2, 3):
            mirror.write({"step": step})
    assert len(warned) == 1 and wandb.run.logged == [1]


def test_a_missing_wandb_warns_once(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.warns(RuntimeWarning, match="wandb failed.* metrics.jsonl alone") as warned:
        with Mirror(tmp_path, "online", {}) as mirror:
            mirror.write({"step": 1})
    assert len(warned) == 1


@pytest.fixture
def interruptible():
    """SIGINT as in the foreground: a shell starts background jobs with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_sigterm_repeatedly_and_sigint_once(interruptible):
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    with StopRequest() as stop:
        assert not stop.requested
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            signal.pause()
    assert {number: signal.getsignal(number) for number in before} == before


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGUSR1"])
def test_signals_of_schedulers_stop_with_one_code(name):
    number = getattr(signal, name)
    before = signal.signal(number, signal.SIG_DFL)  # the tests may run under nohup
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), number)
            assert stop.requested and stop.code == 143 and stop.should_stop()
    finally:
        signal.signal(number, before)


def test_a_signal_that_is_ignored_under_nohup_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.requested
    finally:
        signal.signal(signal.SIGHUP, before)


class FakeMember:
    def __init__(self, rank):
        self.rank, self.asks, self.announced = rank, [], []

    def ask_stop(self, code):
        self.asks.append(code)

    def announce_stop(self, point, code):
        self.announced.append((point, code))
        if point is not None:
            self.stop(point, code)


def test_process_0_decides_where_all_stop():
    member, stop = FakeMember(0), StopRequest(at_once=True)
    stop.attach(member)
    assert not stop.should_stop()
    stop.unsaved = True
    member.asked(143)  # from another process
    assert not stop.should_stop() and member.announced == [(4, 143)]
    stop.check()  # a point within an evaluation
    with pytest.raises(Stopped):
        stop.check()
    assert stop.should_stop() and stop.code == 143


def test_where_nothing_would_be_lost_process_0_ends_all_at_once():
    member, stop = FakeMember(0), StopRequest(at_once=True)
    stop.attach(member)
    member.asked(130)
    assert member.announced == [(None, 130)]


def test_a_request_that_came_after_the_last_update_acts_when_all_is_saved():
    member, stop = FakeMember(0), StopRequest(at_once=True)
    stop.attach(member)
    stop.unsaved = True
    member.asked(143)
    assert member.announced == []
    stop.saved()
    assert member.announced == [(None, 143)]


def test_another_process_waits_for_the_decision():
    member, stop = FakeMember(1), StopRequest(at_once=True)
    stop.attach(member)
    with stop:
        stop.unsaved = True
        os.kill(os.getpid(), signal.SIGTERM)
        end = time.monotonic() + 5
        while not member.asks and time.monotonic() < end:
            time.sleep(0.01)
    assert member.asks == [143] and not stop.should_stop()
    member.stop(3, 143)
    assert not stop.should_stop() and stop.should_stop()


def test_each_batch_is_drawn_once_in_order_and_one_step_ahead():
    drawn, second = [], threading.Event()

    def draw(step):
        drawn.append(step)
        if step == 4:
            second.set()
        return step * 10

    batches = ahead(draw, 3, 6)
    assert next(batches) == 30
    # the next is drawn while the first is in use, and no further one
    assert second.wait(5) and drawn == [3, 4]
    assert list(batches) == [40, 50] and drawn == [3, 4, 5]
    assert list(ahead(draw, 3, 3)) == []


def test_a_failing_draw_is_raised_where_it_is_due():
    batches = ahead(lambda step: 1 // (2 - step), 0, 5)
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(batches)


def test_the_shares_of_the_exits_are_one_histogram(tmp_path, wandb):
    sent = []
    wandb.run.log = lambda record, step: sent.append(record)
    wandb.Histogram = lambda np_histogram: [a.tolist() for a in np_histogram]
    shares = {f"eval_depth_share_exit_{e}": share for e, share in enumerate((0.25, 0.0, 0.75))}
    with Mirror(tmp_path, "offline", {}) as mirror:
        mirror.write({"step": 1, "loss": 2.0, **shares})
    assert sent == [
        {
            "step": 1,
            "training/loss": 2.0,
            "depth/exits": [[0.25, 0.0, 0.75], [-0.5, 0.5, 1.5, 2.5]],
        }
    ]


def test_wandb_itself_makes_a_histogram_of_shares(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with Mirror(tmp_path, "offline", {}) as mirror:  # a failure would be a warning, and an error
        mirror.write({"step": 1, "eval_depth_share_exit_0": 0.25, "eval_depth_share_exit_1": 0.75})
