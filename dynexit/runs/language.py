"""A language model with its tokenizer: of a run, of a folder of transformers, or of a GGUF file."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dynexit.core.files import replacing
from dynexit.data.tokenizers.characters import Characters
from dynexit.data.tokenizers.subwords import FILE, GENERATION, Subwords
from dynexit.data.tokenizers.tokenizer import Tokenizer, refuse_unfit
from dynexit.runs.experiment_file import SettingsError
from dynexit.runs.run_folder import SETTINGS

if TYPE_CHECKING:
    from dynexit.core.types import Model


class LanguageModel(NamedTuple):
    """A model that writes text.

    Attributes:
      name: of its folder or file.
      model: with a decoder.
      params: its parameters.
      tokenizer: text to token ids and back.
    """

    name: str
    model: "Model"
    params: Any
    tokenizer: Tokenizer

    def encode(self, prompt: str) -> list[int]:
        """The ids of a prompt, with the token that begins a text where the tokenizer has one.

        Raises:
          ValueError: characters without an id, or an empty prompt.
        """
        if isinstance(self.tokenizer, Subwords):
            ids = list(self.tokenizer.inner.encode(prompt).ids)
        else:
            ids = self.tokenizer.encode(prompt)
        if not ids:
            raise ValueError("`prompt` must have at least one token, got none")
        return ids


def load_language(
    place: Path | str,
    experiment: Path | str | None = None,
    checkpoint: str | int = "newest",
    dtype: Any = None,
) -> LanguageModel:
    """Reads a language model and its tokenizer.

    The tokenizer of a run is the `tokenizer.json` in its folder, or else `text_tokenizer()` of the
    settings of its data.

    Args:
      place: a run folder, a folder of transformers with `tokenizer.json`, or a GGUF file.
      experiment, checkpoint: of a run, as in `trained`.
      dtype: of the parameters; None for that of the file.

    Returns:
      `LanguageModel`.

    Raises:
      SettingsError: nothing of these there, a damaged file, a model that does not decode, no
        tokenizer, or one that does not fit the model.

    Example:
      `language = dx.runs.load_language("runs/code")`
    """
    from dynexit.decoding.arguments import decoder_of

    path = Path(place)
    try:
        found = _loaded(path, experiment, checkpoint, dtype)
        refuse_unfit(found.tokenizer, decoder_of(found.model).vocabulary)
    except SettingsError:
        raise
    except (ValueError, TypeError, ImportError) as error:
        raise SettingsError(str(error)) from error
    return found


def _loaded(path: Path, experiment: Any, checkpoint: str | int, dtype: Any) -> LanguageModel:
    if path.is_file():
        return _pretrained(path, dtype)
    if (path / SETTINGS).is_file():
        return _of_run(path, experiment, checkpoint, dtype)
    if (path / "config.json").is_file():
        return _pretrained(path, dtype)
    raise SettingsError(
        f"{path} must be a run folder, a folder of transformers with config.json, or a GGUF file"
    )


def _pretrained(path: Path, dtype: Any) -> LanguageModel:
    from dynexit.data.tokenizers.gguf import from_gguf as gguf_tokenizer
    from dynexit.data.tokenizers.subwords import from_folder
    from dynexit.models.language.gguf import from_gguf
    from dynexit.models.language.hf.folder import from_hf

    read, tokenizer = (from_gguf, gguf_tokenizer) if path.is_file() else (from_hf, from_folder)
    words = tokenizer(path)  # first: it is quick to refuse
    found = read(path, dtype=dtype)
    return LanguageModel(path.resolve().stem, found.model, found.params, words)


def _of_run(path: Path, experiment: Any, checkpoint: str | int, dtype: Any) -> LanguageModel:
    import jax
    import jax.numpy as jnp

    from dynexit.runs.trained import trained_model

    run = trained_model(path, experiment, checkpoint)
    params = run.params
    if dtype is not None:
        cast = lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a
        params = jax.tree.map(cast, params)
    words = _tokenizer_of_run(path, run.settings, run.classes)
    return LanguageModel(path.resolve().name, run.model, params, words)


def _tokenizer_of_run(path: Path, settings: Any, classes: tuple[str, ...]) -> Tokenizer:
    from dynexit.data.tokenizers.subwords import from_folder

    if (path / FILE).is_file():
        return from_folder(path)
    made = getattr(getattr(settings, "data", None), "text_tokenizer", None)
    if callable(made):
        found: Any = made()
        return found
    if classes and all(len(name) == 1 for name in classes):
        return Characters(classes)
    raise SettingsError(
        f"{path} has no tokenizer: its data have no method `text_tokenizer`, and there is no {FILE}"
    )


def keep_tokenizer(folder: Path, data: Any) -> None:
    """Writes the tokenizer of a run's data into its folder, if it cannot be made without the data.

    Args:
      folder: the run's. A tokenizer that is there is kept.
      data: settings of the data. Nothing is written where they have no `text_tokenizer`, or where
        it returns bytes or characters, which the settings describe.
    """
    made = getattr(data, "text_tokenizer", None)
    if (folder / FILE).exists() or not callable(made):
        return
    words = made()
    if isinstance(words, Subwords):
        with replacing(folder / GENERATION) as draft:
            draft.write_text(json.dumps({"eos_token_id": list(words.stop)}), encoding="utf-8")
        words.save(folder)
