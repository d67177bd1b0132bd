"""A peer for the yardstick: PyTorch, eager, which drops the rows that are done from the batch after
every block.

The usual way to save time with exits in PyTorch: no compilation, the decision read on the host,
survivors indexed out. It runs the same weights on as many threads as there are cores.
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from dynexit.bench.problems import HEAD, Cell, Problem


def regrouping(cell: Cell, problem: Problem, depths: np.ndarray) -> Callable[[], Any]:
    """A call that runs a cell of transformer blocks on these depths, int32 `[B]`.

    Raises:
      ImportError: PyTorch is not installed.
      ValueError: another block, or bfloat16.
    """
    try:
        import torch  # pyright: ignore[reportMissingImports]
        from torch.nn import functional  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError("`--peer torch` needs PyTorch: pip install torch") from error
    if cell.block not in ("transformer", "tied") or cell.dtype != "float32":
        raise ValueError(
            f"the PyTorch peer has float32 transformers alone, got {cell.block} in {cell.dtype}"
        )
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    tied = cell.block == "tied"
    weights = jax.tree.map(lambda a: torch.from_numpy(np.array(a)), problem.params)
    of_block = [{k: w if tied else w[i] for k, w in weights.items()} for i in range(cell.depth)]
    rows, wanted = torch.from_numpy(np.array(problem.state)), torch.from_numpy(depths)
    norm = lambda x: functional.layer_norm(x, x.shape[-1:], eps=1e-6)

    def block(p, h):
        split = lambda x: x.reshape(*x.shape[:2], -1, HEAD).transpose(1, 2)
        q, k, v = map(split, (norm(h) @ p["qkv"]).chunk(3, -1))
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(h.shape)
        h = h + mixed @ p["out"]
        return h + functional.gelu(norm(h) @ p["up"], approximate="tanh") @ p["down"]

    def run():
        with torch.inference_mode():
            h, index = rows, torch.arange(cell.batch)
            output = torch.zeros(cell.batch, weights["head"].shape[-1])
            for i, p in enumerate(of_block):
                h = block(p, h)
                read = h.mean(1) @ p["head"]
                leaves = (
                    (wanted[index] <= i + 1)
                    if i + 1 < cell.depth
                    else torch.ones(len(index), dtype=torch.bool)
                )
                output[index[leaves]] = read[leaves]
                if bool(leaves.all()):
                    break
                if bool(leaves.any()):
                    h, index = h[~leaves], index[~leaves]
            return output.numpy()

    return run
