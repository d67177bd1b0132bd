"""What process 0 alone does or decides, while the other processes of a program wait for it."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Generator
from typing import Any

from dynexit.core.processes.start import current

EVERY = 60.0  # seconds between two lines of a process that waits


def nothing(*args: Any) -> None:
    """Does nothing, in place of a log or of a call between batches."""


def from_first(make: Callable[[], Any], what: str, log: Callable[[str], None] = nothing) -> Any:
    """`make()` of process 0, on all processes; all must call it.

    It is called on process 0 alone. The others wait on the host, not on their devices, and log once
    a minute what they wait for.

    Args:
      make: returns a value that JSON can hold.
      what: what process 0 does, such as "tunes the tiles".
      log: receives the lines of those that wait.

    Example:
      >>> from_first(lambda: 3, "counts")
      3
    """
    import jax

    if jax.process_count() == 1:
        return make()
    if jax.process_index() == 0:
        return _sent(make())
    with _waiting(what, log):
        return _sent(None)


def agreed(tree: Any, what: str) -> Any:
    """The small numeric arrays of process 0, on all processes, as numpy; all must call it.

    Args:
      tree: arrays; structure, shapes and types are the same on all processes.
      what: as in `from_first`.
    """
    import jax
    import numpy as np

    leaves, structure = jax.tree.flatten(tree)
    held = [np.asarray(leaf) for leaf in leaves]
    values = from_first(lambda: [a.tolist() for a in held], what)
    arrays = [np.asarray(v, a.dtype).reshape(a.shape) for v, a in zip(values, held, strict=True)]
    return jax.tree.unflatten(structure, arrays)


def _sent(value: Any) -> Any:
    if (member := current()) is not None:
        return member.exchange("from process 0", value, None)[0]
    # processes that `jax.distributed` alone has connected
    import numpy as np
    from jax.experimental.multihost_utils import broadcast_one_to_all

    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(broadcast_one_to_all(np.int32(len(data))))
    return json.loads(broadcast_one_to_all(np.resize(data, size)).tobytes())


@contextlib.contextmanager
def _waiting(what: str, log: Callable[[str], None]) -> Generator[None]:
    """A context that logs what is waited for, after a second and then once a minute."""
    import jax

    over, began = threading.Event(), time.monotonic()
    own = f"process {jax.process_index()}"

    def run() -> None:
        pause = 1.0
        while not over.wait(pause):
            pause = EVERY
            log(f"{own} waits for process 0, which {what}, for {time.monotonic() - began:.0f} s")

    threading.Thread(target=run, name="waiting", daemon=True).start()
    try:
        yield
    finally:
        over.set()
