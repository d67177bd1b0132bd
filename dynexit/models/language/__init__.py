"""Transformer language models and encoders, and those of others: folders of transformers and
GGUF files.
"""

from typing import TYPE_CHECKING

from dynexit._lazy import attach

if TYPE_CHECKING:
    from dynexit.models.language.balcony import draft_head as draft_head
    from dynexit.models.language.decoder import TransformerDecoder as TransformerDecoder
    from dynexit.models.language.encoder_hf import from_hf_encoder as from_hf_encoder
    from dynexit.models.language.encoder_hf import to_hf_encoder as to_hf_encoder
    from dynexit.models.language.gguf import from_gguf as from_gguf
    from dynexit.models.language.hf.folder import from_hf as from_hf
    from dynexit.models.language.hf.folder import to_hf as to_hf
    from dynexit.models.language.pretrained import Pretrained as Pretrained

__getattr__, __dir__ = attach(__name__)
