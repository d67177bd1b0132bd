"""The tables of `dynexit bench`: a row per load, ratios to tuned, and only requested columns."""

from dynexit.cli import bench_tables


def record(program, seconds, kind="executor", batch=8, target=0.25, **more):
    cell = {
        "block": "tied",
        "width": 64,
        "tokens": 4,
        "depth": 3,
        "dtype": "float32",
        "batch": batch,
    }
    load = {
        "distribution": "geometric",
        "target_mean": target,
        "mean": 1 / 3,
        "program": program,
        "kind": kind,
    }
    times = {
        "seconds": seconds,
        "low": seconds,
        "high": seconds,
        "speedup": 1.0,
        "efficiency": 0.5 / seconds,
    }
    return cell | load | times | more


def records(batch, target, tuned, best, peer=None):
    found = [
        record("full", 9.0, "full", batch, target),
        record("full tiled 2", 4.0, "full", batch, target),
        record(
            "compacted",
            2.5,
            batch=batch,
            target=target,
            program_bytes=2048,
            occupancy=0.5,
            temporary_bytes=2**21,
        ),
        record("masked", 5.0, batch=batch, target=target),
        record("tuned", tuned, batch=batch, target=target)
        | ({} if best is None else {"tuned_over_best": tuned / best}),
    ]
    return found + ([] if peer is None else [record("peer torch", peer, "peer", batch, target)])


def cells_of(printed, first):
    return [
        [c.strip() for c in line.split("│")[1:-1]]
        for line in printed.splitlines()
        if line.startswith(f"│ {first}")
    ]


def test_loads_with_equal_sampled_depths_are_separate_groups():
    several = records(1, 0.25, 2.0, None) + records(1, 0.4, 2.0, None) + records(4, 0.4, 2.0, None)
    groups = bench_tables.by_load(several)
    assert [(g[0]["batch"], g[0]["target_mean"], len(g)) for g in groups] == [
        (1, 0.25, 5),
        (1, 0.4, 5),
        (4, 0.4, 5),
    ]


def test_the_summary_has_a_row_per_load_and_counts_those_near_the_fastest(capsys):
    bench_tables.summarize(
        records(8, 0.25, 2.0, 1.95, peer=3.0) + records(8, 0.5, 2.0, 1.0), ("torch",)
    )
    printed = capsys.readouterr().out
    assert cells_of(printed, "tied 64 x 3 float32") == [
        [
            "tied 64 x 3 float32",
            "8",
            "geometric 0.25",
            "4.0000",
            "2.0000",
            "0.25",
            "0.20",
            "0.10",
            "1.50",
            "1.03",
        ],
        [
            "tied 64 x 3 float32",
            "8",
            "geometric 0.5",
            "4.0000",
            "2.0000",
            "0.25",
            "0.20",
            "0.10",
            "",
            "2.00",
        ],
    ]
    assert "torch / tuned" in printed and "in 1 of 2 cells" in printed


def test_the_summary_omits_columns_that_were_not_requested(capsys):
    bench_tables.summarize(records(8, 0.25, 2.0, None), ())
    printed = capsys.readouterr().out
    assert "/ tuned" not in printed and "tuned / best" not in printed and "within" not in printed


def test_the_table_of_a_load_is_not_truncated(capsys):
    bench_tables.show(records(8, 0.25, 2.0, None))
    printed = capsys.readouterr().out
    assert "…" not in printed and "mean depth 33%" in printed and "text KiB" in printed
    assert cells_of(printed, "compacted") == [
        ["compacted", "2.5000", "2.5000-2.5000", "1.00", "0.20", "50%", "", "2.0", "2"]
    ]
