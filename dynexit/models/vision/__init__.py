"""Image classifiers: a vision transformer, a residual network, and ViT and DINOv2 checkpoints."""

from typing import TYPE_CHECKING

from dynexit._lazy import attach

if TYPE_CHECKING:
    from dynexit.models.hf_weights import Original as Original
    from dynexit.models.hf_weights import Pretrained as Pretrained
    from dynexit.models.vision.hf import from_hf as from_hf
    from dynexit.models.vision.hf import to_hf as to_hf

__getattr__, __dir__ = attach(__name__)
