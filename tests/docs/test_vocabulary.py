"""One word for one meaning: documents, docstrings and messages use the vocabulary of the project.

A phrase that is not used has an entry in `PHRASES`. A package whose docstrings and strings are free
of them is listed in `CLEAN`; add a package there once it is.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = r"\b(?:rows?|examples?|tokens?|strings?|mazes|puzzles|digits|images|windows)"
MODAL = r"(?: (?:that|which|who|may|can|would|will|must|has|have|had|once|then|never|not|each))*"

# phrase -> what is said in its place
PHRASES = {
    rf"{ROWS}{MODAL} (?:leave|leaves|left|leaving)\b(?! (?:in|out|over|no|at most|to)\b)": "exits",
    rf"{ROWS}{MODAL} (?:stop|stops|stopped|go|goes|went|part|parts)\b": "exits",
    r"\b(?:leave|leaves|left|leaving) (?:early|late|apart|together|there)\b": "exits",
    r"\b(?:depart|departs|departed|departing|departures?)\b(?! from)": "exits; finished",
    r"\brows? of no one\b|\bhold(?:s|ing)? no one\b|\bof no one\b": "padding row",
    r"\bread(?:s|ing)? late\b|\blate (?:entries|readout|part)\b": "deferred readout",
    r"\bread_late\b": "deferred_readout",
    r"\bby[_ ]place\b": "per_token",
    r"\bpersistently\b": "consecutive",
    r"\baccept[_ ]flips\b": "max_negative_flips",
    r"\bgrades?\b|\bgraded\b": "score",
    r"\bcourse\b": "carry",
    r"\bgone\b": "finished",
    r"\btold\b": "written; receives",
    r"\bparting\b": "partition",
    r"\bfresh\b(?! install)": "pending; new",
    r"\bin company\b|\bits company\b": "with other rows",
    r"\bclose ranks\b|\bdealt? out\b": "compacted; redistributed",
    r"\bstands? still\b": "settles",
    r"\bsaid by name\b|\bnamed aloud\b": "reported",
    r"\blaws? of (?:depths?|steps)\b": "distribution of depths",
    r"(?<!frozen )\bbackbones?\b": "model",
    r"\b(?:dynexit[./]|dx\.)(?:exits|backbones|analysis)\b": "engine; models; evaluation",
}
# "schedule" is a word for learning rates, and for the published noise or loss weights of a method
SCHEDULE = re.compile(r"\bschedules?\b", re.IGNORECASE)
RATE = re.compile(r"learning|rate|warm|cosine|training\.schedule|peak|optax|weights", re.IGNORECASE)

CLEAN = tuple(sorted(p.name for p in (ROOT / "dynexit").iterdir() if (p / "__init__.py").exists()))
# packages of dynexit, "engine"; or their folders, "engine/executors"
PAGES = [
    path
    for path in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
    if path.name != "CHANGELOG.md" and "_build" not in path.parts  # it names the old words
]
MODULES = [path for name in CLEAN for path in sorted((ROOT / "dynexit" / name).rglob("*.py"))]
name_of = lambda path: path.relative_to(ROOT).as_posix()


def prose(source: str) -> list[tuple[int, str]]:
    """Line and text of the strings of a module, docstrings included. Names of things (strings
    without a space) are left out, as `"schedule"` of the settings.
    """
    return [
        (node.lineno, node.value)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value
    ]


def faults(text: str, line: int = 1) -> list[str]:
    """One sentence for each phrase in a text that is not used."""
    found = []
    at = lambda match: line + text.count("\n", 0, match.start())
    flat = re.sub(r"\s", " ", text)  # a phrase may run over a line break; positions stay
    for pattern, instead in PHRASES.items():
        for match in re.finditer(pattern, flat, re.IGNORECASE):
            found.append(f"{at(match)}: {match[0]!r}; say: {instead}")
    for match in SCHEDULE.finditer(flat):
        if not RATE.search(flat[max(match.start() - 100, 0) : match.end() + 100]):
            found.append(f"{at(match)}: {match[0]!r} without a learning rate; say: executor")
    return found


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_documents(path):
    assert faults(path.read_text()) == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_docstrings_and_messages(path):
    found = [fault for line, text in prose(path.read_text()) for fault in faults(text, line)]
    assert found == []


@pytest.mark.parametrize("package", CLEAN)
def test_clean_packages_exist(package):
    assert (ROOT / "dynexit" / package).is_dir()


@pytest.mark.parametrize(
    "text",
    [
        "a row that leaves at exit 2",
        "rows which have\nleft",
        "the departed rows",
        "two rows of no one",
        "what is read late",
        "the compacted schedule",
        "accuracy if all left here; rows that left here",
        "it leaves early",
    ],
)
def test_what_is_found(text):
    assert faults(text)


@pytest.mark.parametrize(
    "text",
    [
        "a row exits at exit 2",
        "the schedule of the learning rate",
        "two rows are left in the batch",
        "a fresh install",
        "the leaves of a pytree are `[b, ...]`",
    ],
)
def test_what_is_not(text):
    assert faults(text) == []
