"""A quick form of every fault; `python -m tests.faults` has the full counts."""

import signal

import pytest
from faults import damage, inputs, peers, stops


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("faults")


def holds(result):
    assert result.got == result.wanted, result.notes


def test_a_stopped_run_resumes_with_the_same_bits(root):
    holds(stops.stopped(root, 1, 1))


def test_two_processes_stop_at_one_step_and_resume_with_the_same_bits(root):
    holds(stops.stopped(root, 1, 2))


@pytest.mark.slow
def test_two_processes_stop_after_one_batch_of_an_evaluation(root):
    holds(stops.stopped_in_evaluation(root, 1, 2, resume=False))


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_stopped_within_an_evaluation_repeats_it(root, processes):
    holds(stops.stopped_in_evaluation(root, 2, processes))


def test_a_killed_run_resumes_with_the_same_bits(root):
    holds(stops.killed(root, 1))


@pytest.mark.parametrize(
    "phase, number",
    [
        ("start-up", signal.SIGHUP),
        ("compilation", signal.SIGTERM),
        ("training", signal.SIGINT),
        ("evaluation", signal.SIGUSR1),
    ],
)
def test_a_signal_ends_the_run_in_every_phase(root, phase, number):
    holds(stops.signals(root, (number,), (phase,)))


def test_runs_that_start_together_have_folders_of_their_own(root):
    holds(peers.started_together(root, 2))


def test_of_runs_in_one_folder_one_trains(root):
    holds(peers.in_one_folder(root, 2))


def test_a_run_folder_that_is_not_shared_is_refused(root):
    holds(peers.not_shared(root, 1))


def test_a_process_that_does_not_come_is_named(root):
    holds(peers.missing(root, timeout=2))


def test_a_killed_peer_is_named(root):
    holds(peers.killed_peer(root, 1, restart=False))


@pytest.mark.slow
def test_a_run_whose_peer_was_killed_restarts_with_the_same_bits(root):
    holds(peers.killed_peer(root, 2))


@pytest.mark.slow
def test_two_processes_end_with_the_files_of_one(root):
    holds(peers.started_in_pairs(root, 1))


@pytest.mark.parametrize("way", ["half a manifest", "flipped bits"])
def test_a_damaged_step_is_skipped(root, way):
    holds(damage.damaged(root, (way,)))


def test_no_flipped_bit_is_silent(root):
    holds(damage.flipped(root, 10))


@pytest.mark.parametrize("kind", ["its own experiment file"])
def test_a_crafted_run_folder_does_no_harm(root, kind):
    holds(damage.crafted(root, (kind,)))


def test_a_stream_that_nobody_reads_does_not_stop_a_run(root):
    holds(inputs.dead_streams(root, ("both",)))


def test_a_wrong_setting_is_refused(root):
    holds(inputs.wrong_settings(root, ("--training.learning-rate inf",)))
