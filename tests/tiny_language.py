"""A tiny language model over bytes with text that depends on its beginning."""

import jax

import dynexit as dx
from dynexit.runs.language import LanguageModel

DEPTH = 2


def tiny_language(context: int = 64) -> LanguageModel:
    words = dx.data.tokenizers.Bytes()
    settings = dx.models.CausalLM(width=16, depth=DEPTH, heads=2, context=context)
    model = settings.build(dx.Tokens(words.vocabulary), words.vocabulary)
    params = model.init(jax.random.key(0))
    # large weights, so that no two logits are close; the text is ASCII for the most part
    embed = {"tokens": params["embed"]["tokens"] * 30}
    params = params | {
        "blocks": jax.tree.map(lambda a: 3 * a if a.ndim > 2 else a, params["blocks"]),
        "embed": embed,
    }
    return LanguageModel("tiny", model, params, words)
