"""The mesh of a plan, and the part of it that is compiled; JAX is not loaded."""

from dynexit.core.settings import Mesh

MOST = 64  # virtual devices


def sizes_of(mesh: Mesh) -> tuple[int, int, int]:
    """Sizes of "data", "fsdp" and "model"; `data` None is one.

    Example:
      >>> sizes_of(Mesh(fsdp=4))
      (1, 4, 1)
    """
    return mesh.data or 1, mesh.fsdp, mesh.model


def compiled_sizes(sizes: tuple[int, int, int]) -> tuple[int, int, int]:
    """The mesh that is compiled: that of the plan, or a part of it of at most `MOST` devices.

    Example:
      >>> compiled_sizes((2, 4, 2)), compiled_sizes((256, 1, 1)), compiled_sizes((8, 64, 4))
      ((2, 4, 2), (64, 1, 1), (2, 8, 4))
    """
    data, fsdp, model = sizes
    least = min(data, 2)
    while fsdp > 1 and least * fsdp * model > MOST:
        fsdp = next(part for part in range(fsdp // 2, 0, -1) if fsdp % part == 0)
    return min(data, max(least, MOST // (fsdp * model))), fsdp, model
