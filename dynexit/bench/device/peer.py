"""The peer: eager PyTorch that removes finished rows from the batch after every block."""

import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from dynexit.bench.device import vit
from dynexit.bench.device.blocks import full_program, reference_outputs
from dynexit.bench.device.state import State
from dynexit.bench.device.timing import measure, prescribed
from dynexit.bench.device.vit import Problem
from dynexit.core.shapes import Int

SECTION = "peer"


def run_peer(suite: State, batch: int) -> None:
    """Adds records of PyTorch, full and with exits, timed interleaved with `dx.run_full`."""
    if importlib.util.find_spec("torch") is None:
        suite.skip(SECTION, f"batch {batch}", "PyTorch is not installed")
        return
    made = vit.problem(suite.shape, batch)
    _, params, state = made
    depth = suite.shape.depth
    suite.log(f"peer, batch {batch}: preparing")
    reference = reference_outputs(made)
    full = full_program(made)
    peer = Regrouping(made)
    for mean in suite.means:
        depths = prescribed(depth, mean, batch)
        fraction = float(depths.mean()) / depth
        expected = vit.at_exits(reference, depths)
        dtype = suite.shape.dtype
        found = peer.run(depths), peer.full()
        names = "torch regrouping", "torch full"
        pairs = zip(names, found, (expected, reference[-1]), strict=True)
        checked = {n: suite.agreement(SECTION, n, f.numpy(), e, dtype) for n, f, e in pairs}
        suite.log(f"peer, batch {batch}, mean depth {fraction:.0%}: timing")
        calls: dict[str, Callable[[], Any]] = {"jax full": lambda: full(params, state)}
        calls |= {"torch full": peer.full, "torch regrouping": lambda d=depths: peer.run(d)}
        timing = measure(calls, suite.rounds, suite.limit)
        common = {"section": SECTION, "batch": batch, "mean_depth": fraction, "dtype": dtype}
        common |= {"torch_device": peer.device}
        for name, t in timing.items():
            ideal = timing["torch full"].median * (fraction if name == "torch regrouping" else 1.0)
            record = common | {"program": name} | t.record() | checked.get(name, {})
            record |= {"speedup": timing["torch full"].median / t.median}
            record |= {"speedup_over_jax": timing["jax full"].median / t.median}
            if name != "jax full":
                record |= {"ideal": ideal, "efficiency": ideal / t.median}
            suite.add(record)


class Regrouping:
    """A network in PyTorch, on a GPU if there is one.

    Args:
      made: network and batch; weights and state are copied.
    """

    def __init__(self, made: Problem) -> None:
        import torch  # pyright: ignore[reportMissingImports]

        self._torch, self._heads, self._depth = torch, made.shape.heads, made.shape.depth
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = getattr(torch, made.shape.dtype)
        put = lambda a: torch.from_numpy(np.array(a, np.float32)).to(self.device, dtype)
        self._state = put(made.state)
        weights = jax.tree.map(put, made.params)
        of_block = lambda i: {name: w[i].contiguous() for name, w in weights.items()}
        self._blocks = [of_block(i) for i in range(self._depth)]

    def run(self, depths: Int[np.ndarray, "B"]) -> Any:
        """Runs rows to `depths`, int32 `[B]`; returns outputs on the host, in the batch's order."""
        torch = self._torch
        with torch.inference_mode():
            wanted = torch.from_numpy(depths.astype(np.int64)).to(self.device)
            h, row = self._state, torch.arange(len(depths), device=self.device)
            outputs = None
            for i, p in enumerate(self._blocks):
                h = self._block(p, h)
                logits = self._head(p, h)
                if outputs is None:
                    outputs = torch.zeros_like(logits)
                exits = (wanted <= i + 1) | (i + 1 == self._depth)
                outputs[row[exits]] = logits[exits]
                running = ~exits
                if not bool(running.any()):  # read on the host
                    break
                if bool(exits.any()):
                    h, row, wanted = h[running], row[running], wanted[running]
            assert outputs is not None
            return outputs.cpu()

    def full(self) -> Any:
        """Runs all blocks and the last exit; returns outputs on the host."""
        with self._torch.inference_mode():
            h = self._state
            for p in self._blocks:
                h = self._block(p, h)
            return self._head(self._blocks[-1], h).cpu()

    def _norm(self, x: Any) -> Any:
        return self._torch.nn.functional.layer_norm(x, x.shape[-1:], eps=1e-6)

    def _block(self, p: dict[str, Any], h: Any) -> Any:
        functional = self._torch.nn.functional
        split = lambda x: x.unflatten(-1, (self._heads, -1)).transpose(1, 2)
        q, k, v = map(split, (self._norm(h) @ p["qkv"]).chunk(3, -1))
        mixed = functional.scaled_dot_product_attention(q, k, v)
        h = h + mixed.transpose(1, 2).flatten(2) @ p["out"]
        return h + functional.gelu(self._norm(h) @ p["up"], approximate="tanh") @ p["down"]

    def _head(self, p: dict[str, Any], h: Any) -> Any:
        return (self._norm(h[:, 0]) @ p["head"]).float()
