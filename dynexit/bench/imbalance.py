"""Imbalance of depths between devices: how much more work the busiest device has than the mean.

A device with B rows whose depths have the mean m and the standard deviation s has work B m with the
standard deviation s sqrt(B). For many rows it is nearly normal, so the expected work of the busiest
of D devices is about

    B m (1 + s / (m sqrt(B)) z(D)),   z(D) = expected maximum of D standard normal numbers

`simulated` draws depths from a histogram instead, and runs them through the exchanges of
`dx.run_sharded`. It counts rows x blocks without padding rows.
"""

import itertools
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dynexit.core.shapes import Int, Num


class Imbalance(NamedTuple):
    """Means over draws of depths, relative to the mean work of a device.

    Attributes:
      busiest: rows x blocks of the busiest device.
      waited: the sum over segments between exchanges of the busiest device's rows x blocks. All
        devices wait for each other at an exchange, so the time follows it. Equal to `busiest`
        without exchanges.
    """

    busiest: float
    waited: float


def expected_maximum(devices: int) -> float:
    """z(D), the expected maximum of D standard normal numbers, within 0.05.

    Example:
      >>> [round(expected_maximum(n), 2) for n in (1, 2, 8, 256, 4096)]
      [0.0, 0.59, 1.43, 2.81, 3.61]

    Source: Blom 1958, whose approximation is the quantile at (D - a) / (D + 1 - 2 a), a = 0.375.
    """
    a = 0.375
    return statistics.NormalDist().inv_cdf((devices - a) / (devices + 1 - 2 * a))


def formula(histogram: Num[np.ndarray, "E"], rows: int, devices: int) -> float:
    """Expected work of the busiest device over the mean.

    Args:
      histogram: how often a row exits after 1, 2, ... E blocks.
      rows: B, rows on each device.
      devices: D.

    Example:
      >>> round(formula(np.array([1.0, 0.0, 1.0]), 64, 256), 3)
      1.176
    """
    share = np.asarray(histogram, float) / np.sum(histogram)
    depths = np.arange(1, len(share) + 1)
    mean = share @ depths
    deviation = np.sqrt(share @ (depths - mean) ** 2)
    return float(1 + deviation / (mean * np.sqrt(rows)) * expected_maximum(devices))


def simulated(
    histogram: Num[np.ndarray, "E"],
    rows: int,
    devices: int,
    rebalance: Sequence[int] = (),
    draws: int = 20,
    seed: int = 0,
) -> Imbalance:
    """Draws depths, and counts the work of every device with and without exchanges.

    Args:
      histogram: how often a row exits after 1, 2, ... E blocks.
      rows: B, rows on each device.
      devices: D.
      rebalance: depths after which survivors are redistributed, as in `dx.run_sharded`.
      draws: independent batches.
      seed: of the draws.

    Example:
      >>> all_deep = np.array([0.0, 0.0, 1.0])
      >>> simulated(all_deep, 8, 4)
      Imbalance(busiest=1.0, waited=1.0)
    """
    share = np.asarray(histogram, float) / np.sum(histogram)
    random = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        depths = random.choice(np.arange(1, len(share) + 1), (devices, rows), p=share)
        work = segments(depths, rebalance)
        mean = work.sum() / devices
        found.append((work.sum(0).max() / mean, work.max(1).sum() / mean))
    busiest, waited = np.mean(found, axis=0)
    return Imbalance(float(busiest), float(waited))


def segments(
    depths: Int[np.ndarray, "D B"], rebalance: Sequence[int] = ()
) -> Int[np.ndarray, "segments D"]:
    """Rows x blocks of every device between exchanges.

    Args:
      depths: the depth of each row, on its device.
      rebalance: depths after which survivors are redistributed.

    Example:
      >>> segments(np.array([[3, 3], [1, 1]]), (1,)).tolist()
      [[2, 2], [2, 2]]
    """
    devices, most = len(depths), int(depths.max())
    bounds = [0, *(depth for depth in rebalance if depth < most), most]
    held, work = [np.asarray(row) for row in depths], []
    for start, stop in itertools.pairwise(bounds):
        if start:
            live = np.concatenate([row[row > start] for row in held])
            held = [live[device::devices] for device in range(devices)]
        work.append([int((np.minimum(row, stop) - start).clip(0).sum()) for row in held])
    return np.array(work)
