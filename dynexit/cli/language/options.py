"""Options that `dynexit generate` and `dynexit serve` share."""

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

from dynexit.cli.evaluate import CHECKPOINT, EXPERIMENT, chosen_checkpoint
from dynexit.cli.options import Flag, Options
from dynexit.core.settings import Mesh

if TYPE_CHECKING:
    from dynexit.decoding.drafts import Draft
    from dynexit.decoding.exits.settings import Exits
    from dynexit.runs.language import LanguageModel

DRAFT = Flag(
    "draft",
    Literal["none", "early_exit", "prompt_lookup"],
    "none",
    "where drafts come from: the first blocks of the model, or the text so far; the text does not "
    "change",
)
FLAGS = (
    Flag("draft_exit", int | None, None, "with --draft early_exit: blocks that draft"),
    Flag("draft_tokens", int | None, None, "drafts of a round"),
    Flag("exits", tuple[int, ...], (), "blocks after which tokens may exit; the text changes"),
    Flag("threshold", float | None, None, "with --exits: margin of an exit, 0.9 by default"),
    Flag(
        "park",
        int,
        0,
        "with --exits: sweeps that a token waits at the first exit, so that deeper blocks run for "
        "several requests at once",
    ),
    Flag("dtype", Literal["float32", "bfloat16"] | None, None, "of the parameters"),
    CHECKPOINT,
    EXPERIMENT,
)


@dataclasses.dataclass(frozen=True)
class DecodingMesh:
    """The devices on which text is written; the product of the two is their number."""

    data: int | None = 1
    """groups of devices that split the requests and hold copies of the parameters; None: all that
    the other axis leaves
    """
    model: int = 1
    """devices that split the heads and inner widths of every layer (tensor parallelism)"""

    def validate(self) -> list[str]:
        """Out-of-range values, one sentence each."""
        return Mesh(self.data, 1, self.model).validate()


@dataclasses.dataclass(frozen=True)
class Devices:
    """The devices of a command; one by default."""

    mesh: DecodingMesh = DecodingMesh()


def decoding_of(options: Options) -> "tuple[Draft | None, Exits | None]":
    """The drafts and exits; no drafts with "auto", which needs a prompt.

    Raises:
      SettingsError: options that do not go together.
    """
    from dynexit.runs.experiment_file import SettingsError
    from dynexit.runs.generation.options import draft_of, exits_of

    auto = options["draft"] == "auto"
    kind = "none" if auto else options["draft"]
    draft = draft_of(kind, options["draft_exit"], options["draft_tokens"])
    exits = exits_of(options["exits"], options["threshold"], options["park"])
    if (auto or draft is not None) and exits is not None:
        raise SettingsError("--draft and --exits do not go together: drafts are verified")
    return draft, exits


def language_of(place: str, options: Options) -> "LanguageModel":
    """The language model of a command.

    Raises:
      SettingsError: as `load_language`.
    """
    import jax.numpy as jnp

    from dynexit.runs.language import load_language

    dtype: Any = {None: None, "float32": jnp.float32, "bfloat16": jnp.bfloat16}[options["dtype"]]
    checkpoint = chosen_checkpoint(options["checkpoint"])
    return load_language(place, options["experiment"], checkpoint, dtype)
