"""A small language model, trained for some seconds on the bytes of Python's standard library."""

import sysconfig
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dynexit as dx

V, DEPTH, CONTEXT, WINDOW = 257, 3, 64, 64
MODEL = dx.models.CausalLM(width=32, depth=DEPTH, heads=4, kv_heads=2, context=CONTEXT).build(
    dx.Tokens(V), V
)


def library_text():
    """The top level of the standard library, uint8, in a fixed order."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return np.frombuffer(b"".join(file.read_bytes() for file in files), np.uint8)


def trained(updates, text, batch=16):
    """Parameters after some updates with the losses of LayerSkip, all exits on."""
    method = dx.methods.layerskip(dropout=0.0, curve="uniform", early_scale=0.5, curriculum="all")
    params = MODEL.init(jax.random.key(0))
    schedule = optax.cosine_decay_schedule(4e-3, max(1, updates))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
    key, done = jax.random.key(1), jnp.float32(0)

    @jax.jit
    def update(params, state, tokens):
        def loss(params):
            given = tokens[:, :-1], tokens[:, 1:], key, done
            return method.loss(MODEL, params, *given)[0].mean()

        value, gradients = jax.value_and_grad(loss)(params)
        changes, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, changes), state, value

    random, state, value = np.random.default_rng(0), optimizer.init(params), None
    for _ in range(updates):
        begin = random.integers(0, len(text) - WINDOW - 1, batch)
        tokens = text[begin[:, None] + np.arange(WINDOW + 1)].astype(np.int32)
        params, state, value = update(params, state, tokens)
    return params, value


def prompts_of(text, count, longest=24):
    """Pieces of the text of 4 to `longest` bytes, and how many tokens to write after each.

    The numbers of tokens are geometric with a mean of about 16, at most 40.
    """
    random = np.random.default_rng(2)
    begin = random.integers(0, len(text) - longest, count)
    lengths = random.integers(4, longest + 1, count)
    prompts = [text[b : b + n].astype(np.int32) for b, n in zip(begin, lengths, strict=True)]
    return prompts, np.minimum(random.geometric(1 / 16, count), 40).tolist()
