"""Types of numpy arrays with their shapes, for modules that load no JAX; as `core/shapes.py`."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxtyping import Bool as Bool
    from jaxtyping import Float as Float
    from jaxtyping import Int as Int
    from jaxtyping import Num as Num
else:
    try:
        from jaxtyping import Bool, Float, Int, Num
    except ImportError:

        class _Unchecked:
            def __class_getitem__(cls, item):
                return item[0]

        Bool = Float = Int = Num = _Unchecked
