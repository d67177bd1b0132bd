"""Host batches are drawn and transferred one step ahead, in a thread, so that the device does not
wait for them.
"""

from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def ahead(draw: Callable[[int], T], first: int, end: int) -> Generator[T, None, None]:
    """Yields `draw(first), ..., draw(end - 1)`, each started in a thread while the one before it is
    in use.

    An exception of `draw` is raised where its result is due. Closing or exhausting the iterator
    ends the thread.

    Example:
      >>> list(ahead(lambda step: step * step, 2, 5))
      [4, 9, 16]
    """
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as pool:
        pending = [pool.submit(draw, first)] if first < end else []
        for step in range(first + 1, end + 1):
            ready = pending.pop().result()
            if step < end:
                pending.append(pool.submit(draw, step))
            yield ready
