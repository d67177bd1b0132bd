"""A language model with its parameters, as the readers of checkpoints return it."""

from typing import Any, NamedTuple

from dynexit.core.shapes import PyTree
from dynexit.core.types import Model
from dynexit.models.language.settings import CausalLM


class Pretrained(NamedTuple):
    """A model that was read from a checkpoint.

    Attributes:
      settings: its constructor.
      vocabulary: V, the rows of the embedding; a tokenizer may have fewer tokens.
      model: `settings.build(dx.Tokens(vocabulary), vocabulary)`.
      params: its parameters.
      architecture: the class of transformers, "LlamaForCausalLM" for example.
      config: the content of `config.json`, which `to_hf` writes again.
    """

    settings: CausalLM
    vocabulary: int
    model: Model
    params: PyTree
    architecture: str
    config: dict[str, Any]
