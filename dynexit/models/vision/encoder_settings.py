"""Constructors of ViT and DINOv2 encoders with exit heads; no JAX is loaded before `build`."""

import dataclasses
import os
from typing import TYPE_CHECKING, Literal

from dynexit.core.settings import MOST_BLOCKS, at_least, at_most
from dynexit.models.exit_heads import ExitHeads
from dynexit.models.fits import misfit_heads, misfit_shape, not_above, positive
from dynexit.models.hf_config import UNUSED, Config
from dynexit.models.vision.settings import IMAGE, misfit_patches

if TYPE_CHECKING:
    from dynexit.core.types import Model

UNUSED_BY_VISION = UNUSED | {
    "_out_features", "_out_indices", "apply_layernorm", "out_features", "out_indices",
    "reshape_hidden_states", "stage_names", "use_mask_token",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class VitEncoder:
    """The vision transformer of `transformers`, ViT or DINOv2, with an exit head after each block.

    Blocks are pre-norm. Tokens are a class token and one for each patch, with learned positions.
    DINOv2 has a layer scale. `dx.models.vision.to_hf` writes a trained one as a checkpoint.

    Example:
      >>> settings = VitEncoder("vit", (8, 8), 1, patch=4, width=8, depth=2, heads=2, hidden=16)
      >>> settings.build((8, 8, 1), 10).names
      ('block00', 'block01')

    Source: Dosovitskiy et al. 2021, arXiv 2010.11929; Oquab et al. 2023, DINOv2, arXiv 2304.07193.
    """

    kind: Literal["vit", "dinov2"] = "vit"
    """with "dinov2" every residual branch has a scale"""
    image: tuple[int, int] = (224, 224)
    """height and width that the positions are for"""
    channels: int = 3
    """of an image"""
    patch: int = 16
    """side of a patch in pixels"""
    width: int = 768
    """channels D, a multiple of `heads`"""
    depth: int = 12
    """blocks N, each followed by an exit"""
    heads: int = 12
    """attention heads"""
    hidden: int = 3072
    """inner width of the MLP; a gated one has two thirds of it, rounded up to a multiple of 8"""
    activation: Literal["gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu"] = "gelu"
    """of the MLP; a gated one has silu"""
    epsilon: float = 1e-12
    """of the norms"""
    qkv_bias: bool = True
    """whether queries, keys and values have biases"""
    gated: bool = False
    """SwiGLU, with "dinov2" """
    exits: ExitHeads = ExitHeads()
    """what follows every block"""

    def validate(self) -> list[str]:
        """Values out of range, one sentence each."""
        found = at_least(self, 1, "channels", "patch", "width", "depth", "heads", "hidden")
        found += at_most(self, MOST_BLOCKS, "depth") + not_above(0, epsilon=self.epsilon)
        if not all(map(positive, self.image)):
            return [*found, f"image must hold two integers of at least 1, got {self.image}"]
        found = found or misfit_heads(self.width, self.heads)
        if not found and (self.image[0] % self.patch or self.image[1] % self.patch):
            found.append(f"patch must divide the sides of image, got {self.patch} and {self.image}")
        if self.gated and self.kind != "dinov2":
            found.append("gated must be False with kind 'vit'")
        if self.kind == "dinov2" and not found and self.hidden % self.width:
            found.append(
                f"hidden must be a multiple of width with 'dinov2', got {self.hidden} and "
                f"{self.width}"
            )
        return found

    def fits(self, inputs: tuple[int, ...], classes: int) -> list[str]:
        """What does not fit the images, one sentence each."""
        if found := misfit_shape(inputs, *IMAGE):
            return found
        if inputs[2] != self.channels:
            return [f"channels must be those of the data, {inputs[2]}, got {self.channels}"]
        found = misfit_patches(inputs, self.patch, None)
        if not found and inputs[:2] != self.image and self.image[0] != self.image[1]:
            found.append(
                f"image must be square or that of the data, {inputs[0]} x {inputs[1]}: positions "
                f"are interpolated from square images alone, got {self.image}"
            )
        return found

    def build(self, inputs: tuple[int, ...], classes: int) -> "Model":
        """The model, with weights drawn at random.

        Args:
          inputs: height, width and channels of an image. Where they differ from `image`, the
            positions are interpolated (bicubic), as transformers does.
          classes: C.

        Returns:
          A `Model`: inputs `[B, height, width, channels]` floating point, outputs logits
          `[E, B, C]` with E = N. Parameters: "trunk" and "head".

        Raises:
          ValueError: a field out of range, or images that do not fit; the field is named.
        """
        from dynexit.models.vision.encoder import vit_encoder

        return vit_encoder(self, inputs, classes)


def vit_settings(config: Config, exits: ExitHeads) -> VitEncoder:
    """The settings that a `config.json` describes.

    Raises:
      ValueError: an architecture, an option or a value that is not supported; it is named.
    """
    kind = config.choice("model_type", ("vit", "dinov2"))
    config.only(pruned_heads={}, is_decoder=False, add_cross_attention=False)
    image, patch = config.square("image_size"), config.square("patch_size")
    if patch[0] != patch[1]:
        raise config.refuse("patch_size", "square")
    width = config.integer("hidden_size")
    own = dict(hidden=0, gated=False)
    if kind == "vit":
        own["hidden"] = config.integer("intermediate_size")
    else:
        own["hidden"] = width * config.integer("mlp_ratio", 4)
        own["gated"] = config.boolean("use_swiglu_ffn", False)
    settings = VitEncoder(
        kind=kind,
        image=image,
        channels=config.integer("num_channels", 3),
        patch=patch[0],
        width=width,
        depth=config.integer("num_hidden_layers"),
        heads=config.integer("num_attention_heads"),
        hidden=own["hidden"],
        activation=config.choice(
            "hidden_act", ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu"), "gelu"
        ),
        epsilon=config.number("layer_norm_eps", 1e-12 if kind == "vit" else 1e-6),
        qkv_bias=config.boolean("qkv_bias", True),
        gated=bool(own["gated"]),
        exits=exits,
    )
    config.finish(UNUSED_BY_VISION, settings)
    return settings


@dataclasses.dataclass(frozen=True)
class PretrainedVit:
    """A ViT or DINOv2 from a folder that `transformers` wrote, with an exit head after every block.

    The trunk's weights are read from the folder; the exit heads are drawn. A trunk wants images
    normalised as in its own training, see `normalise`.

    Example: `dx.models.PretrainedVit("vit-base", normalise=True).build((224, 224, 3), 10)`
    """

    folder: str = ""
    """with `config.json` and `model.safetensors` (ViT or DINOv2)"""
    exits: ExitHeads = ExitHeads()
    """what follows every block"""
    normalise: bool = False
    """images are in 0..1, and the model normalises them as `preprocessor_config.json` of the folder
    says; False where the data set does it
    """

    def settings(self) -> VitEncoder:
        """The encoder that `config.json` describes.

        Raises:
          ValueError: no such folder, or an architecture or option that is not supported.
        """
        return vit_settings(Config(self.folder), self.exits)

    def fits(self, inputs: tuple[int, ...], classes: int) -> list[str]:
        """What does not fit the images, one sentence each; nothing while there is no folder."""
        if not os.path.isdir(self.folder):
            return []
        try:
            return self.settings().fits(inputs, classes)
        except ValueError as error:
            return [f"folder must hold a ViT or DINOv2: {error}"]

    def build(self, inputs: tuple[int, ...], classes: int) -> "Model":
        """The model; its `init` copies the trunk's weights from the folder.

        Args:
          inputs: height, width and channels of an image, see `VitEncoder.build`.
          classes: C.

        Returns:
          A `Model` as of `VitEncoder.build`. `dx.methods.FrozenTrunk` trains its heads alone.

        Raises:
          ValueError: a folder that is missing, damaged or of another architecture, or images that
            do not fit.
        """
        from dynexit.models.vision.hf import pretrained_vit

        return pretrained_vit(self, inputs, classes)
