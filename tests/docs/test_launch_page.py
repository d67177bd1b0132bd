"""The commands of the launch page are accepted: each runs as a dry run."""

import re
from pathlib import Path

import pytest

from dynexit.cli.main import main

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "launch.md").read_text().replace("\\\n", " ")
COMMANDS = re.findall(r"^dynexit (launch .*)$", PAGE, flags=re.MULTILINE)


def test_the_page_has_a_command_for_each_target():
    from dynexit.cli.launch import TARGETS

    assert {words.split()[1] for words in COMMANDS} == set(TARGETS)


@pytest.mark.parametrize("words", COMMANDS)
def test_commands_are_accepted(words, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    given = words.split()
    assert main([*given, *([] if "--dry-run" in given else ["--dry-run"])]) == 0
    assert "## files" in capsys.readouterr().out


def test_options_in_the_text_exist(monkeypatch):
    from dynexit.cli.launch import TARGETS, flags_of, options_of

    for target in TARGETS:
        section = PAGE.partition(f"\n## {target}\n")[2].partition("\n## ")[0]
        known = {flag.name for flag in flags_of(options_of(target))}
        used = set(re.findall(r"`--([a-z-]+)", section)) - {"dry-run", "smoke"}
        assert {name.replace("-", "_") for name in used} <= known, target
