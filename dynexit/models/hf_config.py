"""`config.json` of a folder that `transformers` wrote; loads no JAX."""

import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from dynexit.core.files import local

CONFIG, WEIGHTS = "config.json", "model.safetensors"

UNUSED = frozenset(
    (
        "_name_or_path _attn_implementation architectures attn_implementation "
        "attention_probs_dropout_prob bos_token_id chunk_size_feed_forward classifier_dropout "
        "classifier_dropout_prob drop_path_rate dtype encoder_stride eos_token_id "
        "finetuning_task gradient_checkpointing hidden_dropout_prob id2label initializer_range "
        "label2id language layerscale_value model_type num_labels output_attentions "
        "output_hidden_states pad_token_id pooler_act pooler_output_size problem_type return_dict "
        "task_specific_params tie_word_embeddings tokenizer_class torch_dtype torchscript "
        "transformers_version use_bfloat16 use_cache"
    ).split()
)
"""Entries that do not change the states of a network at inference."""


def existing(folder: str | os.PathLike[str]) -> Path:
    """The path of a folder that exists.

    Raises:
      ValueError: an address or the name of a model on a hub, or no such folder.
    """
    path = local(folder, "folder")
    if not path.is_dir():
        raise ValueError(
            f"`folder` must be a folder with {CONFIG} and {WEIGHTS}, got {os.fspath(folder)!r}, "
            "which is no folder; nothing is downloaded: transformers writes one with "
            "`model.save_pretrained(folder)`"
        )
    return path


def read_json(file: Path) -> Any:
    """The content of a JSON file.

    Raises:
      ValueError: it is missing or damaged; the file is named.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{file} is missing") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read as JSON: {error}") from error


def read_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The content of `config.json`.

    Raises:
      ValueError: no such folder, or no JSON object there.
    """
    path = existing(folder)
    config = read_json(path / CONFIG)
    if not isinstance(config, dict):
        raise ValueError(f"{path / CONFIG} must be an object, got {type(config).__name__}")
    return config


class Config:
    """Reads entries of `config.json` by type; `finish` refuses those that nobody read.

    A reading function takes the entry's name and a default; without a default the entry must be
    there. All raise `ValueError`, which names the file and the entry.

    Args:
      folder: that holds the file.
      values: its content; None to read it.

    Example:
      >>> config = Config("vit", {"hidden_size": 8, "hidden_act": "gelu", "rope_theta": 2.0})
      >>> config.integer("hidden_size"), config.choice("hidden_act", ("gelu", "relu"))
      (8, 'gelu')
      >>> config.finish()
      Traceback (most recent call last):
        ...
      ValueError: vit/config.json: the option 'rope_theta' is not known
    """

    def __init__(
        self, folder: str | os.PathLike[str], values: dict[str, Any] | None = None
    ) -> None:
        self._file = Path(folder) / CONFIG
        self._values = read_config(folder) if values is None else values
        self._read: set[str] = set()

    def __len__(self) -> int:
        return len(self._values)

    def refuse(self, name: str, wanted: str) -> ValueError:
        """The error for an entry that is not what was wanted."""
        came = repr(self._values[name]) if name in self._values else "nothing"
        return ValueError(f"{self._file}: {name!r} must be {wanted}, got {came}")

    def value(self, name: str, default: Any = ...) -> Any:
        """An entry of any type."""
        self._read.add(name)
        if name not in self._values and default is ...:
            raise self.refuse(name, "given")
        return self._values.get(name, default)

    def integer(self, name: str, default: Any = ..., low: int = 1) -> int:
        """An integer of at least `low`."""
        found = self.value(name, default)
        if not isinstance(found, int) or isinstance(found, bool) or found < low:
            raise self.refuse(name, f"an integer of at least {low}")
        return found

    def number(self, name: str, default: Any = ...) -> float:
        """A number above 0."""
        found = self.value(name, default)
        if not isinstance(found, (int, float)) or isinstance(found, bool) or not found > 0:
            raise self.refuse(name, "a number above 0")
        return float(found)

    def boolean(self, name: str, default: Any = ...) -> bool:
        """True or False."""
        found = self.value(name, default)
        if not isinstance(found, bool):
            raise self.refuse(name, "true or false")
        return found

    def choice(self, name: str, options: Sequence[str], default: Any = ...) -> Any:
        """One of several words."""
        found = self.value(name, default)
        if found not in options:
            raise self.refuse(name, f"one of {', '.join(options)}")
        return found

    def square(self, name: str) -> tuple[int, int]:
        """A side, or two of them: `(height, width)`."""
        found = self.value(name)
        sides = tuple(found) if isinstance(found, list) else (found, found)
        whole = (isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in sides)
        if len(sides) != 2 or not all(whole):
            raise self.refuse(name, "an integer of at least 1 or two of them")
        return sides

    def part(self, name: str) -> "Config":
        """The reader of an entry that is an object; empty where it is absent or null."""
        found = self.value(name, None)
        if found is not None and not isinstance(found, dict):
            raise self.refuse(name, "an object")
        return Config(self._file.parent, found or {})

    def absent(self, *names: str) -> None:
        """Refuses entries of what is not supported, unless they are null, false or empty."""
        for name in names:
            if self.value(name, None):
                raise self.refuse(name, "absent, since it is not supported")

    def only(self, **supported: Any) -> None:
        """Refuses entries that are there with another value than the one supported."""
        for name, wanted in supported.items():
            if self.value(name, wanted) != wanted:
                raise self.refuse(name, f"{wanted!r}, which alone is supported")

    def finish(self, unused: Collection[str] = UNUSED, settings: Any = None) -> None:
        """Refuses an entry that was neither read nor is in `unused`, and invalid settings.

        Args:
          unused: names.
          settings: that the entries gave, with `validate`.
        """
        for name in sorted(set(self._values) - self._read - set(unused)):
            raise ValueError(f"{self._file}: the option {name!r} is not known")
        if settings is not None and (found := settings.validate()):
            raise ValueError(f"{self._file}: {'; '.join(found)}")
