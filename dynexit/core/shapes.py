"""Types of arrays and of pytrees, with their shapes, for the signatures of public functions.

`Float[Array, "B C"]` is a float array of B rows and C columns. Within one signature equal names
are equal sizes. jaxtyping checks them where its import hook is installed, as in the project's
tests; otherwise they are documentation. Names are those of the notation in `core/types.py`.
Without jaxtyping, on a machine that has JAX alone, `Float[Array, "B C"]` is `Array`.
"""

from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import numpy as np

Array: TypeAlias = jax.Array
HostArray: TypeAlias = np.ndarray  # an array of numpy
AnyArray: TypeAlias = Array | HostArray

if TYPE_CHECKING:  # to a type checker a pytree may be anything
    from jaxtyping import Bool as Bool
    from jaxtyping import Float as Float
    from jaxtyping import Int as Int
    from jaxtyping import Key as Key
    from jaxtyping import Num as Num
    from jaxtyping import Shaped as Shaped

    Size: TypeAlias = int  # of an axis; symbolic while a function is exported
    PyTree: TypeAlias = Any
    Rows: TypeAlias = Any
    ExitRows: TypeAlias = Any
else:
    PyTree = Size = Any
    try:
        import jaxtyping
        from jaxtyping import Bool, Float, Int, Key, Num, Shaped
    except ImportError:

        class _Unchecked:
            def __class_getitem__(cls, item):
                return item[0]

        Bool = Float = Int = Key = Num = Shaped = _Unchecked
        Rows = ExitRows = Any
    else:
        Rows = jaxtyping.PyTree[Shaped[AnyArray, "B ..."]]  # leaves `[B, ...]`, one row each
        ExitRows = jaxtyping.PyTree[Shaped[AnyArray, "E B ..."]]  # leaves `[E, B, ...]`
