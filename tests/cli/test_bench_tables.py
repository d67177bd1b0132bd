"""The tables of `dynexit bench`: a row for each load, ratios in units of tuned, and no column for
what was not asked for.
"""

from dynexit.cli import bench_tables


def record(program, seconds, kind="executor", batch=8, asked=0.25, **more):
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
        "asked": asked,
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


def records(batch, asked, tuned, best, peer=None):
    found = [
        record("full", 9.0, "full", batch, asked),
        record("full tiled 2", 4.0, "full", batch, asked),
        record(
            "compacted",
            2.5,
            batch=batch,
            asked=asked,
            program_bytes=2048,
            occupancy=0.5,
            temporary_bytes=2**21,
        ),
        record("masked", 5.0, batch=batch, asked=asked),
        record("tuned", tuned, batch=batch, asked=asked)
        | ({} if best is None else {"tuned_over_best": tuned / best}),
    ]
    return found + ([] if peer is None else [record("peer torch", peer, "peer", batch, asked)])


def cells_of(printed, first):
    return [
        [c.strip() for c in line.split("│")[1:-1]]
        for line in printed.splitlines()
        if line.startswith(f"│ {first}")
    ]


def test_loads_with_the_same_drawn_depths_stay_apart():
    several = records(1, 0.25, 2.0, None) + records(1, 0.4, 2.0, None) + records(4, 0.4, 2.0, None)
    groups = bench_tables.by_load(several)
    assert [(g[0]["batch"], g[0]["asked"], len(g)) for g in groups] == [
        (1, 0.25, 5),
        (1, 0.4, 5),
        (4, 0.4, 5),
    ]


def test_the_summary_has_a_row_for_each_load_and_counts_those_near_the_best(capsys):
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
    assert (
        "torch / tuned" in printed
        and "tuned is within 5% of the best that was tried in 1 of 2 cells" in printed
    )


def test_the_summary_of_a_plain_run_has_no_further_columns(capsys):
    bench_tables.summarize(records(8, 0.25, 2.0, None), ())
    printed = capsys.readouterr().out
    assert "/ tuned" not in printed and "tuned / best" not in printed and "within" not in printed


def test_a_load_shows_all_its_programs_uncut(capsys):
    bench_tables.show(records(8, 0.25, 2.0, None))
    printed = capsys.readouterr().out
    assert "…" not in printed and "mean depth 33%" in printed and "text KiB" in printed
    assert cells_of(printed, "compacted") == [
        ["compacted", "2.5000", "2.5000-2.5000", "1.00", "0.20", "50%", "", "2.0", "2"]
    ]
