"""Peak memory of calibration where one exit's output is large: a language model's vocabulary.

    python -m dynexit.bench.calibration_memory --tokens 100000

A network of random weights with E exits is calibrated on M tokens of V words: temperatures are
fitted, every exit is recorded, and a threshold is chosen. Its logits have 4 E M V bytes, which
calibration never holds. The peak of the process is printed before and after, with the difference.
"""

import argparse
import resource
import sys
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dynexit.calibration.candidates import threshold_candidates
from dynexit.calibration.records import Records
from dynexit.calibration.rules.accept_loss import accept_loss
from dynexit.calibration.temperature import temperature_fit
from dynexit.core.shapes import Array, PyTree
from dynexit.core.types import Candidates, Criterion, Experiment, Method
from dynexit.criteria.confidence import max_probability_above
from dynexit.data.source import from_arrays
from dynexit.evaluation.calibrate import Calibrated, calibrate
from dynexit.models.build import build

GIB = 2**30


def experiment(exits: int, vocabulary: int, tokens: int, width: int = 32) -> Experiment:
    """A residual MLP over single tokens with a head of the whole vocabulary after each block."""
    normal = lambda *shape: lambda key: jax.random.normal(key, shape) / shape[0] ** 0.5
    model = build(
        embed=(normal(vocabulary, width), lambda p, x: p[x] * vocabulary**0.5),
        block=(normal(width, width), lambda p, h: h + jnp.tanh(h @ p)),
        head=(normal(width, vocabulary), lambda p, h: h @ p),
        depth=exits,
    )

    def full(exits: int, fitted: PyTree) -> PyTree:
        return {"threshold": np.full(exits - 1, np.inf, np.float32), **fitted}

    def points(records: Records, fitted: PyTree, costs: np.ndarray) -> PyTree:
        thresholds = threshold_candidates(records.scores)
        temperatures = np.tile(fitted["temperature"], (len(thresholds), 1))
        return {"threshold": thresholds, "temperature": temperatures}

    def criterion(point: PyTree) -> Criterion:
        return max_probability_above(point["threshold"], point["temperature"])

    def predict(logits: Array) -> Array:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)

    method = Method(None, criterion, Candidates(full, points, temperature_fit()), predict)
    draw = np.random.default_rng(0)
    split = lambda name, rows: from_arrays(
        name, *draw.integers(0, vocabulary, (2, rows), dtype=np.int32)
    )
    return Experiment(
        model, method, split("train", 8), split("calibration", tokens), split("test", 8)
    )


def peak() -> int:
    """Bytes of memory that the process has held at most."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def run(exits: int, vocabulary: int, tokens: int, batch: int) -> tuple[Calibrated, int, int]:
    """Calibrates; returns the result, and the peak before and after."""
    made = experiment(exits, vocabulary, tokens)
    params = jax.block_until_ready(made.model.init(jax.random.key(0)))
    before = peak()
    return calibrate(made, params, accept_loss(0.005), batch, print), before, peak()


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the peak before and after, and the seconds."""
    parser = argparse.ArgumentParser(prog="python -m dynexit.bench.calibration_memory")
    parser.add_argument("--tokens", type=int, default=100_000, help="rows that are calibrated")
    parser.add_argument("--vocabulary", type=int, default=32_768, help="classes of each token")
    parser.add_argument("--exits", type=int, default=12, help="exits")
    parser.add_argument("--batch", type=int, default=64, help="rows per call of the network")
    options = parser.parse_args(argv)
    begun = time.perf_counter()
    _, before, after = run(options.exits, options.vocabulary, options.tokens, options.batch)
    logits = 4 * options.exits * options.tokens * options.vocabulary
    print(
        f"{options.tokens} tokens, {options.exits} exits, {options.vocabulary} words: peak "
        f"{before / GIB:.3f} GiB before and {after / GIB:.3f} GiB after, "
        f"{(after - before) / GIB:.3f} GiB more; the logits have {logits / GIB:.1f} GiB; "
        f"{time.perf_counter() - begun:.0f} s"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
