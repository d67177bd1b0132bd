"""The optimizer: warm-up and decay of the learning rate, clipping, and weight decay by rules over
parameter paths.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from dynexit.core.settings import Training
from dynexit.core.shapes import Array, Float, PyTree

NOT_DECAYED = (
    r"(?i)(^|[/_])(bias|b)\d*$",
    r"(?i)(^|[/_])(scale|gamma|beta)$",
    r"(?i)norm",
    r"(^|/)_frozen/",  # of `dx.build`: variables that are no weights
    r"(?i)(embed|embedding|embeddings|pos|position|positions|cls)[^/]*$",
)
"""Regular expressions; a parameter is not decayed if one is found in its path, such as
"blocks/attention/bias".
"""


def path_name(path: Sequence[Any]) -> str:
    """A tree path as a string: `("blocks", "w")` is `"blocks/w"`."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def decayed(params: PyTree, not_decayed: Sequence[str] = NOT_DECAYED) -> PyTree:
    """Which parameters are decayed: a tree of booleans, False where one of `not_decayed` is found
    in the path.

    The rank does not matter, since a bias stacked over N blocks is a matrix.

    Example:
      >>> decayed({"blocks": {"kernel": jnp.ones((4, 2)), "bias": jnp.ones((4, 2))}})
      {'blocks': {'bias': False, 'kernel': True}}
    """
    patterns = [re.compile(rule) for rule in not_decayed]
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not any(p.search(path_name(path)) for p in patterns), params
    )


def learning_rate(settings: Training) -> Callable[[ArrayLike], Float[Array, ""]]:
    """The learning rate schedule: step int32 `[]` -> float32 `[]`.

    With `w = round(warmup * steps)`: `peak * s / w` for `s < w`, then with `t = (s - w) / (steps -
    w)` the cosine `peak * (1 + cos(pi t)) / 2`, the line `peak * (1 - t)`, or `peak`.

    Example:
      >>> rate = learning_rate(Training(steps=10, warmup=0.2, learning_rate=1.0, schedule="linear"))
      >>> [round(float(rate(jnp.int32(s))), 3) for s in (0, 1, 2, 6, 10)]
      [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    warm = round(settings.warmup * settings.steps)
    rest = max(settings.steps - warm, 1)

    def rate(step: ArrayLike) -> Float[Array, ""]:
        s = jnp.asarray(step).astype(jnp.float32)
        t = jnp.clip((s - warm) / rest, 0.0, 1.0)
        if settings.schedule == "cosine":
            fall = 0.5 * (1.0 + jnp.cos(jnp.pi * t))
        elif settings.schedule == "linear":
            fall = 1.0 - t
        else:
            fall = jnp.ones_like(t)
        rise = jnp.minimum(s / warm, 1.0) if warm else jnp.ones_like(s)
        return settings.learning_rate * rise * fall

    return rate


def make_optimizer(
    settings: Training, not_decayed: Sequence[str] = NOT_DECAYED
) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW or SGD with Nesterov momentum 0.9, decoupled weight
    decay, the schedule.

    Both optimizers add `-rate * (direction + weight_decay * parameter)`: the decay is scaled by the
    rate and does not enter the moments (Loshchilov and Hutter 2019, algorithm 2).

    Args:
      settings: see `Training`; `clip=0` does not clip.
      not_decayed: regular expressions over paths, see `decayed`.
    """
    parts = [optax.clip_by_global_norm(settings.clip)] if settings.clip else []
    parts.append(
        optax.scale_by_adam() if settings.optimizer == "adamw" else optax.trace(0.9, nesterov=True)
    )
    if settings.weight_decay:
        parts.append(
            optax.add_decayed_weights(
                settings.weight_decay, lambda params: decayed(params, not_decayed)
            )
        )
    chain = optax.chain(*parts, optax.scale_by_learning_rate(learning_rate(settings)))

    def update(
        updates: PyTree, state: PyTree, params: PyTree | None = None
    ) -> tuple[PyTree, PyTree]:
        # optax's Adam mixes its integer counter with floats
        with jax.numpy_dtype_promotion("standard"):
            return chain.update(updates, state, params)

    return optax.GradientTransformation(chain.init, update)
