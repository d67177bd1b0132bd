"""Tokenizers of language models: bytes, `tokenizer.json`, GGUF files, trained byte pairs."""

from typing import TYPE_CHECKING

from dynexit._lazy import attach

if TYPE_CHECKING:
    from dynexit.data.tokenizers.bytes import Bytes as Bytes
    from dynexit.data.tokenizers.characters import Characters as Characters
    from dynexit.data.tokenizers.gguf import from_gguf as from_gguf
    from dynexit.data.tokenizers.subwords import Subwords as Subwords
    from dynexit.data.tokenizers.subwords import from_folder as from_folder
    from dynexit.data.tokenizers.subwords import train_bpe as train_bpe
    from dynexit.data.tokenizers.tokenizer import TextStream as TextStream
    from dynexit.data.tokenizers.tokenizer import Tokenizer as Tokenizer
    from dynexit.data.tokenizers.tokenizer import refuse_unfit as refuse_unfit

__getattr__, __dir__ = attach(__name__)
