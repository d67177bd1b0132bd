"""The benchmark of calibration's memory, at a small size."""

import numpy as np

from dynexit.bench.calibration_memory import main, run


def test_the_choice_is_made_at_a_small_size():
    calibrated, before, after = run(exits=3, vocabulary=16, tokens=40, batch=8)
    assert 0 < before <= after
    assert np.shape(calibrated.choice.operating_point["threshold"]) == (2,)


def test_the_command_prints_the_peak(capsys):
    assert main(["--tokens", "24", "--vocabulary", "16", "--exits", "2", "--batch", "8"]) == 0
    assert "24 tokens, 2 exits, 16 words: peak" in capsys.readouterr().out
