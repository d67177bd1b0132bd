"""Constructors of the networks defined by an equation; no JAX is loaded before `build`."""

import dataclasses
from typing import TYPE_CHECKING

from dynexit.core.settings import at_least
from dynexit.models.fits import misfit_shape, not_above

if TYPE_CHECKING:
    from dynexit.core.types import Model
    from dynexit.solvers.anderson import Mixing
    from dynexit.solvers.ode import Solver


@dataclasses.dataclass(frozen=True)
class Equilibrium:
    """A deep equilibrium network: z = norm(x + s conv(relu(conv(z)))), iterated from 0.

    Every iteration is an exit.

    Example:
      >>> model = Equilibrium(patch=2, width=8, steps=30).build((8, 8, 1), 10)
      >>> model.depth
      30

    Source: Bai et al. 2019 and 2020 (MDEQ) for the idea. The cell is ours and smaller than theirs:
    one scale, layer norm over channels, and no residual connection around the convolutions but a
    scale s, so that small weights contract.
    """

    patch: int = 2
    """side of a patch in pixels, which divides the sides of the image"""
    width: int = 48
    """channels D of the state"""
    steps: int = 16
    """iterations N at most"""
    anderson: int = 0
    """iterates that Anderson's mixing keeps; 0 for the plain or damped iteration"""
    damping: float = 0.0
    """z <- damping z + (1 - damping) f(z), without Anderson's mixing; in 0..1, 1 excluded"""

    def validate(self) -> list[str]:
        """Values out of range, one sentence each."""
        found = at_least(self, 1, "patch", "width", "steps") + at_least(self, 0, "anderson")
        if not 0 <= self.damping < 1:
            found.append(f"damping must be at least 0 and below 1, got {self.damping}")
        if self.damping and self.anderson:
            found.append("damping must be 0 with anderson")
        return found

    def fits(self, inputs: tuple[int, ...], classes: int) -> list[str]:
        """What does not fit the images, one sentence each."""
        if found := misfit_shape(inputs, "height", "width", "channels"):
            return found
        if any(side % self.patch for side in inputs[:2]):
            size = f"{inputs[0]} x {inputs[1]}"
            return [f"patch must divide an image of {size} pixels, got {self.patch}"]
        return []

    def mixing(self) -> "Mixing | None":
        """How the next iterate is made; None for the plain iteration. Loads JAX."""
        from dynexit.solvers.anderson import anderson, damped

        if self.anderson:
            return anderson(self.anderson)
        return damped(self.damping) if self.damping else None

    def build(
        self, inputs: tuple[int, ...], classes: int, *, mixing: "Mixing | None" = None
    ) -> "Model":
        """The model.

        Args:
          inputs: height, width and channels of an image.
          classes: C.
          mixing: how the next iterate is made, `dx.solvers.anderson(...)` for example; None for
            that of the fields.

        Returns:
          A weight-tied `Model`: inputs `[B, height, width, channels]` floating point, outputs
          `{"logits": [E, B, C], "residual": [E, B]}`; the state is that of
          `dx.solvers.fixed_point_step`.

        Raises:
          ValueError: a field out of range, or patches that do not divide the image; the field is
            named.
        """
        from dynexit.models.implicit.equilibrium import equilibrium

        return equilibrium(self, inputs, classes, mixing)


@dataclasses.dataclass(frozen=True)
class NeuralOde:
    """A network of continuous depth: y(0) = W x, dy/dt = W2 tanh(W1 [y, t]).

    Every step of the solver is an exit, and every row has step lengths of its own.

    Example:
      >>> model = NeuralOde(width=8, hidden=16, steps=12).build((4,), 3)
      >>> model.depth
      12

    Source: Chen et al. 2018; Dupont et al. 2019 for `extra`. Solved by diffrax, one step a block
    (`dx.solvers.ode_step`). No adjoint equation is integrated: gradients are those of the steps
    taken.
    """

    width: int = 64
    """features D of y"""
    hidden: int = 64
    """units of the vector field"""
    steps: int = 16
    """solver steps N at most, rejected ones included"""
    tolerance: float = 1e-3
    """relative error of a step; the absolute one is a thousandth of it"""
    extra: int = 0
    """zeros beside the features, so that trajectories may cross (ANODE)"""

    def validate(self) -> list[str]:
        """Values out of range, one sentence each."""
        found = at_least(self, 1, "width", "hidden", "steps") + at_least(self, 0, "extra")
        return found + not_above(0, tolerance=self.tolerance)

    def fits(self, inputs: tuple[int, ...], classes: int) -> list[str]:
        """What does not fit the data, one sentence each."""
        return misfit_shape(inputs)

    def build(
        self, inputs: tuple[int, ...], classes: int, *, solver: "Solver | None" = None
    ) -> "Model":
        """The model.

        Args:
          inputs: shape of one example, flattened by the model.
          classes: C.
          solver: tolerances, scheme and end; None for Tsit5 with `tolerance` up to t = 1.

        Returns:
          A weight-tied `Model`: inputs `[B, *inputs]` floating point, computed in float32, or in
          float64 where they are float64. Outputs `{"logits": [E, B, C], "gate": [E, B]}`, the gate
          t as a fraction of its end: with `criteria.gate_above(0.999)` each row exits at the end.

        Raises:
          ValueError: a field out of range, or inputs that are no shape; the field is named.
          ImportError: diffrax is not installed; raised when the model runs.
        """
        from dynexit.models.implicit.neural_ode import neural_ode

        return neural_ode(self, inputs, classes, solver)
