"""Calibration from outputs that are all in memory: what passes over a split must equal."""

import jax
import jax.numpy as jnp
import numpy as np

from dynexit.calibration.candidates import with_full_depth
from dynexit.calibration.choose import choose
from dynexit.calibration.curve import curve
from dynexit.calibration.records import records_of
from dynexit.core.labels import rows_counted


def fitted(method, outputs, labels):
    """What the method fits, every pass over all rows at once."""
    fit = method.candidates.fit
    if fit is None:
        return {}
    exits, labels = len(jax.tree.leaves(outputs)[0]), jnp.asarray(labels)
    state, finished = fit.begin(exits), False
    counts = np.asarray(rows_counted(labels))
    while not finished:
        terms = [
            fit.measure(state, jnp.int32(e), jax.tree.map(lambda a, e=e: a[e], outputs), labels)
            for e in range(exits)
        ]
        sums = jax.tree.map(
            lambda *a: np.stack([np.float64(x)[counts].sum(axis=0) for x in a]), *terms
        )
        state, finished = fit.advance(state, sums)
    return fit.finish(state)[0]


def curve_of(method, outputs, labels, costs, points=None):
    """The curve of a method's candidates, full depth among them."""
    found = fitted(method, outputs, labels)
    full = method.candidates.full(len(costs), found)
    records = records_of(outputs, labels, method.criterion(full), method.predict, method.score)
    if points is None:
        seen = records.rows(records.counts)
        points = with_full_depth(method.candidates.points(seen, found, costs), full)
    return curve(records, points, method.criterion, costs)


def chosen(method, outputs, labels, costs, rule):
    """The operating point that a rule takes from that curve."""
    return choose(curve_of(method, outputs, labels, costs), rule)
