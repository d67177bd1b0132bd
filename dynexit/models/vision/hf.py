"""ViT and DINOv2 checkpoints of `transformers`, read and written."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from dynexit.core.settings import refuse_invalid, refuse_unfit
from dynexit.core.shapes import HostArray, PyTree, Rows
from dynexit.core.types import Model
from dynexit.layers.inputs import check_input
from dynexit.models.exit_heads import ExitHeads
from dynexit.models.hf_config import Config, existing, read_json
from dynexit.models.hf_folder import open_folder, write_folder
from dynexit.models.hf_weights import (
    Original,
    Pretrained,
    Tensor,
    linear,
    norm,
    read_weights,
    tensors_of,
)
from dynexit.models.vision.encoder import gated_width, vit_encoder
from dynexit.models.vision.encoder_settings import PretrainedVit, VitEncoder, vit_settings

PREPROCESSOR = "preprocessor_config.json"
OTHERS = r"(pooler|classifier|decoder)\.|embeddings\.mask_token$"


def table(s: VitEncoder) -> list[Tensor]:
    """The tensors of a ViT or DINOv2."""
    d, split = s.width, (s.heads, s.width // s.heads)
    length = 1 + (s.image[0] // s.patch) * (s.image[1] // s.patch)
    cut, at = (d, s.channels, s.patch, s.patch), "encoder.layer.{}"
    rows = [
        Tensor("embeddings.cls_token", "embed/cls", (1, 1, d), (d,)),
        Tensor("embeddings.position_embeddings", "embed/positions", (1, length, d), (length, d)),
        Tensor(
            "embeddings.patch_embeddings.projection.weight",
            "embed/patches/kernel",
            cut,
            (s.patch * s.patch * s.channels, d),
            (2, 3, 1, 0),
        ),
        Tensor("embeddings.patch_embeddings.projection.bias", "embed/patches/bias", (d,), (d,)),
        *norm("layernorm", "norm", d),
        *linear(f"{at}.attention.output.dense", "block/out", (d,), split),
    ]
    for name in ("query", "key", "value"):
        both = linear(f"{at}.attention.attention.{name}", f"block/{name}", split, (d,))
        rows += both if s.qkv_bias else both[:1]
    if s.kind == "vit":
        return [
            *rows,
            *norm(f"{at}.layernorm_before", "block/norm1", d),
            *norm(f"{at}.layernorm_after", "block/norm2", d),
            *linear(f"{at}.intermediate.dense", "block/up", (s.hidden,), (d,)),
            *linear(f"{at}.output.dense", "block/down", (d,), (s.hidden,)),
        ]
    for k in (1, 2):
        rows.append(Tensor(f"{at}.layer_scale{k}.lambda1", f"block/scale{k}", (d,), (d,)))
        rows += norm(f"{at}.norm{k}", f"block/norm{k}", d)
    if not s.gated:
        rows += linear(f"{at}.mlp.fc1", "block/up", (s.hidden,), (d,))
        return rows + linear(f"{at}.mlp.fc2", "block/down", (d,), (s.hidden,))
    inner = gated_width(s.hidden)
    rows += linear(f"{at}.mlp.weights_in", "block/gate_up", (2, inner), (d,))
    return rows + linear(f"{at}.mlp.weights_out", "block/down", (d,), (inner,))


def from_hf(folder: str | os.PathLike[str], exits: ExitHeads | None = None) -> Pretrained:
    """Reads a ViT or DINOv2 that `transformers` wrote.

    Args:
      folder: with `config.json` and `model.safetensors`, or shards.
      exits: of the settings that are returned; None for linear probes on the class token.

    Returns:
      `Pretrained`. Its model has no heads: outputs are `{"hidden": [E, B, L, D]}`, the tokens
      after every block and the last norm. `settings.build(inputs, classes)` makes a model with
      heads, whose parameters "trunk" are these. A pooler or classifier is kept for `to_hf` alone.

    Raises:
      ValueError: an unknown architecture or option, a file or tensor that is missing, damaged,
        unknown, of another shape or not finite, or a pickle; it is named.

    Example: `found = dx.models.vision.from_hf("vit-base")`
    """
    opened = open_folder(folder)
    settings = vit_settings(Config(opened.path, opened.config), exits or ExitHeads())
    prefix = f"{settings.kind}."
    params, original = read_weights(opened, table(settings), settings.depth, prefix, OTHERS)
    image = (*settings.image, settings.channels)
    return Pretrained(settings, vit_encoder(settings, image, None), {"trunk": params}, original)


def to_hf(
    folder: str | os.PathLike[str],
    settings: VitEncoder,
    params: PyTree,
    original: Original | None = None,
) -> Path:
    """Writes a trunk as a folder that `transformers` and `from_hf` read.

    Args:
      folder: new or empty.
      settings: of the trunk.
      params: of a model of these settings; of them "trunk" is written. Exit heads are no part of
        the architecture and stay where they are (`dx.export`, a run folder).
      original: of a checkpoint that was read: names, types, configuration and other tensors are
        written as they were.

    Returns:
      The folder.

    Raises:
      FileExistsError: the folder holds something.
      ValueError: parameters of another shape; or, with `original`, values that its type does not
        hold (a trunk of float16 that was trained on).

    Example: `dx.models.vision.to_hf("trunk", settings, fitted.params)`
    """
    tensors = tensors_of(params["trunk"], table(settings), settings.depth, original)
    return write_folder(folder, original.config if original else config_of(settings), tensors)


def config_of(s: VitEncoder) -> dict[str, Any]:
    """`config.json` of a network of one's own."""
    square = s.image[0] == s.image[1]
    config = {
        "architectures": ["ViTModel" if s.kind == "vit" else "Dinov2Model"],
        "model_type": s.kind,
        "image_size": s.image[0] if square else list(s.image),
        "patch_size": s.patch,
        "num_channels": s.channels,
        "hidden_size": s.width,
        "num_hidden_layers": s.depth,
        "num_attention_heads": s.heads,
        "hidden_act": s.activation,
        "layer_norm_eps": s.epsilon,
        "qkv_bias": s.qkv_bias,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "dtype": "float32",
    }
    if s.kind == "vit":
        return config | {"intermediate_size": s.hidden}
    gate = {"use_swiglu_ffn": s.gated, "use_mask_token": False}
    return config | {"mlp_ratio": s.hidden // s.width} | gate


def pretrained_vit(settings: PretrainedVit, inputs: tuple[int, ...], classes: int) -> Model:
    """Builds the model of `dx.models.PretrainedVit`."""
    refuse_invalid(settings)
    existing(settings.folder)
    refuse_unfit(settings, inputs, classes)
    found = from_hf(settings.folder, settings.exits)
    model = vit_encoder(found.settings, inputs, classes, found.params["trunk"])
    if not settings.normalise:
        return model
    mean, std = normalisation(existing(settings.folder), inputs[2])
    embed = model.embed

    def normalised(params: PyTree, images: Rows) -> Rows:
        check_input(images, inputs, "images")
        return embed(params, (images - mean.astype(images.dtype)) / std.astype(images.dtype))

    return model._replace(embed=normalised)


def normalisation(folder: Path, channels: int) -> tuple[HostArray, HostArray]:
    """Mean and deviation `[1, 1, 1, C]` of images in 0..1, of `preprocessor_config.json`.

    Raises:
      ValueError: there is none, or it has not one of each for every channel; the file is named.
    """
    file = folder / PREPROCESSOR
    found: Any = read_json(file)
    values: list[HostArray] = []
    for name in ("image_mean", "image_std"):
        value: Any = found.get(name) if isinstance(found, dict) else None
        numbers = isinstance(value, list) and all(isinstance(v, (int, float)) for v in value)
        if not numbers or len(value) != channels or (name == "image_std" and min(value) <= 0):
            raise ValueError(
                f"{file}: {name!r} must hold {channels} numbers, one for each channel of the data, "
                f"got {value!r}"
            )
        values.append(np.asarray(value, np.float32).reshape(1, 1, 1, channels))
    return values[0], values[1]
