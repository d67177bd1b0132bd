"""Learn then Test on generated text: the riskiest threshold whose text is good enough."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from dynexit.calibration.rules.bounds import p_value
from dynexit.calibration.rules.rule import fraction
from dynexit.core.decoder import Decoder
from dynexit.core.shapes import Float, HostArray, Int, PyTree
from dynexit.core.types import Model
from dynexit.decoding.exits.settings import Exits
from dynexit.decoding.generate import Generated, generate

Text: TypeAlias = Int[HostArray, "_"]
TextLoss: TypeAlias = Callable[[Text, Text], float]


class ControlledThreshold(NamedTuple):
    """A threshold chosen by tests on generated text, and every test.

    Attributes:
      threshold: the last accepted one; infinity, full depth, where none was.
      guarantee: what holds for it, in words.
      tested: the thresholds that were tested, float64 `[K]`.
      p_values: of each test, float64 `[K]`.
      losses: of each prompt, float64 `[K, M]`.
      mean_depth: blocks per token, mean over the text of all prompts, float64 `[K]`.
    """

    threshold: float
    guarantee: str
    tested: Float[HostArray, "K"]
    p_values: Float[HostArray, "K"]
    losses: Float[HostArray, "K M"]
    mean_depth: Float[HostArray, "K"]


def token_f1_loss(text: Text, reference: Text) -> float:
    """1 - F1 of the tokens of two texts as multisets, in 0..1.

    Example:
      >>> print(f"{token_f1_loss(np.array([1, 2, 2]), np.array([2, 1, 3, 4])):.4f}")  # F1 = 4/7
      0.4286
    """
    if not len(text) and not len(reference):
        return 0.0
    common = (Counter(text.tolist()) & Counter(reference.tolist())).total()
    return 1.0 - 2 * common / (len(text) + len(reference))


def different_tokens(text: Text, reference: Text) -> float:
    """The fraction of places with another token, of the places of the longer text, in 0..1.

    Example:
      >>> different_tokens(np.array([1, 2, 3]), np.array([1, 5, 3, 4]))
      0.5
    """
    longer, shorter = max(len(text), len(reference)), min(len(text), len(reference))
    same = int((text[:shorter] == reference[:shorter]).sum())
    return 1.0 - same / longer if longer else 0.0


def risk_controlled_threshold(
    decoder: Decoder | Model,
    params: PyTree,
    prompts: Sequence[Any],
    exits: Callable[[float], Exits],
    thresholds: Sequence[float],
    max_tokens: int | Sequence[int],
    tolerance: float,
    epsilon: float = 0.05,
    loss: TextLoss = token_f1_loss,
    references: Sequence[Text] | None = None,
    **options: Any,
) -> ControlledThreshold:
    """The last of a sequence of thresholds up to which the generated text is accepted.

    The prompts are continued at full depth and at each threshold in turn; every text is generated
    freely, from its own tokens. The loss of prompt m is

      l_m = loss(early, full), textual consistency; or, with references,
      l_m = max(0, loss(early, reference) - loss(full, reference)), risk consistency.

    The null hypothesis of a threshold, that the mean loss exceeds the tolerance, is rejected where
    its p-value (exact binomial for losses of 0 and 1, else Hoeffding and Bentkus) is at most
    epsilon. The first that is not rejected ends the sequence. All thresholds share one compiled
    program where `exits` returns equal fields and criteria that differ in their thresholds alone.

    Args:
      decoder, params: as in `dx.decoding.generate`.
      prompts: M calibration prompts, drawn as the prompts in use.
      exits: `exits(threshold) -> dx.decoding.Exits`.
      thresholds: in the order of tests, the safest first; neither they nor their order may come
        from these prompts.
      max_tokens: as in `generate`.
      tolerance: mean loss accepted, in 0..1, 0 excluded.
      epsilon: probability, over the draw of the prompts, that the mean loss is higher; between 0
        and 1.
      loss: `loss(text, reference)` in 0..1, of token ids.
      references: the wanted text of each prompt; None for the text at full depth.
      options: of `generate`, such as `stop` and `slots`.

    Returns:
      `ControlledThreshold`.

    Raises:
      TypeError, ValueError: as `generate`; an argument out of range; a loss outside 0..1.

    Example:
      >>> import dynexit as dx, jax
      >>> model = dx.models.CausalLM(width=16, depth=2, heads=2).build(dx.Tokens(9), 9)
      >>> def exits(threshold):
      ...     return dx.decoding.Exits((1,), dx.methods.calm_criterion(threshold))
      >>> found = risk_controlled_threshold(
      ...     model, model.init(jax.random.key(0)), [[1, 2]] * 4, exits, [1.0, 0.5], 4, 0.5
      ... )
      >>> found.guarantee.split(", ")[0]
      'with probability at least 0.95 over the calibration prompts'

    Source: Schuster et al. 2022, CALM, section 4; Angelopoulos et al. 2021, Learn then Test.
    """
    fraction(tolerance, "tolerance", zero=False)
    if not 0 < epsilon < 1:
        raise ValueError(f"`epsilon` must lie between 0 and 1, got {epsilon}")
    if not len(thresholds):
        raise ValueError("`thresholds` must hold at least one threshold, got none")
    if references is not None and len(references) != len(prompts):
        raise ValueError(
            f"`references` must be one for each of the {len(prompts)} prompts, "
            f"got {len(references)}"
        )
    run = lambda exits: generate(decoder, params, prompts, max_tokens, exits=exits, **options)
    full = run(None).tokens
    wanted = full if references is None else [np.asarray(text) for text in references]
    baseline = [0.0] * len(full) if references is None else _losses(loss, full, wanted)
    runs: list[Generated] = []

    def of_threshold(threshold: float) -> Float[HostArray, "M"]:
        runs.append(run(exits(threshold)))
        lost = np.subtract(_losses(loss, runs[-1].tokens, wanted), baseline)
        return np.maximum(lost, 0.0)

    losses, p_values = fixed_sequence(map(of_threshold, thresholds), tolerance, epsilon)
    accepted = int((p_values <= epsilon).sum())
    kind = (
        "the mean loss against the text of full depth"
        if references is None
        else "the mean loss added to that of full depth"
    )
    return ControlledThreshold(
        float(thresholds[accepted - 1]) if accepted else float("inf"),
        f"with probability at least {1 - epsilon:g} over the calibration prompts, {kind} is at "
        f"most {tolerance:g} on new prompts drawn alike",
        np.asarray(thresholds[: len(runs)], np.float64),
        p_values,
        losses,
        np.array([np.concatenate(r.depth).mean() for r in runs]),
    )


def fixed_sequence(
    losses: Iterable[Float[HostArray, "M"]], tolerance: float, epsilon: float
) -> tuple[Float[HostArray, "K M"], Float[HostArray, "K"]]:
    """Tests hypotheses in order, until the first p-value above epsilon.

    Args:
      losses: of each hypothesis, `[M]` in 0..1; computed one after the other, and none after the
        end of the sequence.
      tolerance, epsilon: as in `risk_controlled_threshold`.

    Returns:
      The losses and the p-values of the K hypotheses tested; all but perhaps the last are rejected.

    Example:
      >>> _, p_values = fixed_sequence([np.zeros(100), np.ones(100), np.zeros(100)], 0.1, 0.05)
      >>> (p_values <= 0.05).tolist()
      [True, False]
    """
    tested: list[HostArray] = []
    found: list[float] = []
    for one in losses:
        tested.append(one)
        found.append(p_value(one, tolerance))
        if found[-1] > epsilon:
            break
    return np.stack(tested), np.array(found)


def _losses(loss: TextLoss, texts: Sequence[Text], references: Sequence[Text]) -> HostArray:
    found = np.array([loss(a, b) for a, b in zip(texts, references, strict=True)], np.float64)
    if not ((found >= 0) & (found <= 1)).all():
        raise ValueError(f"`loss` must lie in 0..1, got {found.min():g} to {found.max():g}")
    return found
