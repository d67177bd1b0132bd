"""Constructors of BERT and ALBERT encoders with exit heads; no JAX is loaded before `build`."""

import dataclasses
import os
from typing import TYPE_CHECKING, Any, Literal

from dynexit.core.settings import MOST_BLOCKS, at_least, at_most
from dynexit.models.exit_heads import ExitHeads
from dynexit.models.fits import misfit_heads, misfit_padding, misfit_tokens, not_above
from dynexit.models.hf_config import Config

if TYPE_CHECKING:
    from dynexit.core.data import Tokens
    from dynexit.core.types import Model


@dataclasses.dataclass(frozen=True)
class BertEncoder:
    """The encoder of `transformers`, BERT or ALBERT, with an exit head after every block.

    Blocks are post-norm. In ALBERT all blocks of a group share their weights, and embeddings are
    narrower than the blocks. Every exit head has weights of its own.

    Example:
      >>> import dynexit as dx
      >>> settings = BertEncoder("bert", vocabulary=50, width=8, depth=2, heads=2, hidden=16)
      >>> settings.build(dx.Tokens(50, 12), 3).names
      ('block00', 'block01')

    Source: Devlin et al. 2019, arXiv 1810.04805; Lan et al. 2020, ALBERT, arXiv 1909.11942.
    """

    kind: Literal["bert", "albert"] = "bert"
    """with "albert" blocks share weights"""
    vocabulary: int = 30522
    """tokens V"""
    width: int = 768
    """channels D, a multiple of `heads`"""
    depth: int = 12
    """blocks N, each followed by an exit"""
    heads: int = 12
    """attention heads"""
    hidden: int = 3072
    """inner width of the MLP"""
    positions: int = 512
    """places of the longest sequence"""
    types: int = 2
    """token types, which tell two sentences apart"""
    embedding: int | None = None
    """channels of the embeddings, with "albert"; None for `width`"""
    groups: int = 1
    """sets of weights, with "albert" """
    activation: Literal["gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu"] = "gelu"
    """of the MLP"""
    epsilon: float = 1e-12
    """of the norms"""
    padding: int | None = 0
    """the token that pads; it is masked where the inputs have no mask. None for none"""
    exits: ExitHeads = ExitHeads()
    """what follows every block"""

    def validate(self) -> list[str]:
        """Values out of range, one sentence each."""
        names = ("vocabulary", "width", "depth", "heads", "hidden", "positions", "types", "groups")
        found = at_least(self, 1, *names, *(() if self.embedding is None else ("embedding",)))
        found += at_most(self, MOST_BLOCKS, "depth") + not_above(0, epsilon=self.epsilon)
        found = found or misfit_heads(self.width, self.heads)
        found += misfit_padding(self.padding, self.vocabulary)
        if self.kind == "bert" and (self.embedding not in (None, self.width) or self.groups != 1):
            found.append("embedding and groups must be left out with kind 'bert'")
        if self.groups > self.depth:
            found.append(f"groups must be at most depth, got {self.groups} and {self.depth}")
        return found

    def fits(self, inputs: "Tokens", classes: int) -> list[str]:
        """What does not fit the tokens, one sentence each."""
        if found := misfit_tokens(inputs):
            return found
        found: list[str] = []
        if inputs.vocabulary > self.vocabulary:
            found.append(
                f"vocabulary must be at least that of the data, {inputs.vocabulary}, "
                f"got {self.vocabulary}"
            )
        if inputs.length is not None and inputs.length > self.positions:
            found.append(
                f"positions must be at least the length of the data, {inputs.length}, "
                f"got {self.positions}"
            )
        return found

    def build(self, inputs: "Tokens", classes: int) -> "Model":
        """The model, with weights drawn at random.

        Args:
          inputs: vocabulary and length.
          classes: C.

        Returns:
          A `Model`: inputs are tokens, integers `[B, L]`, or a dict of "tokens", and optionally of
          "mask", bool `[B, L]`, False where a token is padding, and "types", integers `[B, L]`;
          outputs logits `[E, B, C]` with E = N. Parameters: "trunk" and "head".

        Raises:
          ValueError: a field out of range, or tokens that do not fit; the field is named.
        """
        from dynexit.models.language.encoder import bert_encoder

        return bert_encoder(self, inputs, classes)


def bert_settings(config: Config, exits: ExitHeads) -> BertEncoder:
    """The settings that a `config.json` describes.

    Raises:
      ValueError: an architecture, an option or a value that is not supported; it is named.
    """
    kind = config.choice("model_type", ("bert", "albert"))
    config.only(
        pruned_heads={},
        is_decoder=False,
        add_cross_attention=False,
        position_embedding_type="absolute",
    )
    of_kind: dict[str, Any] = {}
    if kind == "albert":
        config.only(inner_group_num=1, down_scale_factor=1, gap_size=0, net_structure_type=0)
        config.only(num_memory_blocks=0)
        of_kind["groups"] = config.integer("num_hidden_groups", 1)
        of_kind["embedding"] = config.integer("embedding_size")
    padding = config.value("pad_token_id", 0)
    default = {"bert": "gelu", "albert": "gelu_new"}[kind]
    settings = BertEncoder(
        kind=kind,
        vocabulary=config.integer("vocab_size"),
        width=config.integer("hidden_size"),
        depth=config.integer("num_hidden_layers"),
        heads=config.integer("num_attention_heads"),
        hidden=config.integer("intermediate_size"),
        positions=config.integer("max_position_embeddings"),
        types=config.integer("type_vocab_size", 2),
        activation=config.choice(
            "hidden_act", ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu"), default
        ),
        epsilon=config.number("layer_norm_eps", 1e-12),
        padding=None if padding is None else config.integer("pad_token_id", 0, low=0),
        exits=exits,
        **of_kind,
    )
    config.finish(settings=settings)
    return settings


@dataclasses.dataclass(frozen=True)
class PretrainedBert:
    """A BERT or ALBERT from a folder that `transformers` wrote, with an exit head after each block.

    The trunk's weights are read from the folder; the exit heads are drawn.

    Example: `dx.models.PretrainedBert("bert-base").build(dx.Tokens(30522, 128), 2)`
    """

    folder: str = ""
    """with `config.json` and `model.safetensors` (BERT or ALBERT)"""
    exits: ExitHeads = ExitHeads()
    """what follows every block"""

    def settings(self) -> BertEncoder:
        """The encoder that `config.json` describes.

        Raises:
          ValueError: no such folder, or an architecture or option that is not supported.
        """
        return bert_settings(Config(self.folder), self.exits)

    def fits(self, inputs: "Tokens", classes: int) -> list[str]:
        """What does not fit the tokens, one sentence each; nothing while there is no folder."""
        if not os.path.isdir(self.folder):
            return []
        try:
            return self.settings().fits(inputs, classes)
        except ValueError as error:
            return [f"folder must hold a BERT or ALBERT: {error}"]

    def build(self, inputs: "Tokens", classes: int) -> "Model":
        """The model; its `init` copies the trunk's weights from the folder.

        Args:
          inputs: vocabulary and length.
          classes: C.

        Returns:
          A `Model` as of `BertEncoder.build`. `dx.methods.FrozenTrunk` trains its heads alone.

        Raises:
          ValueError: a folder that is missing, damaged or of another architecture, or tokens that
            do not fit.
        """
        from dynexit.models.language.encoder_hf import pretrained_bert

        return pretrained_bert(self, inputs, classes)
