"""Graph algorithms against the textbook's loops over nodes, and the families of graphs."""

import itertools
import math
from collections import deque

import numpy as np
import pytest

from dynexit.data.tasks.graph_algorithms import bellman_ford, breadth_first, floyd_warshall
from dynexit.data.tasks.graphs import erdos_renyi, graphs, grids, paths

FAMILIES = {
    "erdos_renyi": erdos_renyi(0.5),
    "sparse": erdos_renyi(0.3),
    "paths": paths,
    "grids": grids,
}


def breadth_first_loop(weights, source):
    """Node by node: predecessors, frames."""
    nodes = range(len(weights))
    before, reached, frames = list(nodes), {source}, []
    while True:
        old = set(reached)
        frames.append(list(before))
        for i, j in itertools.product(nodes, nodes):
            if i in old and weights[i, j] > 0:
                if before[j] == j and j != source:
                    before[j] = i
                reached.add(j)
        if reached == old:
            return before, frames


def bellman_ford_loop(weights, source):
    """Edge by edge, reading the distances of the round before: predecessors, distances, frames."""
    nodes = range(len(weights))
    before, distance, frames = list(nodes), {source: 0.0}, []
    while True:
        old = dict(distance)
        frames.append(list(before))
        for i, j in itertools.product(nodes, nodes):
            if (
                i in old
                and weights[i, j] != 0
                and (j not in distance or old[i] + weights[i, j] < distance[j])
            ):
                distance[j], before[j] = old[i] + weights[i, j], i
        if distance == old:
            return before, [distance.get(node, -1) for node in nodes], frames


def floyd_warshall_loop(weights):
    """Pair by pair: predecessors, distances, frames."""
    nodes = range(len(weights))
    distance = {
        (i, j): float(weights[i, j]) for i in nodes for j in nodes if i == j or weights[i, j] != 0
    }
    before, frames = [[i for _ in nodes] for i in nodes], []
    for k in nodes:
        old = dict(distance)
        frames.append([list(row) for row in before])
        for i, j in itertools.product(nodes, nodes):
            if (
                (i, k) in old
                and (k, j) in old
                and ((i, j) not in distance or old[i, k] + old[k, j] < distance[i, j])
            ):
                distance[i, j] = old[i, k] + old[k, j]
                before[i][j] = before[k][j]
    return before, [[distance.get((i, j), -1) for j in nodes] for i in nodes], frames


def examples(algorithm, nodes, family, count=12):
    """Weights, source, and what was found, one graph at a time."""
    batch = graphs(algorithm, nodes, family=FAMILIES[family], hints=True).train.batch(
        0, nodes, count
    )
    assert (
        batch["inputs"].dtype == batch["distances"].dtype == np.float32
        and batch["labels"].dtype == np.int32
    )
    for row in range(count):
        yield (
            batch["inputs"][row, ..., 0],
            batch["inputs"][row, ..., 1],
            {name: leaf[row] for name, leaf in batch.items()},
        )


def source_of(marked):
    ((one, two),) = np.argwhere(marked).tolist()
    assert one == two and marked[one, two] == 1
    return one


def check_frames(found, frames, nodes):
    assert found["steps"] == len(frames)
    assert found["hints"].tolist() == frames + [frames[-1]] * (nodes - len(frames))


@pytest.mark.parametrize("nodes", [2, 5, 12, 16, 64])
@pytest.mark.parametrize("family", FAMILIES)
def test_breadth_first_search(family, nodes):
    for weights, marked, found in examples(
        breadth_first, nodes, family, count=12 if nodes < 64 else 2
    ):
        assert set(np.unique(weights)) <= {0.0, 1.0}
        source = source_of(marked)
        before, frames = breadth_first_loop(weights, source)
        assert found["labels"].tolist() == before
        check_frames(found, frames, nodes)
        distance, queue = {source: 0}, deque([source])
        while queue:
            here = queue.popleft()
            for there in np.flatnonzero(weights[here]).tolist():
                if there not in distance:
                    distance[there] = distance[here] + 1
                    queue.append(there)
        assert found["distances"].tolist() == [distance.get(node, -1) for node in range(nodes)]
        assert found["steps"] == max(distance.values()) + 1
        assert all(
            distance[before[node]] == distance[node] - 1 for node in distance if node != source
        )


@pytest.mark.parametrize("nodes", [2, 5, 12, 16, 64])
@pytest.mark.parametrize("family", FAMILIES)
def test_bellman_ford(family, nodes):
    for weights, marked, found in examples(
        bellman_ford, nodes, family, count=12 if nodes < 64 else 2
    ):
        before, distances, frames = bellman_ford_loop(weights.astype(float), source_of(marked))
        assert found["labels"].tolist() == before
        np.testing.assert_allclose(found["distances"], distances, rtol=1e-6)
        check_frames(found, frames, nodes)


@pytest.mark.parametrize("nodes", [2, 5, 9, 64])
@pytest.mark.parametrize("family", FAMILIES)
def test_floyd_warshall(family, nodes):
    for weights, marked, found in examples(
        floyd_warshall, nodes, family, count=6 if nodes < 64 else 1
    ):
        assert not marked.any()
        before, distances, frames = floyd_warshall_loop(weights.astype(float))
        assert found["labels"].tolist() == before
        np.testing.assert_allclose(found["distances"], distances, rtol=1e-6)
        check_frames(found, frames, nodes)
        for i in range(nodes):
            single = bellman_ford_loop(weights.astype(float), i)[1]
            others = [j for j in range(nodes) if j != i]
            np.testing.assert_allclose(
                found["distances"][i, others], np.array(single)[others], rtol=1e-6
            )


def test_random_graphs_take_the_published_number_of_rounds():
    small = graphs(breadth_first, 16).train.batch(0, 0, 4000)
    assert np.bincount(small["steps"]).argmax() == 4
    assert (
        (small["steps"] >= 3) & (small["steps"] <= 7)
    ).mean() > 0.97  # the others: a source without neighbours
    np.testing.assert_allclose((small["distances"] < 0).mean(), 0.03, atol=0.015)
    large = graphs(breadth_first, 64).train.batch(0, 0, 300)["steps"]
    assert set(large.tolist()) == {3, 4}


def test_random_graphs_have_edges_with_the_square_of_the_chance():
    joined = erdos_renyi(0.6)(np.random.default_rng(0), 2000, 6)
    np.testing.assert_array_equal(joined, joined.swapaxes(1, 2))
    diagonal = np.eye(6, dtype=bool)
    np.testing.assert_allclose(joined.mean(axis=0)[diagonal], 0.6, atol=0.055)
    np.testing.assert_allclose(joined.mean(axis=0)[~diagonal], 0.36, atol=0.055)


def test_lengths_of_edges():
    weights = graphs(bellman_ford, 8, family=erdos_renyi(1.0)).train.batch(0, 0, 3000)["inputs"][
        ..., 0
    ]
    np.testing.assert_array_equal(weights, weights.swapaxes(1, 2))
    assert weights.min() >= math.sqrt(1e-3) * 0.999
    np.testing.assert_allclose(
        (weights[:, 0, 1:] ** 2 - 1e-3).mean(), 0.25, atol=0.01
    )  # mean of u u'
    np.testing.assert_allclose(
        (weights[:, 0, 0] ** 2 - 1e-3).mean(), 1 / 3, atol=0.03
    )  # mean of u u


@pytest.mark.parametrize(
    ("family", "nodes", "rows"),
    [(paths, 7, 1), (grids, 12, 3), (grids, 7, 1), (grids, 16, 4), (grids, 2, 1)],
)
def test_paths_and_grids(family, nodes, rows):
    columns = nodes // rows
    expected = sorted(
        sum(
            0 <= row + a < rows and 0 <= column + b < columns
            for a, b in ((0, 1), (0, -1), (1, 0), (-1, 0))
        )
        for row in range(rows)
        for column in range(columns)
    )
    drawn = family(np.random.default_rng(0), 50, nodes)
    assert len({graph.tobytes() for graph in drawn}) > (1 if nodes > 2 else 0), (
        "always in the same order"
    )
    for graph in drawn:
        assert np.array_equal(graph, graph.T) and not graph.diagonal().any()
        assert sorted(graph.sum(axis=0).tolist()) == expected
        before, frames = breadth_first_loop(graph, 0)
        assert all(before[node] != node for node in range(1, nodes)), "not connected"
        assert len(frames) <= rows + columns - 1


def test_paths_and_grids_take_many_rounds():
    steps = graphs(breadth_first, 64, family=paths).train.batch(0, 0, 200)["steps"]
    assert steps.min() >= 33 and steps.max() <= 64 and len(set(steps.tolist())) > 15
    steps = graphs(breadth_first, 64, family=grids).train.batch(0, 0, 200)["steps"]
    assert set(steps.tolist()) <= set(range(9, 16)) and steps.max() > 13


def test_the_test_split_has_its_own_nodes_and_family():
    train, calibration, test = graphs(
        breadth_first, 8, test_nodes=20, test_family=paths, examples=9
    )
    assert (
        train.examples()["inputs"].shape == calibration.examples()["inputs"].shape == (9, 8, 8, 2)
    )
    assert (
        test.examples()["inputs"].shape == (9, 20, 20, 2) and test.examples()["steps"].min() >= 11
    )
    assert "hints" not in test.examples()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"nodes": 1}, "`nodes` must be at least 2, got 1"),
        ({"nodes": 4, "test_nodes": 0}, "`test_nodes` must be at least 2, got 0"),
        ({"nodes": 4, "examples": 0}, "`examples` must be at least 1, got 0"),
    ],
)
def test_refusals_name_the_argument(arguments, text):
    with pytest.raises(ValueError, match=text):
        graphs(breadth_first, **arguments)
    with pytest.raises(ValueError, match=r"`probability` must lie in 0\.\.1, got 1.5"):
        erdos_renyi(1.5)
