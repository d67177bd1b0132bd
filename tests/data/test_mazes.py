"""Mazes against breadth-first search, one place at a time, and against the statistics of the
published generator.
"""

from collections import deque

import numpy as np
import pytest

from dynexit.data.tasks import maze_walls
from dynexit.data.tasks.mazes import filling_rounds, mazes


def shortest(free, start, end):
    """The distance from start to end, how many shortest paths there are, and the places of one;
    walls are False.
    """
    distance, ways, before, queue = {start: 0}, {start: 1}, {}, deque([start])
    while queue:
        row, column = here = queue.popleft()
        for there in ((row, column - 1), (row, column + 1), (row - 1, column), (row + 1, column)):
            if not free[there]:
                continue
            if there not in distance:
                distance[there], ways[there], before[there] = distance[here] + 1, 0, here
                queue.append(there)
            if distance[there] == distance[here] + 1:
                ways[there] += ways[here]
    path = [end]
    while path[-1] != start:
        path.append(before[path[-1]])
    return distance[end], ways[end], set(path), len(distance)


def place(image, colour):
    """The only place of a colour."""
    (found,) = np.argwhere((image == colour).all(axis=-1)).tolist()
    return tuple(found)


def bare(size, count, loops=0.0, seed=0):
    """Arrays without repeats and margin: free places, start, end, labels and steps of each maze."""
    batch = mazes(size, scale=1, loops=loops).train.batch(seed, 0, count)
    for image, labels, steps in zip(batch["inputs"], batch["labels"], batch["steps"], strict=True):
        yield image.any(axis=-1), place(image, (0, 1, 0)), place(image, (1, 0, 0)), labels, steps


@pytest.mark.parametrize(
    ("size", "loops"),
    [(3, 0.0), (9, 0.0), (13, 0.0), (3, 1.0), (9, 0.1), (9, 1.0), (15, 0.3), (59, 0.0)],
)
def test_labels_are_the_one_shortest_path(size, loops):
    for free, start, end, labels, steps in bare(size, 60 if size < 59 else 4, loops):
        length, ways, path, reached = shortest(free, start, end)
        assert ways == 1 and steps == length > 0
        assert {tuple(found) for found in np.argwhere(labels).tolist()} == path
        assert reached == free.sum(), "some place cannot be reached"


@pytest.mark.parametrize("size", [3, 9, 21])
def test_without_loops_a_maze_is_a_tree_of_all_cells(size):
    side = (size + 1) // 2
    for free, start, end, *_ in bare(size, 40):
        assert free.shape == (2 * side + 1, 2 * side + 1)
        assert free[1::2, 1::2].all() and not free[::2, ::2].any()
        assert not (free[0].any() or free[-1].any() or free[:, 0].any() or free[:, -1].any())
        assert (
            free.sum() == 2 * side**2 - 1
        )  # connected (see above) with one door fewer than cells: no loop
        assert start != end and {coordinate % 2 for coordinate in (*start, *end)} == {1}


def plain_length(random, side):
    """The moves from start to end of one maze, carved cell by cell."""
    start = end = (int(random.integers(side)), int(random.integers(side)))
    while end == start:
        end = (int(random.integers(side)), int(random.integers(side)))
    depth, stack = {start: 0}, [start]
    while stack:
        x, y = stack[-1]
        free = [
            (a, b)
            for a, b in ((x - 1, y), (x + 1, y), (x, y - 1), (x, y + 1))
            if 0 <= min(a, b) and max(a, b) < side
        ]
        free = [cell for cell in free if cell not in depth]
        if not free:
            stack.pop()
            continue
        stack.append(free[random.integers(len(free))])
        depth[stack[-1]] = depth[(x, y)] + 2
    return depth[end]


def test_statistics_of_the_published_generator():
    """Size 9: the mean and the quantiles of the published one. Size 13: 20,000 plain mazes had a
    mean of 39.67 +- 0.15.
    """
    nine, thirteen = (mazes(size).train.batch(0, 0, 10_000)["steps"] for size in (9, 13))
    np.testing.assert_allclose(nine.mean(), 21.5, atol=0.5)  # four standard errors
    assert np.percentile(nine, 5) == 4 and np.percentile(nine, 95) in (38, 40)
    np.testing.assert_allclose(thirteen.mean(), 39.67, atol=1.0)
    assert {int(free.sum()) for free, *_ in bare(9, 200)} == {49}


@pytest.mark.parametrize("side", [2, 5, 8])
def test_paths_are_as_long_as_those_of_plain_mazes(side):
    random = np.random.default_rng(3)
    plain = np.array([plain_length(random, side) for _ in range(500)])
    steps = mazes(2 * side - 1).train.batch(0, 0, 5000)["steps"]
    error = (plain.var() / 500 + steps.var() / 5000) ** 0.5
    assert abs(plain.mean() - steps.mean()) < 4 * error


@pytest.mark.parametrize("start", [(0, 0), (1, 0), (1, 1)])
def test_every_tree_comes_as_often_as_the_plain_backtracker_makes_it(start):
    """All 3 x 3 mazes and their chances, by following every choice of the rule."""
    chances = {}

    def explore(stack, before, chance):
        if not stack:
            tree = tuple(before[cell] for cell in sorted(before))
            chances[tree] = (
                chances.get(tree, 0) + chance
            )  # several orders of turning back may make one tree
            return
        x, y = stack[-1]
        free = [
            (a, b)
            for a, b in ((x - 1, y), (x + 1, y), (x, y - 1), (x, y + 1))
            if 0 <= min(a, b) and max(a, b) < 3
        ]
        free = [cell for cell in free if cell not in before]
        for cell in free:
            explore([*stack, cell], {**before, cell: (x, y)}, chance / len(free))
        if not free:
            explore(stack[:-1], before, chance)

    explore([start], {start: start}, 1.0)
    number = lambda cell: (cell[1] + 1) * 5 + cell[0] + 1
    draws = 40_000
    parent = maze_walls.carve(np.random.default_rng(0), np.full(draws, number(start)), 3)
    cells = [number((x, y)) for x in range(3) for y in range(3)]
    trees, counts = np.unique(parent[:, cells], axis=0, return_counts=True)
    expected = {tuple(map(number, tree)): chance for tree, chance in chances.items()}
    assert {tuple(tree) for tree in trees.tolist()} == expected.keys() and len(expected) > 5
    for tree, count in zip(trees.tolist(), counts, strict=True):
        chance = expected[tuple(tree)]
        assert abs(count - draws * chance) < 5 * (draws * chance * (1 - chance)) ** 0.5


def test_images_have_the_published_sizes_and_repeat_each_place():
    for size, side in ((9, 24), (13, 32), (59, 124), (201, 408)):
        batch = mazes(size).train.batch(0, 0, 1)
        assert batch["inputs"].shape == (1, side, side, 3) and batch["labels"].shape == (
            1,
            side,
            side,
        )
    small, large = (mazes(9, scale=scale).train.batch(0, 0, 5) for scale in (1, 3))
    assert large["inputs"].shape == (5, 37, 37, 3) and large["labels"].shape == (5, 37, 37)
    assert large["inputs"].dtype == np.uint8 and large["labels"].dtype == np.int32
    for name in ("inputs", "labels"):
        assert not large[name][:, :2].any() and not large[name][:, :, -2:].any()
        for row in range(33):
            for column in range(33):
                assert np.array_equal(
                    large[name][:, row + 2, column + 2], small[name][:, row // 3, column // 3]
                )
    np.testing.assert_array_equal(large["steps"], small["steps"])


def fill_dead_ends(free, ends):
    """Closes dead ends until there is none: in a tree the path is left."""
    free = free.copy()
    while True:
        closed = False
        for row, column in np.argwhere(free).tolist():
            around = (
                free[row, column - 1],
                free[row, column + 1],
                free[row - 1, column],
                free[row + 1, column],
            )
            if sum(around) < 2 and (row, column) not in ends:
                free[row, column] = False
                closed = True
        if not closed:
            return free


def test_filling_dead_ends_solves_trees_and_not_mazes_with_loops():
    solved = lambda loops: [
        np.array_equal(fill_dead_ends(free, {a, b}), labels > 0)
        for free, a, b, labels, _ in bare(9, 40, loops)
    ]
    assert all(solved(0.0))
    assert sum(solved(0.3)) < 10


def test_filling_rounds_are_a_loop_over_places():
    """One place at a time, and no ends but the two; within a size long ways leave short dead ends."""
    drawn = mazes(9, scale=1, examples=40).test.examples()
    rounds = filling_rounds(drawn["inputs"])
    for maze, found in zip(drawn["inputs"][:12], rounds, strict=False):
        free = {tuple(p) for p in np.argwhere(maze.any(-1))}
        ends, wanted = {tuple(p) for p in np.argwhere(maze.any(-1) & ~maze.all(-1))}, 0
        around = lambda p, free: sum(
            (p[0] + a, p[1] + b) in free for a, b in ((0, 1), (1, 0), (0, -1), (-1, 0))
        )
        while dead := {p for p in free - ends if around(p, free) <= 1}:
            free, wanted = free - dead, wanted + 1
        assert found == wanted
    assert np.corrcoef(rounds, drawn["steps"])[0, 1] < -0.8


def test_loops_open_that_fraction_of_the_closed_walls():
    for loops in (0.1, 0.5, 1.0):
        free = mazes(21, scale=1, loops=loops).train.batch(0, 0, 100)["inputs"].any(axis=-1)
        doors, closed = free.sum(axis=(1, 2)) - 121, 2 * 11 * 10 - 120
        np.testing.assert_allclose((doors - 120).mean() / closed, loops, atol=0.025)


def test_the_test_split_is_larger():
    train, calibration, test = mazes(9, test_size=15, examples=7)
    assert (
        train.examples()["inputs"].shape == calibration.examples()["inputs"].shape == (7, 24, 24, 3)
    )
    assert test.examples()["inputs"].shape == (7, 36, 36, 3)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"size": 8}, "`size` must be odd and at least 3, got 8"),
        ({"size": 9, "test_size": 1}, "`test_size` must be odd and at least 3, got 1"),
        ({"size": 9, "scale": 0}, "`scale` must be at least 1, got 0"),
        ({"size": 9, "loops": 1.5}, r"`loops` must lie in 0\.\.1, got 1.5"),
        ({"size": 9, "examples": 0}, "`examples` must be at least 1, got 0"),
    ],
)
def test_refusals_name_the_argument(arguments, text):
    with pytest.raises(ValueError, match=text):
        mazes(**arguments)
