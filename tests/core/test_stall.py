"""A stall of training is said, with what training was doing."""

import time

from dynexit.core.processes.stall import StallWatch


def test_a_stall_is_said_once_in_every_period_and_ends_with_an_update():
    lines = []
    with StallWatch(0.2 / 60, lines.append) as watch:
        watch.at("waiting for the batch of update 7")
        time.sleep(0.5)
        said = len(lines)
        assert said in (1, 2, 3) and "waiting for the batch of update 7" in lines[0]
        assert "no update for 0.0 minutes" in lines[0]
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            watch.at("after update 7", update=True)
            time.sleep(0.01)
        assert len(lines) <= said + 1
    with StallWatch(0, lines.append):
        time.sleep(0.1)
    assert len(lines) <= said + 1
