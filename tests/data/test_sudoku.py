"""Sudoku against a solver that tries every digit."""

import numpy as np
import pytest

from dynexit.data.tasks.sudoku import all_grids, eighth, solved, sudoku


def conflict(grid, place, digit, box):
    """Whether a digit stands in the row, the column or the box of a place already."""
    n = box * box
    row, column = divmod(place, n)
    for other, there in enumerate(grid):
        r, c = divmod(other, n)
        near = r == row or c == column or (r // box == row // box and c // box == column // box)
        if near and other != place and there == digit:
            return True
    return False


def options(grid, place, box):
    return [digit for digit in range(1, box * box + 1) if not conflict(grid, place, digit, box)]


def solutions(grid, box, most=2):
    """The first `most` complete grids, by trying every digit that fits at the emptiest place."""
    empty = [place for place, digit in enumerate(grid) if digit == 0]
    if not empty:
        return [list(grid)]
    place = min(empty, key=lambda p: len(options(grid, p, box)))
    found = []
    for digit in options(grid, place, box):
        found += solutions([*grid[:place], digit, *grid[place + 1 :]], box, most - len(found))
        if len(found) >= most:
            break
    return found


def rounds(grid, box):
    """Rounds of naked singles, each found in the grid as it was before the round."""
    count = 0
    while True:
        found = {p: options(grid, p, box) for p, digit in enumerate(grid) if digit == 0}
        single = {p: digits[0] for p, digits in found.items() if len(digits) == 1}
        if not single:
            return grid, count
        grid = [single.get(p, digit) for p, digit in enumerate(grid)]
        count += 1


@pytest.mark.parametrize(
    ("box", "clues", "rows"),
    [(2, (4, 8), 60), (2, (4, 4), 20), (2, (15, 16), 10), (3, (26, 32), 3)],
)
def test_puzzles_have_one_solution_and_it_is_the_label(box, clues, rows):
    for source in sudoku(box, clues, examples=rows):
        batch = source.batch(3, 5, rows)
        n = box * box
        assert batch["inputs"].shape == batch["labels"].shape == (rows, n * n) and batch[
            "steps"
        ].shape == (rows,)
        assert (batch["inputs"].dtype, batch["labels"].dtype, batch["steps"].dtype) == (
            np.int8,
            np.int32,
            np.int32,
        )
        for puzzle, label, steps in zip(
            batch["inputs"].tolist(), batch["labels"].tolist(), batch["steps"], strict=True
        ):
            assert solutions(puzzle, box) == [[digit + 1 for digit in label]]
            assert rounds(puzzle, box) == ([digit + 1 for digit in label], steps)
            assert clues[0] <= sum(digit > 0 for digit in puzzle) <= clues[1]


def test_small_puzzles_belong_to_one_split_and_splits_to_no_kind_of_puzzle():
    train, calibration, test = sudoku(clues=(4, 6), examples=400)
    drawn = np.concatenate([train.batch(0, step, 256)["inputs"] for step in range(12)])
    sets = [
        {row.tobytes() for row in rows}
        for rows in (drawn, calibration.examples()["inputs"], test.examples()["inputs"])
    ]
    assert not (sets[0] & sets[1] or sets[0] & sets[2] or sets[1] & sets[2])
    every = np.array([np.frombuffer(row, np.int8) for row in set.union(*sets)])
    share = np.bincount(eighth(every[(every > 0).sum(axis=1) == 6]), minlength=8)
    assert share[2:].min() > 0.7 * share[2:].mean()  # training's six eighths, drawn alike


def test_what_naked_singles_cannot_solve_is_left_as_it_is():
    puzzles = np.zeros((2, 16), np.int8)
    puzzles[1, :3] = 1, 2, 3
    grids, count = solved(puzzles, 2)
    assert count.tolist() == [0, 1] and not grids[0].any()
    assert grids[1].tolist() == rounds(puzzles[1].tolist(), 2)[0] == [1, 2, 3, 4, *[0] * 12]


def test_the_grids_are_all_that_there_are():
    grids = all_grids()
    assert len({tuple(grid) for grid in grids.tolist()}) == len(grids) == 288
    for grid in grids.tolist():
        assert not any(conflict(grid, place, digit, 2) for place, digit in enumerate(grid))


def test_clues_and_grids_are_even():
    batch = sudoku(2, (4, 8)).train.batch(0, 0, 4000)
    count = np.bincount((batch["inputs"] > 0).sum(axis=1), minlength=9)
    np.testing.assert_allclose(count[4:9] / 4000, 0.2, atol=0.035)  # five standard deviations
    digits = np.stack([(batch["labels"] == d).mean(axis=0) for d in range(4)])
    np.testing.assert_allclose(digits, 0.25, atol=0.035)
    assert len({tuple(row) for row in batch["labels"].tolist()}) == 288


def test_grids_of_nine_are_permuted_in_lines_as_well_as_digits():
    labels = sudoku(3, (60, 60)).train.batch(0, 0, 100)["labels"]
    assert len({tuple(row) for row in labels[:, :9].tolist()}) == 100
    renamed = np.stack(
        [np.argsort(grid[:9])[grid] for grid in labels]
    )  # the first row becomes 0..8
    assert (renamed[:, :9] == np.arange(9)).all() and len(
        {tuple(row) for row in renamed.tolist()}
    ) == 100


def test_fewer_clues_take_more_rounds():
    easy, hard = (
        sudoku(2, clues).train.batch(0, 0, 300)["steps"].mean() for clues in ((9, 9), (4, 4))
    )
    assert easy + 1 < hard


def test_the_test_split_may_be_harder():
    splits = sudoku(2, (8, 10), test_clues=(4, 5), examples=30)
    given = lambda source: (source.examples()["inputs"] > 0).sum(axis=1)
    assert given(splits.calibration).min() >= 8 and given(splits.test).max() <= 5


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"box": 4}, "`box` must be 2 or 3, got 4."),
        (
            {"clues": (3, 8)},
            "`clues` must be (low, high) with 4 <= low <= high <= all places, 16, got (3, 8).",
        ),
        (
            {"clues": (8, 6)},
            "`clues` must be (low, high) with 4 <= low <= high <= all places, 16, got (8, 6).",
        ),
        (
            {"box": 3, "clues": (26, 82)},
            "`clues` must be (low, high) with 26 <= low <= high <= all places, 81, got (26, 82).",
        ),
        (
            {"test_clues": (4, 17)},
            "`test_clues` must be (low, high) with 4 <= low <= high <= all places, 16, got (4, 17).",
        ),
        ({"examples": 0}, "`examples` must be at least 1, got 0"),
    ],
)
def test_refusals_name_the_argument(arguments, text):
    with pytest.raises(ValueError) as error:
        sudoku(**arguments)
    assert text in str(error.value)
