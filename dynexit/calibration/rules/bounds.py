"""p-values for "the mean of a loss in 0..1 is above alpha", from independent rows."""

import numpy as np

from dynexit.core.shapes import HostArray, Shaped


def p_value(losses: Shaped[HostArray, "n"], alpha: float) -> float:
    """The exact binomial p-value where all losses are 0 or 1, else that of Hoeffding and Bentkus.

    Args:
      losses: `[n]` in 0..1.
      alpha: the level that the mean is tested against, in 0..1.

    Returns:
      P(a mean at least as small as this one), at most, if the true mean were alpha.

    Example:
      >>> print(f"{p_value(np.repeat([0.0, 1.0], [190, 10]), 0.1):.5f}")
      0.00807
    """
    from scipy.stats import binom

    losses = np.asarray(losses, np.float64)
    if ((losses == 0) | (losses == 1)).all():
        return float(binom.cdf(int(losses.sum()), len(losses), alpha))
    return hoeffding_bentkus(float(losses.mean()), len(losses), alpha)


def hoeffding_bentkus(mean: float, rows: int, alpha: float) -> float:
    """The p-value of Hoeffding and Bentkus, the smaller of their two bounds.

    min(exp(-n h(min(mean, alpha), alpha)), e P(Bin(n, alpha) <= ceil(n mean))) with h the
    Kullback-Leibler divergence of two Bernoulli distributions.

    Args:
      mean: of the losses, in 0..1.
      rows: n.
      alpha: the level, in 0..1.

    Example:
      >>> [f"{hoeffding_bentkus(mean, 200, 0.1):.4g}" for mean in (0.0, 0.02, 0.05, 0.07)]
      ['7.055e-10', '2.288e-05', '0.02194', '0.2527']

    Source: Bates et al. 2021, Distribution-free, risk-controlling prediction sets; Bentkus 2004.
    """
    from scipy.special import xlogy
    from scipy.stats import binom

    if alpha in (0.0, 1.0):
        return 1.0 if alpha == 0 else 0.0
    low = min(mean, alpha)
    divergence = xlogy(low, low / alpha) + xlogy(1 - low, (1 - low) / (1 - alpha))
    counted = np.ceil(rows * mean - 1e-9)  # 200 x 0.07 is 14, and not 15
    return float(min(np.exp(-rows * divergence), np.e * binom.cdf(counted, rows, alpha)))
