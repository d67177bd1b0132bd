"""BERT and ALBERT checkpoints of `transformers`, read and written."""

import os
from pathlib import Path

from dynexit.core.data import Tokens
from dynexit.core.settings import refuse_invalid, refuse_unfit
from dynexit.core.shapes import PyTree
from dynexit.core.types import Model
from dynexit.models.exit_heads import ExitHeads
from dynexit.models.hf_config import Config, existing
from dynexit.models.hf_folder import open_folder, write_folder
from dynexit.models.hf_weights import Original, Pretrained, read_weights, tensors_of
from dynexit.models.language import albert, bert
from dynexit.models.language.encoder import bert_encoder
from dynexit.models.language.encoder_settings import BertEncoder, PretrainedBert, bert_settings

KINDS = {"bert": bert, "albert": albert}


def from_hf_encoder(folder: str | os.PathLike[str], exits: ExitHeads | None = None) -> Pretrained:
    """Reads a BERT or ALBERT that `transformers` wrote.

    Args:
      folder: with `config.json` and `model.safetensors`, or shards.
      exits: of the settings that are returned; None for linear probes on the first token.

    Returns:
      `Pretrained`. Its model has no heads: outputs are `{"hidden": [E, B, L, D]}`, the tokens
      after every block. `settings.build(inputs, classes)` makes a model with heads, whose
      parameters "trunk" are these. A pooler or another head is kept for `to_hf_encoder` alone.
      Tokens that pad (`pad_token_id`) are masked where the inputs have no mask, which
      transformers leaves to the caller.

    Raises:
      ValueError: an unknown architecture or option, a file or tensor that is missing, damaged,
        unknown, of another shape or not finite, or a pickle; it is named.

    Example: `found = dx.models.language.from_hf_encoder("bert-base")`
    """
    opened = open_folder(folder)
    settings = bert_settings(Config(opened.path, opened.config), exits or ExitHeads())
    kind, prefix = KINDS[settings.kind], f"{settings.kind}."
    blocks = _sets(settings)
    params, original = read_weights(opened, kind.table(settings), blocks, prefix, kind.OTHERS)
    inputs = Tokens(settings.vocabulary, None)
    return Pretrained(settings, bert_encoder(settings, inputs, None), {"trunk": params}, original)


def to_hf_encoder(
    folder: str | os.PathLike[str],
    settings: BertEncoder,
    params: PyTree,
    original: Original | None = None,
) -> Path:
    """Writes a trunk as a folder that `transformers` and `from_hf_encoder` read.

    Args:
      folder: new or empty.
      settings: of the trunk.
      params: of a model of these settings; of them "trunk" is written.
      original: of a checkpoint that was read: names, types, configuration and other tensors are
        written as they were.

    Returns:
      The folder.

    Raises:
      FileExistsError: the folder holds something.
      ValueError: parameters of another shape; or, with `original`, values that its type does not
        hold.

    Example: `dx.models.language.to_hf_encoder("trunk", settings, fitted.params)`
    """
    kind = KINDS[settings.kind]
    tensors = tensors_of(params["trunk"], kind.table(settings), _sets(settings), original)
    return write_folder(folder, original.config if original else kind.config_of(settings), tensors)


def pretrained_bert(settings: PretrainedBert, inputs: Tokens, classes: int) -> Model:
    """Builds the model of `dx.models.PretrainedBert`."""
    refuse_invalid(settings)
    existing(settings.folder)
    refuse_unfit(settings, inputs, classes)
    found = from_hf_encoder(settings.folder, settings.exits)
    return bert_encoder(found.settings, inputs, classes, found.params["trunk"])


def _sets(settings: BertEncoder) -> int:
    """Sets of block weights."""
    return settings.depth if settings.kind == "bert" else settings.groups
