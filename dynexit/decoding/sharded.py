"""Decoding on several devices: each has slots and a queue of its own.

Rows are split over all axes of the mesh but "model", inside of `jax.shard_map`: devices exchange
nothing along them, and each ends its loop when its own requests have ended. Along "model" the
weights and the cache are split by heads, and XLA inserts the sums.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dynexit.core.shapes import Array, Int, PyTree
from dynexit.decoding.plan import Carry, Given, Plan, first_carry
from dynexit.decoding.program import run_all_rounds
from dynexit.decoding.requests import no_requests
from dynexit.engine.collectives import Reading, reading, refuse_waiting
from dynexit.layers.panels import without_panels

_programs: dict[Any, jax.stages.Compiled] = {}


class Shards:
    """The devices of a mesh; every leaf of a carry has a leading axis of shards.

    Args:
      mesh: any axes; rows are split over all but "model".

    Raises:
      TypeError: `mesh` is no mesh.
    """

    def __init__(self, mesh: Any) -> None:
        if not isinstance(mesh, Mesh):
            raise TypeError(f"`mesh` must be a jax.sharding.Mesh, got {type(mesh).__name__}")
        kinds = (AxisType.Auto,) * mesh.devices.ndim
        self.mesh = Mesh(mesh.devices, mesh.axis_names, axis_types=kinds)
        self.rows = tuple(name for name in mesh.axis_names if name != "model")
        self.count = math.prod(mesh.shape[name] for name in self.rows)
        self.model = mesh.shape.get("model", 1)

    def place(self, plan: Plan, given: Given) -> Given:
        """The weights split along "model", the other arrays on every device."""
        if self.model > 1:
            given = given._replace(weights=without_panels(given.weights))
        specs: PyTree = jax.tree.map(lambda _: P(), given)
        if self.model > 1:
            specs = specs._replace(weights=plan.decoder.specs(given.weights, self.model)[0])
        sharding = lambda spec: NamedSharding(self.mesh, spec)
        is_spec = lambda x: isinstance(x, P)
        return jax.device_put(given, jax.tree.map(sharding, specs, is_leaf=is_spec))

    def first(self, plan: Plan, given: Given, size: int) -> Carry:
        """A carry without requests, made in place on every device."""

        def make(given: Given) -> Carry:
            requests = no_requests(size, plan.room, plan.log_probabilities)
            one = first_carry(plan, given, requests)
            return jax.tree.map(lambda a: jnp.broadcast_to(a, (self.count, *a.shape)), one)

        def sharding(path: Any, leaf: Any) -> NamedSharding:
            cached = any(getattr(key, "name", "") == "cache" for key in path)
            inner = plan.decoder.specs(given.weights, self.model)[1] if cached else P()
            inner = inner if self.model > 1 else P()
            return NamedSharding(self.mesh, P(self.rows, *inner))

        shapes = jax.eval_shape(make, given)
        where = jax.tree_util.tree_map_with_path(sharding, shapes)
        return jax.jit(make, out_shardings=where)(given)

    def run(self, plan: Plan, given: Given, carry: Carry, rounds: Int[Array, ""]) -> Carry:
        """As `run_rounds`, on every device.

        Raises:
          ValueError: XLA inserted a collective that would wait for a device that has ended.
        """
        leaves, structure = jax.tree.flatten((given, carry))
        kinds = tuple((a.shape, a.dtype, a.sharding) for a in leaves)
        key = plan, self.mesh, structure, kinds
        if key not in _programs:
            _programs[key] = self._compiled(plan, given, carry, rounds)
        return _programs[key](given, carry, rounds)

    def _compiled(
        self, plan: Plan, given: Given, carry: Carry, rounds: Array
    ) -> jax.stages.Compiled:
        def local(given: Given, carry: Carry, rounds: Array) -> Carry:
            carry = jax.tree.map(lambda a: a[0], carry)
            carry = run_all_rounds(plan, given, carry, rounds)
            return jax.tree.map(lambda a: a[None], carry)

        spread = jax.shard_map(
            local,
            mesh=self.mesh,
            in_specs=(P(), P(self.rows), P()),
            out_specs=P(self.rows),
            axis_names=set(self.rows),
            check_vma=False,
        )
        where = jax.tree.map(lambda a: a.sharding, carry)
        jitted = jax.jit(spread, donate_argnums=1, out_shardings=where)
        with reading(Reading()):  # the compiled program is read below
            compiled = jitted.lower(given, carry, rounds).compile()
        refuse_waiting(compiled.as_text() or "", [(self.mesh, frozenset(self.rows))])
        return compiled
