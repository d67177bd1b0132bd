"""The benchmark of decoding: what a worker answers, and two processes in turns."""

import io
import json
import os
import sys

import pytest

import dynexit
from dynexit.bench.decoding import main, serve

CASE = {"width": 8, "heads": 2, "count": 4, "rows": 1, "slots": 1, "prompts": 2}


@pytest.mark.slow
def test_a_worker_answers_every_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{json.dumps(CASE)}\n" * 2))
    serve()
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first["tokens"] == second["tokens"] and len(first["tokens"]) == CASE["prompts"]
    assert first["turns"] == first["full"] > 0, "one row is busy in every turn"
    assert 0 < first["seconds"] and 0 < first["cpu"]


@pytest.mark.slow
def test_two_checkouts_are_compared(capsys):
    here = os.path.dirname(os.path.dirname(dynexit.__file__))
    options = "--rows 2 --slots 1 --width 8 --heads 2 --count 4 --repeats 1".split()
    assert main([*options, "--against", here]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("2 rows, 1 slots: ") and "against: " in shown[2]
    assert shown[2].endswith("equal tokens")
