"""Docstrings as they are written here, to reStructuredText.

Docstrings use single backticks for code, and formulas in plain text (`sum_{e<E} w_e`,
`p | q`, `2 * x`), which reStructuredText would read as markup.
"""

import re
from collections.abc import Sequence

SPECIAL = re.compile(r"\\|\*|\||_(?![A-Za-z0-9])|`")
CODE = re.compile(r"(``[^`]+``|`[^`]+`)")
PROSE = re.compile(r"(Returns|Yields|Note|Source):$")
ITEMS = re.compile(r"(Args|Raises|Attributes):$")
CODE_SECTION = re.compile(r"Examples?:$")
# napoleon would take words before a colon for a type, and names of fields for cross-references
HEADERS = {"Returns:": ":returns:", "Attributes:": "Fields:"}
LABEL = re.compile(r"(Source|Example): (?=\S)")


def to_rst(lines: Sequence[str]) -> list[str]:
    """The lines of a docstring, as reStructuredText that napoleon can read.

    Args:
      lines: without common indentation.

    Returns:
      As many lines; code is in double backticks, other special characters are escaped, and lines
      that continue a paragraph have its indentation. Doctests are left as they are.
    """
    found: list[str] = []
    doctest, bullet, section, base = False, False, None, None
    for line in _whole_code(lines):
        text, indent = line.lstrip(), len(line) - len(line.lstrip())
        if not text:
            doctest, bullet = False, False
            if section is None:
                base = None
            found.append("")
            continue
        if indent == 0:
            section = next((s for s in (PROSE, ITEMS, CODE_SECTION) if s.match(text)), None)
            base = None
            line = HEADERS.get(text, line)
        doctest = doctest or text.startswith(">>>")
        if not doctest and section is not CODE_SECTION and not (indent == 0 and section):
            base = indent if base is None else base
            item = text.startswith("- ")
            if found and found[-1] and item != bullet and indent == base:
                found.append("")  # a list is a paragraph of its own
            bullet = item or (bullet and indent > base)
            hanging = indent > base and not item and (bullet or section is ITEMS)
            line = " " * (base + 2 * hanging) + text
        found.append(line if doctest or line in HEADERS.values() else _escaped(line))
    return found


def _whole_code(lines: Sequence[str]) -> list[str]:
    """The same lines, with code that runs over a line break closed and opened again there."""
    found, inside, doctest = [], False, False
    for line in lines:
        doctest = bool(line.strip()) and (doctest or line.lstrip().startswith(">>>"))
        if doctest or not line.strip():
            found.append(line)
            inside = False
            continue
        body = line.lstrip()
        opened = line[: len(line) - len(body)] + "`" + body if inside else line
        inside = opened.count("`") % 2 == 1
        found.append(opened + "`" if inside else opened)
    return found


def _escaped(line: str) -> str:
    """One line of prose."""
    parts = CODE.split(line)
    code = lambda part: part if part.startswith("``") else f"`{part}`"
    text = "".join(
        code(part) + _apart(following) if k % 2 else SPECIAL.sub(r"\\\g<0>", part)
        for k, (part, following) in enumerate(zip(parts, [*parts[1:], ""], strict=True))
    )
    return LABEL.sub(r"**\1:** ", text, count=1) if LABEL.match(text) else text


def _apart(following: str) -> str:
    """What ends a literal where a letter follows at once: "`Step`s"."""
    return "\\ " if following[:1].isalnum() else ""
