"""Where a language model uses its depth, measured before exits are chosen."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dynexit.core.labels import as_labels, places_counted
from dynexit.core.shapes import Array, Float, HostArray, PyTree, Rows
from dynexit.core.stages import one_depth
from dynexit.core.types import Model
from dynexit.models.recurrent.recurrent_decoder import RecurrentDecoder

TINY = 1e-6


class DepthDiagnostics(NamedTuple):
    """Means over tokens, float64, for each of N blocks; see `depth_diagnostics`.

    Attributes:
      nats: `[N]`, cross-entropy of the readout after each block.
      agreement: `[N]`, fraction of tokens whose likeliest next token is that of full depth.
      divergence: `[N]`, KL(p_l || p_N) in nats.
      contribution: `[N]`, ||D_l|| / ||h_l|| of what a block adds to its input.
      cosine: `[N]`, cos(D_l, h_l): below 0 erases, 0 adds new directions, above 0 strengthens.
      skip_nats: `[N]`, by how much the cross-entropy of full depth rises without the block.
      skip_agreement: `[N]`, fraction of tokens that full depth predicts alike without the block.
      settled_depth: blocks after which the likeliest token of the readouts does not change.
      tokens: tokens counted.
    """

    nats: Float[HostArray, "N"]
    agreement: Float[HostArray, "N"]
    divergence: Float[HostArray, "N"]
    contribution: Float[HostArray, "N"]
    cosine: Float[HostArray, "N"]
    skip_nats: Float[HostArray, "N"]
    skip_agreement: Float[HostArray, "N"]
    settled_depth: float
    tokens: int


def depth_diagnostics(
    model: Model, params: PyTree, batches: Iterable[Mapping[str, Any]]
) -> DepthDiagnostics:
    """Readouts after every block, contributions of the blocks, and the effect of skipping each.

    With h_l the state before block l and D_l = h_{l+1} - h_l, the readout after block l is
    p_l = softmax(logits(h_{l+1})): the model's own norm and output matrix, without training. A
    block is skipped at all tokens at once, h_{l+1} := h_l, and the blocks after it run.

    Only sums are kept from batch to batch. A batch takes N + 1 forward passes. In memory are the
    states after all blocks, and the logits of full depth and of one readout.

    Args:
      model: with a decoder, and a state that is an array `[B, L, D]` or has it as the entry "h".
      params: its parameters.
      batches: dicts of "inputs", and "labels" `[B, L]` with -1 at ignored places; batches of one
        shape share a compiled program. Contributions leave out place 0 of a row, where trained
        models have states of outlying norm.

    Returns:
      `DepthDiagnostics`.

    Raises:
      TypeError: a model without a decoder, with a coda or with stages; labels that are no integers.
      ValueError: no token counts.

    Example:
      >>> import dynexit as dx
      >>> model = dx.models.CausalLM(width=8, depth=2, heads=2).build(dx.Tokens(9), 9)
      >>> params, tokens = model.init(jax.random.key(0)), jnp.arange(8)[None]
      >>> found = depth_diagnostics(model, params, [{"inputs": tokens, "labels": tokens}])
      >>> found.tokens, found.agreement[-1].item(), found.divergence[-1].item()
      (8, 1.0, 0.0)

    Source: nostalgebraist 2020, logit lens; Csordas et al. 2025, Do language models use their depth
      efficiently? Deviations: means and not maxima over tokens; the KL and the cross-entropy of
      skipping in place of the distance of probabilities; blocks as a whole.
    """
    if model.decoder is None or isinstance(model.decoder, RecurrentDecoder):
        raise TypeError(
            "`model` must have a decoder with logits of every state, such as dx.models.CausalLM"
        )
    depth = one_depth(model)
    sums_of = jax.jit(lambda p, x, y: _batch_sums(model, depth, p, x, y))
    total: PyTree = None
    for batch in batches:
        labels = jnp.asarray(as_labels(batch["labels"]))
        sums = jax.tree.map(
            lambda a: np.asarray(a, np.float64), sums_of(params, batch["inputs"], labels)
        )
        total = sums if total is None else jax.tree.map(np.add, total, sums)
    if total is None or not total["tokens"]:
        raise ValueError("`batches` must hold a token with a label, got none")
    means = {k: a / total["tokens"] for k, a in total["of_tokens"].items()}
    inner = {k: a / max(total["inner_tokens"], 1.0) for k, a in total["of_inner"].items()}
    means["skip_nats"] = means["skip_nats"] - means["nats"][-1]
    settled = float(means.pop("settled"))
    return DepthDiagnostics(**means, **inner, settled_depth=settled, tokens=int(total["tokens"]))


def proposed_exits(
    diagnostics: DepthDiagnostics, levels: Sequence[float] = (0.5, 0.7, 0.9)
) -> tuple[int, ...]:
    """Blocks after which the agreement with full depth first reaches each level.

    Args:
      diagnostics: of `depth_diagnostics`.
      levels: agreements, each in 0..1.

    Returns:
      Numbers of blocks in 1..N-1, rising, for `dx.decoding.Exits`; a level that full depth alone
      reaches gives none.

    Raises:
      ValueError: a level out of range.

    Example:
      >>> zero = np.zeros(4)
      >>> agreement = np.array([0.1, 0.6, 0.8, 1.0])
      >>> found = DepthDiagnostics(zero, agreement, zero, zero, zero, zero, zero, 2.0, 9)
      >>> proposed_exits(found)
      (2, 3)
    """
    if not all(0 <= level <= 1 for level in levels):
        raise ValueError(f"`levels` must lie in 0..1, got {list(levels)}")
    first = {int(np.argmax(diagnostics.agreement >= level)) + 1 for level in levels}
    return tuple(sorted(first - {len(diagnostics.agreement)}))


def depth_table(diagnostics: DepthDiagnostics) -> str:
    """One line a block, as a Markdown table, with the settled depth and the proposed exits.

    Example:
      >>> one, zero = np.ones(2), np.zeros(2)
      >>> found = DepthDiagnostics(one, one, zero, one, zero, zero, one, 1.0, 9)
      >>> print(depth_table(found).splitlines()[2])
      | 1 | 1.000 | 1.000 | 0.000 | 1.000 | +0.00 | +0.000 | 1.000 |
    """
    d = diagnostics
    head = "block", "nats", "agreement", "KL", "contribution", "cosine", "skip nats", "skip agree"
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for n in range(len(d.nats)):
        lines.append(
            f"| {n + 1} | {d.nats[n]:.3f} | {d.agreement[n]:.3f} | {d.divergence[n]:.3f} "
            f"| {d.contribution[n]:.3f} | {d.cosine[n]:+.2f} | {d.skip_nats[n]:+.3f} "
            f"| {d.skip_agreement[n]:.3f} |"
        )
    exits = ", ".join(map(str, proposed_exits(d))) or "none"
    return "\n".join(
        [
            *lines,
            "",
            f"{d.tokens} tokens; the prediction is settled after {d.settled_depth:.2f} of "
            f"{len(d.nats)} blocks on average; proposed exits after blocks: {exits}",
        ]
    )


def _batch_sums(model: Model, depth: int, params: PyTree, inputs: Rows, labels: Array) -> PyTree:
    step, begun = model.steps(params), model.embed(params, inputs)
    counted = places_counted(labels)
    inner = counted.at[:, 0].set(False)
    total = lambda values, where: jnp.where(where, values.astype(jnp.float32), 0).sum()

    def states(skipped: Array) -> tuple[Array, Array]:  # all and the last, [N, B, L, D], [B, L, D]
        def body(state: PyTree, i: Array) -> tuple[PyTree, Array]:
            new, _ = step.apply(step.select(i), i, state)
            state = jax.tree.map(lambda a, b: jnp.where(i == skipped, a, b), state, new)
            return state, _hidden(state)

        last, found = lax.scan(body, begun, jnp.arange(depth, dtype=jnp.int32))
        return found, _hidden(last)

    def read(h: Array) -> tuple[Array, Array, Array]:  # ln p, nats, the likeliest token
        log_p = jax.nn.log_softmax(model.decoder.logits(params, h).astype(jnp.float32))
        of_label = jnp.take_along_axis(log_p, jnp.maximum(labels, 0)[..., None], axis=-1)[..., 0]
        return log_p, -of_label, log_p.argmax(axis=-1)

    hidden, last = states(jnp.int32(-1))
    log_full, _, answer = read(last)

    def lens(h: Array) -> tuple[Array, Array, Array]:
        log_p, nats, token = read(h)
        kl = (jnp.exp(log_p) * (log_p - log_full)).sum(axis=-1)
        return total(nats, counted), total(kl, counted), token == answer

    def without(skipped: Array) -> tuple[Array, Array]:
        _, nats, token = read(states(skipped)[1])
        return total(nats, counted), total(token == answer, counted)

    nats, divergence, agrees = lax.map(lens, hidden)
    skip_nats, skip_agreement = lax.map(without, jnp.arange(depth, dtype=jnp.int32))
    from_here = lax.cumprod(agrees.astype(jnp.int32), axis=0, reverse=True)
    settled = depth - from_here.sum(axis=0) + 1
    contribution, cosine = _contributions(_hidden(begun), hidden)
    sums = lambda values, where: jax.vmap(total, (0, None))(values, where)
    return {
        "of_tokens": {
            "nats": nats,
            "agreement": sums(agrees, counted),
            "divergence": divergence,
            "skip_nats": skip_nats,
            "skip_agreement": skip_agreement,
            "settled": total(settled, counted),
        },
        "of_inner": {"contribution": sums(contribution, inner), "cosine": sums(cosine, inner)},
        "tokens": counted.sum(),
        "inner_tokens": inner.sum(),
    }


def _contributions(first: Array, hidden: Array) -> tuple[Array, Array]:
    """||D|| / ||h|| and cos(D, h) of every block, `[N, B, L]`, from the states around them."""
    after = hidden.astype(jnp.float32)
    before = jnp.concatenate([first[None].astype(jnp.float32), after[:-1]])
    added = after - before
    size, moved = jnp.linalg.norm(before, axis=-1), jnp.linalg.norm(added, axis=-1)
    product = jnp.maximum(size * moved, TINY)
    return moved / jnp.maximum(size, TINY), (added * before).sum(axis=-1) / product


def _hidden(state: PyTree) -> Array:
    return state["h"] if isinstance(state, Mapping) else state
