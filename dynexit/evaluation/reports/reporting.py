"""`report.json` and `report.md` of a run."""

from typing import Any

import jax
import numpy as np

from dynexit.calibration.records import Records
from dynexit.evaluation.curves import depth_histogram, rank_correlation
from dynexit.evaluation.latency import Timing
from dynexit.evaluation.measure import Evaluated
from dynexit.evaluation.reports.plots import Content

SCHEMA = 1  # of report.json; it grows where an entry changes its name or meaning
TIMES = (
    "seconds_full",
    "seconds_dynamic",
    "speedup",
    "efficiency",
    "efficiency_masked",
    "efficiency_streamed",
    "efficiency_ceiling",
    "seconds_ideal",
    "seconds_masked",
    "seconds_streamed",
    "seconds_spread",
    "full_program",
    "full_programs",
)  # None where nothing was timed


def report(evaluated: Evaluated, operating_point: Any, about: Content) -> Content:
    """The numbers of a run, as JSON can hold them.

    Args:
      evaluated: the measurements.
      operating_point: the operating point, a pytree of arrays.
      about: the experiment, its data, the command and the choice of the point; kept under its own
        keys.

    Returns:
      Accuracies are fractions of the rows that have a label, losses are in nats, seconds are for
      one pass over `rows_timed` rows, FLOPs are per row. Where nothing was timed, seconds and their
      ratios are None.
    """
    e, c, r = evaluated, evaluated.costs, evaluated.records
    accuracy = r.right[:, r.counts].mean(axis=1, dtype=np.float64)
    exit = e.exit[r.counts]
    right = np.asarray(e.score(e.classes[r.counts], r.labels[r.counts]), np.float64)
    return {
        "schema_version": SCHEMA,
        "accuracy_full": float(accuracy[-1]),
        "accuracy_dynamic": float(right.mean()),
        "mean_depth": float(c.depths[exit].mean()),
        "depth": int(c.depths[-1]),
        **_times(e),
        "flops_ratio": float(c.until[exit].mean() / c.full),
        "occupancy": e.occupancy,
        "tuned": str(e.tuned) if e.tuned else "not tuned: the engine's default tiles",
        "examples": int(r.counts.sum()),
        "examples_without_label": int((~r.counts).sum()),
        "flops_full": c.full,
        "flops_until_exit": c.until.tolist(),
        "depth_of_exit": c.depths.tolist(),
        "accuracy_per_exit": accuracy.tolist(),
        "loss_per_exit": _losses(r, np.arange(len(accuracy))[:, None]),
        "loss_dynamic": _losses(r, exit),
        "rows_per_exit": depth_histogram(exit, len(accuracy)).tolist(),
        "live_equals_replay": e.agreement,
        "nan_exits": e.nan_exits,
        **_best_fixed(accuracy, c.alone, float(c.until[exit].mean()), c.depths),
        "depth_follows_steps": None
        if e.steps is None
        else rank_correlation(exit, e.steps[r.counts]),
        "operating_point": jax.tree.map(lambda a: np.asarray(a).tolist(), operating_point),
        "curve": {
            "accuracy": e.curve.accuracy.tolist(),
            "flops_ratio": (e.curve.cost / c.full).tolist(),
            "mean_depth": (e.curve.exit_fraction @ c.depths).tolist(),
        },
        "timed_points": _timed_points(e),
        **about,
    }


def _times(e: Evaluated) -> Content:
    """The entries that `Timings` gives."""
    t, blocks = e.timings, e.costs.blocks
    if t is None:
        needed = (np.cumsum(blocks) / blocks.sum())[e.exit]
        return {**dict.fromkeys(TIMES), "flops_ratio_blocks": float(needed.mean()), "rows_timed": 0}
    return {
        "seconds_full": t.full.median,
        "seconds_dynamic": t.compacted.median,
        "speedup": t.speedup,
        "efficiency": t.efficiency,
        "efficiency_masked": t.efficiency_masked,
        "efficiency_streamed": t.efficiency_streamed,
        "efficiency_ceiling": t.ceiling,
        "seconds_ideal": t.ideal,
        "seconds_masked": t.masked.median,
        "seconds_streamed": t.streamed and t.streamed.median,
        "seconds_spread": {
            "full": _spread(t.full),
            "dynamic": _spread(t.compacted),
            "masked": _spread(t.masked),
        },
        "full_program": t.full_program,
        "full_programs": {name: timing.median for name, timing in t.contenders.items()},
        "flops_ratio_blocks": t.block_ratio,
        "rows_timed": t.rows,
    }


def _timed_points(e: Evaluated) -> Content | None:
    if (t := e.timed) is None:
        return None
    along = t.efficiency_streamed
    return {
        "accuracy": e.curve.accuracy[t.index].tolist(),
        "flops_ratio": (e.curve.cost[t.index] / e.costs.full).tolist(),
        "seconds_per_row": t.seconds.tolist(),
        "seconds_per_row_full": t.full,
        "speedup": t.speedup.tolist(),
        "flops_ratio_blocks": t.block_ratio.tolist(),
        "efficiency_streamed": None if along is None else along.tolist(),
    }


def _losses(records: Records, exits: np.ndarray) -> Any:
    """Mean cross-entropy in nats at the exits `[m]`, or `[E, 1]` for one mean each.

    None where the records have none.
    """
    if records.losses is None:
        return None
    losses = records.losses[:, records.counts]
    return losses[exits, np.arange(losses.shape[1])].mean(axis=-1, dtype=np.float64).tolist()


def _best_fixed(
    accuracy: np.ndarray, alone: np.ndarray, cost: float, depths: np.ndarray
) -> Content:
    """The best fixed depth of no more FLOPs, inner exits unread; chosen on the test split."""
    affordable = np.flatnonzero(alone <= cost * (1 + 1e-9))
    if not affordable.size:
        return {"accuracy_fixed": None, "depth_fixed": None}
    best = affordable[np.argmax(accuracy[affordable])]
    return {"accuracy_fixed": float(accuracy[best]), "depth_fixed": int(depths[best])}


def _spread(timing: Timing) -> list[float]:
    return [timing.low, timing.high]


def is_timed(content: Content) -> bool:
    """Whether a report has seconds."""
    return content["seconds_full"] is not None


def summary(content: Content) -> list[tuple[str, str, str]]:
    """Rows (what, full depth, dynamic depth) of the table that is printed and written."""
    r = content
    gained = (r["accuracy_dynamic"] - r["accuracy_full"]) * 100
    per_row = lambda seconds: f"{seconds / r['rows_timed'] * 1e6:.1f} us"
    times = (
        [
            (
                "seconds for the split",
                f"{r['seconds_full']:.4f} ({r['full_program']})",
                f"{r['seconds_dynamic']:.4f}",
            ),
            ("time per row", per_row(r["seconds_full"]), per_row(r["seconds_dynamic"])),
            ("speed-up", "1.00", f"{r['speedup']:.2f}"),
            ("efficiency (ideal / measured)", "1.00", f"{r['efficiency']:.2f} ({_others(r)})"),
        ]
        if is_timed(r)
        else [("seconds for the split", "not timed", "not timed")]
    )
    return [
        (
            "accuracy",
            f"{r['accuracy_full']:.2%}",
            f"{r['accuracy_dynamic']:.2%} ({gained:+.2f} points)",
        ),
        ("mean depth", f"{r['depth']} blocks", f"{r['mean_depth']:.2f} blocks"),
        (
            "FLOPs per row",
            _flops(r["flops_full"]),
            f"{_flops(r['flops_full'] * r['flops_ratio'])} ({r['flops_ratio']:.1%})",
        ),
        *times,
    ]


def _others(r: Content) -> str:
    others = ("masked", "streamed", "ceiling")
    return ", ".join(
        f"{name}: {r[f'efficiency_{name}']:.2f}"
        for name in others
        if r[f"efficiency_{name}"] is not None
    )


def _flops(count: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}FLOP"
    return f"{count:.0f} FLOP"


def markdown(content: Content) -> str:
    """The report as Markdown."""
    r = content
    title = f"# {r['name']}\n\n{r['summary'].strip()}\n"
    trained = _section(
        "What was trained",
        [
            f"- {r['data']['train']} training, {r['data']['calibration']} calibration and "
            f"{r['data']['test']} test examples.",
            f"- {r['parameters']:,} parameters, {r['training']['step']} optimizer steps, "
            f"seed {r['seed']}, measured on {r['hardware']}.",
            f"- Chosen on the calibration split: {r['calibration']['chosen_by']}. Expected there: "
            f"accuracy {r['calibration']['accuracy']:.2%} at "
            f"{r['calibration']['flops_ratio']:.1%} of the FLOPs (full depth "
            f"{r['calibration']['accuracy_full']:.2%}). "
            f"Guarantee: {r['calibration']['guarantee']}.",
        ],
    )
    main = _table(
        ("test split, " + f"{r['examples']} examples", "full depth", "dynamic depth"), summary(r)
    )
    notes = [
        *(_timed(r) if is_timed(r) else ["- Nothing was timed: no device holds the parameters."]),
        f"- The dynamic program was {r['occupancy']:.1%} occupied.",
        f"- Executor and tiles, chosen with the exits of the calibration split: {r['tuned']}.",
        *_fixed(r),
        *_follows(r),
        "- Live answers and exits equal those of stored scores for "
        f"{r['live_equals_replay']:.2%} of the rows; {r['nan_exits']} exits held a NaN.",
    ]
    rows = [
        (str(k), str(d), f"{a:.2%}", str(n), f"{f / r['flops_full']:.1%}")
        for k, (d, a, n, f) in enumerate(
            zip(
                r["depth_of_exit"],
                r["accuracy_per_exit"],
                r["rows_per_exit"],
                r["flops_until_exit"],
                strict=True,
            )
        )
    ]
    exits = _table(
        ("exit", "depth", "accuracy if all exited here", "rows that exited here", "FLOPs"), rows
    )
    operating_point = "\n".join(
        f"- {name}: {_numbers(values)}" for name, values in _named(r["operating_point"])
    )
    plots = "\n".join(f"![{name}]({name}.png)\n" for name in r["plots"])
    again = f"```\n{r['command']}\n```\n" + "\n".join(
        f"- {k} {v}" for k, v in r["versions"].items()
    )
    again += f"\n- commit {r['commit']}" if r["commit"] else ""
    return (
        f"{title}\n{trained}\n## Result\n\n{main}\n"
        + "\n".join(notes)
        + f"\n\n## Exits\n\n{exits}\n"
        f"Operating point:\n\n{operating_point}\n\n## Plots\n\n{plots}\n"
        f"## How to reproduce\n\n{again}\n"
    )


def _timed(r: Content) -> list[str]:
    s = r["seconds_spread"]
    return [
        f"- Measured in one interleaved run on {r['rows_timed']} rows in batches of "
        f"{r['batch_size']}, median of {r['repeats']} (lowest-highest): "
        f"full {r['seconds_full']:.4f} s ({s['full'][0]:.4f}-{s['full'][1]:.4f}), "
        f"dynamic {r['seconds_dynamic']:.4f} s "
        f"({s['dynamic'][0]:.4f}-{s['dynamic'][1]:.4f}), masked {r['seconds_masked']:.4f} s "
        f"({s['masked'][0]:.4f}-{s['masked'][1]:.4f}).",
        f"- Full depth is the fastest of {', '.join(r['full_programs'])}, and reads the last exit "
        f"alone. Ideal time is its time x {r['flops_ratio_blocks']:.3f}, the fraction of block "
        f"FLOPs needed: {r['seconds_ideal']:.4f} s. The ceiling is the efficiency of all rows "
        "exiting together at about the mean depth: what reading exits and the criterion leave to "
        "any executor.",
        *_streamed(r["timed_points"]),
    ]


def _streamed(points: dict[str, Any]) -> list[str]:
    found = points["efficiency_streamed"]
    if found is None:
        return []
    listed = ", ".join(
        f"{e:.2f} at {share:.0%}"
        for e, share in zip(found, points["flops_ratio_blocks"], strict=True)
    )
    return [f"- Throughput of the stream along the curve: efficiency {listed} of the block FLOPs."]


def _fixed(r: Content) -> list[str]:
    if r["accuracy_fixed"] is None:
        return ["- No fixed depth costs as little."]
    better = (r["accuracy_dynamic"] - r["accuracy_fixed"]) * 100
    return [
        f"- The best fixed depth of no more FLOPs is {r['depth_fixed']}, with accuracy "
        f"{r['accuracy_fixed']:.2%}: dynamic depth differs by {better:+.2f} points."
    ]


def _follows(r: Content) -> list[str]:
    found = r["depth_follows_steps"]
    if found is None:
        return []
    return [
        "- Depth taken and sequential steps that the example needs: Spearman's correlation "
        f"{found:.2f}."
    ]


def _section(title: str, lines: list[str]) -> str:
    return f"## {title}\n\n" + "\n".join(lines) + "\n"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def _named(operating_point: Any) -> list[tuple[str, Any]]:
    if isinstance(operating_point, dict):
        return [
            (f"{k} {name}".strip(), value)
            for k, v in operating_point.items()
            for name, value in _named(v)
        ]
    return [("", operating_point)]


def _numbers(values: Any) -> str:
    return ", ".join(f"{v:.4g}" for v in np.atleast_1d(np.asarray(values, np.float64)).ravel())
