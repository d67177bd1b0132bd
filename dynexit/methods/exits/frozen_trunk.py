"""Exit heads on a frozen trunk: a pretrained network gets exits without being changed."""

from dynexit.core.types import Frozen, Method
from dynexit.methods.exits.confidence_exits import confidence_exits


def frozen_trunk(method: Method | None = None, trunk: Frozen = ("trunk",)) -> Method:
    """Trains the exit heads of a method jointly, and leaves the trunk as it is.

    Training: min over head parameters of the method's loss; for confidence exits sum_e w_e
    CE(head_e(h_e)), where h_e are constants, so that the heads do not compete for the trunk.

    Inference: that of `method`.

    Args:
      method: `confidence_exits` or another one; None for `confidence_exits()`.
      trunk: what is frozen, see `Method.frozen`: prefixes of parameter paths, or a function of a
        path. `dx.models.PretrainedVit` and its like have their trunk under "trunk".

    Returns:
      `Method`. Frozen parameters get no gradient, no optimizer state and no weight decay; an
      update costs a forward pass of the trunk and the training of the heads.

    Raises:
      ValueError: from training, a `trunk` that names no parameter, or all.

    Example:
      >>> import dynexit as dx
      >>> method = frozen_trunk(dx.methods.confidence_exits("linear"))
      >>> method.frozen
      ('trunk',)

    Source: the second stage of DeeBERT, Xin et al. 2020, arXiv 2004.12993, which trains the inner
      exits on a frozen network; linear probes of Alain and Bengio 2016, arXiv 1610.01644.
      Deviations: the last exit is trained here too, and the default rule is the maximal
      probability, with a temperature for each exit, in place of the entropy.
    """
    return (confidence_exits() if method is None else method)._replace(frozen=trunk)
