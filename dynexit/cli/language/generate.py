"""`dynexit generate MODEL --prompt TEXT`: continues a text and shows the depth of each token."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from dynexit.cli.language.options import DRAFT, Devices, decoding_of, language_of
from dynexit.cli.language.options import FLAGS as DECODING
from dynexit.cli.options import Flag, parse
from dynexit.cli.positional import split
from dynexit.runs.experiment_file import SettingsError

USAGE = "dynexit generate RUN|FOLDER|FILE.gguf --prompt TEXT [--max-tokens 128] [--html FILE] ..."
FLAGS = (
    Flag("prompt", str | None, None, "text to continue; - for the standard input"),
    Flag("max_tokens", int | None, None, "tokens to write, 128 by default"),
    Flag("temperature", float, 0.0, "0 for the most probable token"),
    Flag("top_k", int, 0, "draw from the k most probable tokens; 0 for all"),
    Flag("top_p", float, 1.0, "draw from the smallest set of this probability"),
    Flag("min_p", float, 0.0, "draw from tokens of this part of the largest probability"),
    Flag("seed", int, 0, "of what is drawn"),
    Flag("html", str | None, None, "also write a page with the depth of each token"),
    Flag("no_color", bool, False, "no colours on a terminal"),
    DRAFT._replace(
        type=Literal["none", "early_exit", "prompt_lookup", "auto"],
        help=f"{DRAFT.help}; auto measures them on the prompt, and takes the fastest",
    ),
    *DECODING,
)


def generate(argv: Sequence[str]) -> int:
    """Continues a prompt, and prints the text while it is written.

    Args:
      argv: the words after `dynexit generate`.

    Returns:
      The exit code, 0.

    Raises:
      SettingsError: invalid options, or a model that cannot be read.
    """
    prompt, argv = _prompt(argv)
    words, rest = split(argv, USAGE)
    options, devices = parse(rest, "dynexit generate MODEL", FLAGS, Devices())
    if prompt is None:
        raise SettingsError(f"--prompt must be given\nusage: {USAGE}")

    from dynexit.decoding.sampling import Sampling
    from dynexit.evaluation.reports.depth_html import TokenView, depth_page
    from dynexit.runs.generation.devices import mesh_of
    from dynexit.runs.generation.terminal import Printer
    from dynexit.runs.generation.writing import Writing, measured_choice

    names = "temperature", "top_k", "top_p", "min_p"
    sampling = Sampling(**{name: options[name] for name in names})
    if found := sampling.validate():
        raise SettingsError("; ".join(found))
    draft, exits = decoding_of(options)
    mesh = mesh_of(devices.mesh.data, devices.mesh.model)
    language = language_of(words[0], options)
    text = sys.stdin.read() if prompt == "-" else prompt
    given: dict[str, Any] = {name: options[name] for name in ("max_tokens", "seed")}
    given["sampling"] = sampling
    try:
        if options["draft"] == "auto":
            choice = measured_choice(language, text, **given)
            print(f"--draft auto: {choice}", file=sys.stderr)
            draft = choice.draft
        writing = Writing(language, text, draft=draft, exits=exits, mesh=mesh, **given)
    except (TypeError, ValueError) as error:
        raise SettingsError(str(error)) from error
    decoder: Any = language.model.decoder
    printer = Printer(decoder.depth, not options["no_color"])
    printer.prompt(text)
    pieces = []
    for piece in writing:
        printer.piece(piece)
        pieces.append(piece)
    printer.summary(writing.summary, draft is not None)
    if options["html"]:
        views = [TokenView(*piece) for piece in pieces]
        Path(options["html"]).write_text(depth_page(text, views, decoder.depth), encoding="utf-8")
    return 0


def _prompt(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """The prompt, which may begin with dashes, and the other words."""
    words = list(argv)
    for k, word in enumerate(words):
        if word.startswith("--prompt="):
            return word.partition("=")[2], words[:k] + words[k + 1 :]
        if word == "--prompt":
            if k + 1 == len(words):
                raise SettingsError(f"--prompt takes a text, got nothing\nusage: {USAGE}")
            return words[k + 1], words[:k] + words[k + 2 :]
    return None, words
