"""Dynamic depth on 1 to 8 virtual devices, and the imbalance of depths between devices."""

import numpy as np
import pytest

from dynexit.bench.imbalance import formula, segments, simulated
from dynexit.bench.scaling import DIGITS, main, on_virtual_devices, stratified


@pytest.fixture(scope="module")
def table():
    """The columns of the table for 1, 2, 4 and 8 devices."""
    text = on_virtual_devices(["weak", "--rows", "64"], devices=8, seconds=300)
    rows = [line.strip("| \n").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return {name: [float(row[k]) for row in rows[2:]] for k, name in enumerate(rows[0])}


def test_no_collective_is_in_the_loop_over_depth(table):
    assert table["devices"] == [1, 2, 4, 8]
    assert table["collectives in the loop"] == [0, 0, 0, 0]


def test_devices_do_the_work_of_one_device_after_rebalancing(table):
    assert max(table["busiest device"]) > 1.1
    np.testing.assert_allclose(table["rebalanced after 1, 2, 3"], 1, atol=0.03)


def test_host_overhead_is_printed(table):
    for name in ("placing ms", "dispatch ms", "call ms"):
        assert all(value > 0 for value in table[name])


def test_simulated_exchanges_move_survivors_as_run_sharded_does():
    """The counts of `test_survivors_are_dealt_out_evenly`."""
    depths = np.where(np.arange(24) < 12, 6, 1).reshape(4, 6)
    assert segments(depths).sum(0).tolist() == [36, 36, 6, 6]
    assert segments(depths, (1,)).sum(0).tolist() == [21, 21, 21, 21]
    assert segments(depths, (3,)).sum(0).tolist() == [27, 27, 15, 15]


@pytest.mark.parametrize("devices", [8, 256])
def test_the_formula_agrees_with_draws_of_many_rows(devices):
    drawn = simulated(np.array(DIGITS), 256, devices, draws=20).busiest
    assert formula(np.array(DIGITS), 256, devices) - 1 == pytest.approx(drawn - 1, rel=0.2)


def test_a_barrier_waits_for_the_busiest_device_of_each_segment():
    depths = np.array([[1, 1], [2, 2]])
    assert segments(depths).max(1).sum() == 4
    assert segments(depths, (1,)).tolist() == [[2, 2], [1, 1]]


def test_depths_of_one_device_follow_the_histogram():
    assert np.bincount(stratified(DIGITS, 450), minlength=5).tolist() == [0, *DIGITS]


def test_the_table_of_imbalance_names_the_exchanges(capsys):
    main(["imbalance", "--devices", "8", "--rows", "8", "64", "--draws", "1"])
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert (
        head
        == "| devices | rows on each | formula | never | after 1 | after 1, 2 | after 1, 2, 3 |"
    )
    assert len(rows) == 2
