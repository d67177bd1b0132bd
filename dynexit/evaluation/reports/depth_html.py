"""A page that shows a text with the depth of each token as its colour."""

import colorsys
import html
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

STYLE = """
body { font: 16px/1.7 system-ui, sans-serif; max-width: 50rem; margin: 2rem auto; color: #111;
  padding: 0 1rem; background: #fff }
h1 { font-size: 1.2rem }
.text { font-family: ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere }
.prompt { color: #666 }
.token { border-radius: 3px }
.token:hover { outline: 1px solid #111 }
.box { display: inline-block; width: .5em; height: 1em; vertical-align: text-bottom }
.legend { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .3rem 1.2rem }
.legend span { padding: .1rem .5rem; border-radius: 3px }
"""


class TokenView(NamedTuple):
    """A token as it is shown.

    Attributes:
      text: what it adds; empty for a part of a character, shown as a box.
      token: its id.
      depth: blocks that chose it.
      log_probability: ln p in nats, or None.
    """

    text: str
    token: int
    depth: int
    log_probability: float | None = None


def depth_colour(depth: int, deepest: int, lightness: float = 0.8) -> tuple[int, int, int]:
    """The colour of a depth: blue for the first block, by green and yellow to red for the last.

    Args:
      depth: blocks of a token, 1..deepest.
      deepest: blocks of the model.
      lightness: in 0..1.

    Returns:
      Red, green and blue in 0..255.

    Example:
      >>> depth_colour(1, 8), depth_colour(8, 8)
      ((168, 204, 240), (240, 168, 168))
    """
    part = (depth - 1) / max(1, deepest - 1)
    hue = (1 - part) * 210 / 360
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.7)
    return round(255 * red), round(255 * green), round(255 * blue)


def depth_page(
    prompt: str, tokens: Sequence[TokenView], deepest: int, title: str = "Depth of each token"
) -> str:
    """The page, one file without scripts; a pointer on a token shows its id, depth and ln p.

    Args:
      prompt: shown without colour.
      tokens: what follows it.
      deepest: blocks of the model.
      title: its heading.

    Returns:
      HTML.

    Example:
      >>> "&lt;b&gt;" in depth_page("", [TokenView("<b>", 5, 2)], 4)
      True
    """
    counts = Counter(token.depth for token in tokens)
    mean = sum(token.depth for token in tokens) / max(1, len(tokens))
    legend = "".join(
        f'<li><span style="background:{_css(depth, deepest)}">depth {depth}</span> '
        f"{count} token{'s' if count > 1 else ''}, {count / len(tokens):.1%}</li>"
        for depth, count in sorted(counts.items())
    )
    shown = "".join(_token(token, deepest) for token in tokens)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{_escaped(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{_escaped(title)}</h1>
<p>{len(tokens)} tokens, {mean:.2f} of {deepest} blocks on average</p>
<ul class="legend">{legend}</ul>
<p class="text"><span class="prompt">{_escaped(prompt)}</span>{shown}</p>
</body>
</html>
"""


def _token(token: TokenView, deepest: int) -> str:
    words = f"token {token.token}, depth {token.depth} of {deepest}"
    if token.log_probability is not None:
        words += f", ln p {token.log_probability:.3f}"
    kind = "token" if token.text else "token box"
    style = f"background:{_css(token.depth, deepest)}"
    return f'<span class="{kind}" style="{style}" title="{words}">{_escaped(token.text)}</span>'


def _css(depth: int, deepest: int) -> str:
    return "rgb({},{},{})".format(*depth_colour(depth, deepest))


def _escaped(text: str) -> str:
    """The text as HTML; control characters, which HTML does not allow, become U+FFFD."""
    kept = (
        c if c in "\n\t" or (c >= " " and not "\x7f" <= c <= "\x9f") else "\ufffd" for c in text
    )
    return html.escape("".join(kept))
