"""A peer for the benchmark: eager PyTorch that removes finished rows after every block.

This is the usual implementation of early exit in PyTorch: no compilation, the decision is read on
the host, and survivors are selected by index. It uses the same weights, and as many threads as
there are cores.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from dynexit.bench.problems import HEAD, Cell, Problem
from dynexit.core.shapes import Int
from dynexit.core.system import cores


def regrouping(cell: Cell, problem: Problem, depths: Int[np.ndarray, "B"]) -> Callable[[], Any]:
    """A call that runs a cell of transformer blocks with PyTorch.

    Args:
      cell: the network and batch; float32 transformers.
      problem: its weights and rows.
      depths: int32 `[B]`, depth at which each row exits.

    Returns:
      A function without arguments that returns the outputs, float32 `[B, C]`.

    Raises:
      ImportError: PyTorch is not installed.
      ValueError: the blocks are not transformers, or the type is not float32.
    """
    try:
        import torch  # pyright: ignore[reportMissingImports]
        from torch.nn import functional  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError("`--peer torch` needs PyTorch: pip install torch") from error
    if cell.block not in ("transformer", "tied") or cell.dtype != "float32":
        raise ValueError(
            f"`cell` must have float32 transformers for PyTorch, got {cell.block} in {cell.dtype}"
        )
    torch.set_num_threads(cores())
    tied = cell.block == "tied"
    weights = jax.tree.map(lambda a: torch.from_numpy(np.array(a)), problem.params)
    of_block = [{k: w if tied else w[i] for k, w in weights.items()} for i in range(cell.depth)]
    rows, wanted = torch.from_numpy(np.array(problem.state)), torch.from_numpy(depths)
    norm = lambda x: functional.layer_norm(x, x.shape[-1:], eps=1e-6)

    def block(p: dict[str, Any], h: Any) -> Any:
        split = lambda x: x.reshape(*x.shape[:2], -1, HEAD).transpose(1, 2)
        q, k, v = map(split, (norm(h) @ p["qkv"]).chunk(3, -1))
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(h.shape)
        h = h + mixed @ p["out"]
        return h + functional.gelu(norm(h) @ p["up"], approximate="tanh") @ p["down"]

    def run() -> np.ndarray:
        with torch.inference_mode():
            h, index = rows, torch.arange(cell.batch)
            output = torch.zeros(cell.batch, weights["head"].shape[-1])
            for i, p in enumerate(of_block):
                h = block(p, h)
                logits = h.mean(1) @ p["head"]
                exits = (wanted[index] <= i + 1) | (i + 1 == cell.depth)
                output[index[exits]] = logits[exits]
                if bool(exits.all()):
                    break
                if bool(exits.any()):
                    h, index = h[~exits], index[~exits]
            return output.numpy()

    return run
