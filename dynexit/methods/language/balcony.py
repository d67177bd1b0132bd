"""Balcony: one trained block at each exit of a frozen language model."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from dynexit.core.labels import share
from dynexit.core.shapes import Array, Float, PyTree
from dynexit.core.types import Method, Model
from dynexit.engine.run import run_all
from dynexit.layers.norms import wide
from dynexit.methods.answers import row_means
from dynexit.methods.exits.confidence_exits import confidence_exits
from dynexit.objectives.chunked_cross_entropy import ENTRIES, in_chunks


def balcony(cross_entropy: float = 0.0, shared: int = 40) -> Method:
    """Trains the heads of `dx.models.Balcony` to predict what the whole model predicts.

    Training: L_b = mean_e mean_t [KL(p_L || p_e) + c CE_e] over the early exits e and the places t
    that are not ignored, where p_L, of the last block, is a constant. The trunk is frozen.

    Inference: a row exits once max_c softmax(z_e / T_e)_c > t_e at every place. A head also drafts
    for the trunk in lossless self-speculative decoding (`dx.models.language.draft_head`).

    Args:
      cross_entropy: c, the weight of the labels' cross-entropy.
      shared: candidates with one threshold for all exits.

    Returns:
      `Method`, for `dx.models.Balcony`. An operating point is `{"threshold": [E-1], "temperature":
      [E]}`. Metrics: divergence (nats), agreement (the fraction of places at which the early exits
      have the token of the last) and cross_entropy. The logits of a few places are in memory at a
      time.

    Raises:
      ValueError: `cross_entropy` is negative.

    Example:
      >>> balcony().frozen
      ('trunk',)

    Source: Jamialahmadi et al. 2025, arXiv 2503.05005, and its released code. Deviations: the mean
      over places, where the code sums over them; a rule by confidence, where the paper has one
      depth for a request.
    """
    if not cross_entropy >= 0:
        raise ValueError(f"`cross_entropy` must be at least 0, got {cross_entropy}")

    def loss(
        model: Model, params: PyTree, inputs: PyTree, labels: Array, key: Array, progress: Array
    ) -> tuple[Array, dict[str, Array]]:
        params = {**params, "trunk": lax.stop_gradient(params["trunk"])}
        outputs: Any = run_all(model.steps(params), model.embed(params, inputs), model.depth)
        hidden = jnp.stack([*outputs["hidden"]])  # [E, B, L, D]; unused logits are not computed
        of_chunk = jax.checkpoint(_sums(model, params), prevent_cse=False)
        places = places_of(hidden, model.decoder.vocabulary)
        of_exits = jax.vmap(lambda h: in_chunks(h, places), out_axes=1)(hidden)
        chunks = of_exits, in_chunks(labels, places, -1)
        sums = jax.tree.map(lambda a: a.sum(0), lax.map(lambda x: of_chunk(*x), chunks))
        many = jnp.maximum((labels >= 0).sum(-1), 1).astype(jnp.float32)
        metrics = {name: a / many for name, a in sums.items()}
        total = metrics["divergence"] + cross_entropy * metrics["cross_entropy"]
        return total, row_means(metrics, labels)

    base = confidence_exits(shared=shared)
    return base._replace(objective=None, loss=loss, frozen=("trunk",), score=share)


def kl_divergence(
    teacher: Float[Array, "*rows V"], student: Float[Array, "*rows V"]
) -> Float[Array, "*rows"]:
    """KL(p || q) in nats of ln p and ln q.

    Example:
      >>> p, q = jnp.log(jnp.array([0.9, 0.1])), jnp.log(jnp.array([0.5, 0.5]))
      >>> print(f"{kl_divergence(p, q):.4f}")
      0.3681
    """
    return (jnp.exp(teacher) * (teacher - student)).sum(-1)


def _sums(model: Model, params: PyTree) -> Callable[[Array, Array], dict[str, Array]]:
    """Sums over the places of a chunk, means over the early exits, `[B]` each."""
    trunk, names = params["trunk"], exit_names(params)
    norms = [params["heads"][name]["norm"] for name in names]
    weights = [{**trunk, "head": {**trunk["head"], "norm": norm}} for norm in norms]

    def of_chunk(hidden: Array, labels: Array) -> dict[str, Array]:
        log_p = lambda weights, h: jax.nn.log_softmax(wide(model.decoder.logits(weights, h)))
        teacher = lax.stop_gradient(log_p(trunk, hidden[-1]))
        of = jnp.maximum(labels, 0)[..., None]
        divergence, agreement, loss = 0.0, 0.0, 0.0
        for weight, h in zip(weights, hidden[:-1], strict=True):
            student = log_p(weight, h)
            same = student.argmax(-1) == teacher.argmax(-1)
            divergence = divergence + kl_divergence(teacher, student)
            agreement = agreement + same.astype(jnp.float32)
            loss = loss - jnp.take_along_axis(student, of, axis=-1)[..., 0]
        found = {"divergence": divergence, "agreement": agreement, "cross_entropy": loss}
        return {
            name: jnp.where(labels >= 0, a, 0).sum(-1) / len(names) for name, a in found.items()
        }

    return of_chunk


def exit_names(params: PyTree) -> list[str]:
    """The entries of the heads, from the shallowest exit to the deepest."""
    return sorted(params["heads"], key=lambda name: int(name.removeprefix("exit")))


def places_of(hidden: Float[Array, "E B L D"], vocabulary: int) -> int:
    """Places of a chunk whose logits of all rows have about 2^22 entries."""
    return max(1, ENTRIES // (hidden.shape[1] * vocabulary))
