"""Docstrings become reStructuredText that means what the docstring says."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "docs" / "ext"))
from docstrings import to_rst


@pytest.mark.parametrize(
    "line, expected",
    [
        ("leaves `[B, ...]`", "leaves ``[B, ...]``"),
        ("two `Step`s", "two ``Step``\\ s"),
        ("sum_{e<E} w_e", "sum\\_{e<E} w_e"),
        ("p || q, 2 * x", "p \\|\\| q, 2 \\* x"),
        ("Source: Graves 2016.", "**Source:** Graves 2016."),
        ("Attributes:", "Fields:"),
        (">>> x * y_  # p|q", ">>> x * y_  # p|q"),
    ],
)
def test_a_line(line, expected):
    assert to_rst([line]) == [expected]


def test_code_that_runs_over_a_line_break():
    assert to_rst(["takes `f(a,", "b)` alone"]) == ["takes ``f(a,``", "``b)`` alone"]


DOCSTRING = """First
  second.

Args:
  x: one
      two

Returns:
  `a`: b
    c"""
EXPECTED = """First
second.

Args:
  x: one
    two

:returns:
  ``a``: b
  c"""


def test_paragraphs_and_items_have_one_indentation():
    assert to_rst(DOCSTRING.splitlines()) == EXPECTED.splitlines()


def test_lists_are_paragraphs_of_their_own():
    lines = ["First:", "- one", "  more", "- two", "last"]
    assert to_rst(lines) == ["First:", "", "- one", "  more", "- two", "", "last"]
