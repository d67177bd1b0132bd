"""CALM's learned classifier: whether an exit already has the token of full depth."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from dynexit.core.shapes import Array, Bool, Float, HostArray, PyTree, Rows
from dynexit.core.stages import one_depth
from dynexit.core.types import Model
from dynexit.engine.run import run_all
from dynexit.methods.language.calm_criterion import classifier_logit
from dynexit.methods.language.exit_losses import check_language_model


def fit_calm_classifier(
    model: Model, params: PyTree, batches: Iterable[Rows], learning_rate: float = 0.01
) -> tuple[dict[str, Float[Array, "..."]], Float[HostArray, "_"]]:
    """Fits the classifier of `calm_criterion` by Adam, one update a batch; the network is frozen.

    l = mean_{e<E-1} (BCE over positives + BCE over negatives) / 2, with the label of an exit's
    token 1 where argmax z_e = argmax z_{E-1}, and one linear classifier for all exits.

    Args:
      model: with a decoder, and exits with "hidden", such as `dx.models.CausalLM`.
      params: its parameters.
      batches: inputs of the model, all of one shape; each is read once, under teacher forcing.
      learning_rate: of Adam, above 0.

    Returns:
      `{"weight": [D], "bias": []}`, and the loss of each update before it, float32 `[updates]`.

    Raises:
      TypeError: a model without a decoder or with stages.
      ValueError: one exit, no batches, or a learning rate that is not above 0.

    Example:
      >>> import dynexit as dx
      >>> model = dx.models.CausalLM(width=8, depth=2, heads=2).build(dx.Tokens(9), 9)
      >>> params, tokens = model.init(jax.random.key(0)), jnp.arange(8)[None] % 9
      >>> classifier, losses = fit_calm_classifier(model, params, [tokens] * 2)
      >>> classifier["weight"].shape, round(float(losses[0]), 4)  # ln 2
      ((8,), 0.6931)

    Source: Schuster et al. 2022, CALM, section 3.3, the independent losses; t5x `contrib/calm`
      balances the classes. Deviation: the classifier reads h / rms(h).
    """
    check_language_model(model)
    if not learning_rate > 0:
        raise ValueError(f"`learning_rate` must be above 0, got {learning_rate}")
    if one_depth(model) < 2:
        raise ValueError("`model` must have at least 2 blocks: the last exit has no classifier")
    optimizer = optax.adam(learning_rate)

    @jax.jit
    def update(params: PyTree, fitted: PyTree, inputs: Rows) -> tuple[PyTree, Array]:
        hidden = hidden_states(model, params, inputs)
        answers = lax.map(lambda h: model.decoder.logits(params, h).argmax(axis=-1), hidden)
        labels, hidden = answers[:-1] == answers[-1:], hidden[:-1].astype(jnp.float32)
        loss = lambda c: balanced_loss(classifier_logit(c, hidden), labels)
        value, gradient = jax.value_and_grad(loss)(fitted[0])
        with jax.numpy_dtype_promotion("standard"):  # of the bias correction
            moved, state = optimizer.update(gradient, fitted[1])
        return (optax.apply_updates(fitted[0], moved), state), value

    fitted: PyTree = None
    losses: list[Array] = []
    for inputs in batches:
        if fitted is None:
            shape = jax.eval_shape(lambda p, x: hidden_states(model, p, x), params, inputs).shape
            first = {"weight": jnp.zeros(shape[-1]), "bias": jnp.zeros(())}
            fitted = first, optimizer.init(first)
        fitted, value = update(params, fitted, inputs)
        losses.append(value)
    if fitted is None:
        raise ValueError("`batches` must hold at least one batch, got none")
    return fitted[0], np.array(losses, np.float32)


def hidden_states(model: Model, params: PyTree, inputs: Rows) -> Float[Array, "E B L D"]:
    """The states after every block, without logits."""
    steps, depth = model.steps(params), one_depth(model)
    return run_all(steps, model.embed(params, inputs), depth)["hidden"]


def balanced_loss(logit: Float[Array, "E B L"], label: Bool[Array, "E B L"]) -> Float[Array, ""]:
    """The binary cross-entropy with equal weight on both classes of an exit, mean over the exits.

    Example:
      >>> logit = jnp.log(jnp.array([[[3.0, 3.0, 3.0]]]))  # p = 3/4
      >>> print(f"{balanced_loss(logit, jnp.array([[[True, True, False]]])):.4f}")  # both classes
      0.8370
    """
    count = lambda where: where.sum((1, 2), dtype=jnp.float32)
    sums = lambda values, where: jnp.where(where, values, 0).sum((1, 2))
    mean = lambda values, where: sums(values, where) / jnp.maximum(count(where), 1)
    both = mean(jax.nn.softplus(-logit), label) + mean(jax.nn.softplus(logit), ~label)
    classes = jnp.minimum(count(label), 1) + jnp.minimum(count(~label), 1)
    return (both / jnp.maximum(classes, 1)).mean()
