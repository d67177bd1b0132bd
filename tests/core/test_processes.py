"""Processes find one another, exchange values, and name whoever is missing or lost.

Threads of one process stand for processes; `tests/faults` has real ones.
"""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from dynexit.core.processes import hub as hubs
from dynexit.core.processes import together
from dynexit.core.processes.cluster import Place, detected, several
from dynexit.core.processes.member import Member, ProcessMissing
from dynexit.core.processes.start import meet
from dynexit.core.processes.wire import Connection, Process


class Company:
    """Some of `count` processes, met at a free port, each with the record of what it was told."""

    def __init__(self, ranks, count, timeout=5.0, counts=None):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            self.port = free.getsockname()[1]
        self.lines, self.count, self.counts, self.all = [], count, counts or {}, []
        with ThreadPoolExecutor(len(ranks)) as pool:
            self.met = list(pool.map(lambda rank: self._meet(rank, timeout), ranks))

    def _meet(self, rank, timeout):
        count = self.counts.get(rank, self.count)
        place = Place(f"localhost:{self.port}", count, rank, None, "test")
        try:
            return meet(place, Process(rank, f"host{rank}", 100 + rank), timeout, self.lines.append)
        except (ProcessMissing, ValueError) as error:
            return error

    def members(self):
        self.told = [[] for _ in self.met]
        said = lambda told: lambda *words: told.append(words)
        self.connections = [connection for _, connection, _ in self.met]
        processes = [Process(*each) for each in self.met[0][2]["here"]]
        self.all = [
            Member(connection, processes, rank, said(told), said(told))
            for rank, (connection, told) in enumerate(zip(self.connections, self.told, strict=True))
        ]
        return self.all

    def close(self):
        for member in self.all:
            member.close()
        for met in self.met:
            if not isinstance(met, Exception):
                met[1].close()
                if met[0] is not None:
                    met[0].stop()


@pytest.fixture
def meeting():
    """Makes a `Company`, and closes it."""
    made = []
    yield lambda *words, **named: made.append(Company(*words, **named)) or made[-1]
    for each in made:
        each.close()


def at_once(*calls):
    with ThreadPoolExecutor(len(calls)) as pool:
        return [each.result() for each in [pool.submit(call) for call in calls]]


def soon(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def test_values_are_exchanged_by_rank_and_a_barrier_names_the_late(meeting):
    company = meeting([2, 0, 1], 3)
    by_rank = sorted(company.met, key=lambda met: met[0] is None)
    assert by_rank[0][0] is not None and len(company.lines) == 3
    assert all("localhost" in line and "timeout 5 s" in line for line in company.lines)
    assert all(f"(host host{rank}, pid 10{rank})" in "".join(company.lines) for rank in range(3))
    company.met = [company.met[1], company.met[2], company.met[0]]
    members = company.members()
    for turn in range(2):
        calls = [lambda m=m, t=turn: m.exchange("value", (m.rank, t)) for m in members]
        assert at_once(*calls) == [[[rank, turn] for rank in range(3)]] * 3
    with pytest.raises(ProcessMissing, match=r"process 1 \(host host1, pid 101\) .*'saved' within"):
        at_once(*(lambda m=m: m.exchange("saved", None, 0.3) for m in members if m.rank != 1))
    for member in members:
        member.leave()
    company.met[0][0].join(5.0)
    assert company.told == [[], [], []]


@pytest.mark.parametrize("ranks, came", [([0, 2], "process 0 .* process 2 "), ([1], "process 1 ")])
def test_whoever_does_not_come_is_named(meeting, ranks, came):
    began = time.monotonic()
    for error in meeting(ranks, 3, timeout=1.0).met:
        assert isinstance(error, ProcessMissing)
        missing = "process 1 of 3 did not come" if 0 in ranks else "process 0 did not answer"
        assert missing in str(error)
        with pytest.raises(ProcessMissing, match=came):
            raise error
    assert time.monotonic() - began < 2.5


@pytest.mark.parametrize(
    "ranks, counts, why",
    [
        ([0, 1], {1: 3}, "started with 3 processes and process 0 with 2"),
        ([0, 1, 1], {}, "there is a process 1"),
    ],
)
def test_processes_that_do_not_fit_are_refused(meeting, ranks, counts, why):
    found = meeting(ranks, 3 if len(ranks) == 3 else 2, timeout=1.0, counts=counts).met
    (error,) = [each for each in found if isinstance(each, ValueError)]
    assert why in str(error)


def test_a_second_process_0_is_refused(meeting, monkeypatch):
    company = meeting([0, 1], 2)
    place = Place(f"localhost:{company.port}", 2, 0, None, "test")
    with pytest.raises(ValueError, match=r"`coordinator`: process 0 cannot listen at port"):
        meet(place, Process(0, "host9", 9), 1.0, company.lines.append)
    # on another host the port is free
    other = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setattr(socket, "create_server", lambda *_, **__: other)
    with pytest.raises(ValueError, match="`process`: another process 0 is at"):
        meet(place, Process(0, "host9", 9), 1.0, company.lines.append)


def test_a_lost_peer_is_named_to_all(meeting):
    company = meeting([0, 1, 2], 3)
    company.members()
    company.connections[1].close()
    assert soon(lambda: company.told[0] and company.told[2])
    for told in (company.told[0], company.told[2]):
        assert told == [(Process(1, "host1", 101), "its connection was closed")]
    company.met[0][0].stop()  # process 0 ends
    assert soon(lambda: len(company.told[2]) == 2)
    assert company.told[2][1][0] == Process(0, "host0", 100)


def test_a_silent_peer_is_lost(meeting, monkeypatch):
    monkeypatch.setattr(hubs, "SILENCE", 1.0)
    company = meeting([0, 1], 2)
    _, connection, message = company.met[0]
    told = []
    processes = [Process(*each) for each in message["here"]]
    lost = lambda *words: told.append(words)
    company.all = [Member(connection, processes, 0, lost, lambda *words: None)]
    assert soon(lambda: told)
    assert told[0][0].rank == 1 and "nothing was heard" in told[0][1]


def test_a_failure_is_passed_on_and_a_peer_that_left_is_not_lost(meeting):
    company = meeting([0, 1, 2], 3)
    members = company.members()
    members[2].leave()
    company.connections[2].close()
    members[1].leave(1, "the disk is full")
    company.connections[1].close()
    assert soon(lambda: company.told[0])
    assert company.told[0] == [(Process(1, "host1", 101), 1, "the disk is full")]


def test_process_0_says_when_all_stop(meeting):
    members = meeting([0, 1], 2).members()
    stops, asked = [], threading.Event()
    members[0].asked = lambda code: asked.set()
    for member in members:
        member.stop = lambda *words: stops.append(words)
    members[1].ask_stop(143)
    assert asked.wait(5.0)
    members[0].announce_stop(7, 143)
    assert stops == [(7, 143)] * 2  # all know when the call returns


def test_messages_that_are_not_ours_end_the_connection(meeting):
    company = meeting([0, 1], 2)
    for words in (b"GET / HTTP/1.1\r\n\r\n", b'{"kind": "hello"}\n', b"[1]\n"):
        end = socket.create_connection(("localhost", company.port))
        end.sendall(words)
        stranger = Connection(end)
        assert soon(lambda s=stranger: s.receive(0.1) is None)
        stranger.close()
    members = company.members()
    calls = [lambda m=m: m.exchange("still", m.rank) for m in members]
    assert at_once(*calls) == [[0, 1]] * 2


@pytest.mark.parametrize(
    "environment, cluster",
    [
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}, "SLURM"),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, None),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, None),  # a batch script's own shell
        ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}, "TPU"),
        ({"TPU_WORKER_HOSTNAMES": "a", "TPU_WORKER_ID": "0"}, None),
        ({"MEGASCALE_NUM_SLICES": "2"}, "TPU"),
        ({"OMPI_COMM_WORLD_SIZE": "3"}, "Open MPI"),
        ({}, None),
    ],
)
def test_only_an_environment_without_doubt_starts_several(environment, cluster):
    assert several(environment) == cluster


def test_the_cluster_of_a_slurm_step_is_detected(monkeypatch):
    given = {"JOB_ID": "7", "STEP_NODELIST": "n[01-02]", "NTASKS": "2", "PROCID": "1"}
    for name, value in {**given, "LOCALID": "0", "STEP_NUM_TASKS": "2"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    place = detected(5)
    assert place is not None
    assert place[1:] == (2, 1, [0], "SLURM") and place.coordinator.startswith("n01:")


def test_nothing_is_detected_on_a_lone_machine():
    assert detected(5, {}) is None


def test_a_process_that_waits_says_for_what():
    lines = []
    with together._waiting("tunes the tiles", lines.append):
        assert soon(lambda: lines)
    assert lines == ["process 0 waits for process 0, which tunes the tiles, for 1 s"]
