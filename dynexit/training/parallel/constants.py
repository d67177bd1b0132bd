"""Arrays that a function closes over, as arguments of its compiled program.

`jax.jit` writes an array from outside of its function, such as the parameters of a teacher, into
the program as a constant: lowering copies it, compilation reads it, and each cached program holds
it once more.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.sharding import Mesh

from dynexit.core.shapes import AnyArray
from dynexit.training.parallel.mesh import replicated
from dynexit.training.parallel.placement import put

LARGE = 2**10  # elements; XLA may fold smaller constants


class Compiled:
    """`jax.jit(f)` whose large constants are arguments, replicated on the mesh.

    Constants of a function that is under `jax.jit` itself, inside of `f`, stay constants.

    Args:
      f: the function; its last argument alone may change its structure or shapes.
      mesh: the devices.
      donate: indices of arguments that are donated.
      out_shardings: of the results, as in `jax.jit`.

    Example:
      >>> from dynexit.training.parallel.mesh import make_mesh
      >>> weights = jax.numpy.ones((64, 32))
      >>> mesh = make_mesh(devices=jax.devices()[:1])
      >>> product = Compiled(lambda x: x @ weights, mesh)
      >>> product(jax.numpy.ones((2, 64))).shape
      (2, 32)
      >>> [a.shape for a in product.constants(jax.numpy.ones((2, 64)))]
      [(64, 32)]
    """

    def __init__(
        self,
        f: Callable[..., Any],
        mesh: Mesh,
        donate: Sequence[int] = (),
        out_shardings: Any = None,
    ):
        self._options: dict[str, Any] = {"out_shardings": out_shardings}
        self._donate, self._mesh = tuple(donate), mesh
        self._whole = jax.jit(f, donate_argnums=self._donate, **self._options)
        self._programs: dict[Any, tuple[Any, list[AnyArray]]] = {}

    def __call__(self, *args: Any) -> Any:
        program, constants = self._of(args)
        return program(constants, *args)

    def lower(self, *args: Any) -> Any:
        """The lowered program, as `jax.jit(f).lower(*args)`."""
        program, constants = self._of(args)
        return program.lower(constants, *args)

    def constants(self, *args: Any) -> list[AnyArray]:
        """The arrays that are arguments of the program for `args`, beside them."""
        return self._of(args)[1]

    def _of(self, args: tuple[Any, ...]) -> tuple[Any, list[AnyArray]]:
        leaves, structure = jax.tree.flatten(args[-1])
        key = structure, tuple((a.shape, a.dtype) for a in leaves)
        if key not in self._programs:
            self._programs[key] = self._made(args)
        return self._programs[key]

    def _made(self, args: tuple[Any, ...]) -> tuple[Any, list[AnyArray]]:
        traced = self._whole.trace(*args)
        closed, made = traced.jaxpr, jax.tree.structure(traced.out_info)
        large = [k for k, a in enumerate(closed.consts) if np.size(a) >= LARGE]

        def f(constants: list[AnyArray], *args: Any) -> Any:
            filled = dict(zip(large, constants, strict=True))
            consts = [filled.get(k, a) for k, a in enumerate(closed.consts)]
            run = jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, consts))
            return jax.tree.unflatten(made, run(*jax.tree.leaves(args)))

        donated = tuple(k + 1 for k in self._donate)
        program = jax.jit(f, donate_argnums=donated, **self._options)
        where = replicated(self._mesh)
        return program, [put(np.asarray(closed.consts[k]), where) for k in large]
