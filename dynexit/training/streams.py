"""Standard output and standard error that cannot stop a run. Loads no JAX."""

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Generator
from typing import Any

CLOSED = (errno.EPIPE, errno.EIO, errno.EBADF)


class SafeStream:
    """A text stream whose write errors are ignored.

    When the reader of a pipe has exited or the terminal is closed, the file descriptor is
    redirected to `os.devnull`, so that output of native libraries and the flush at exit succeed
    too. After other errors, such as a full disk, the next write is tried again.

    Args:
      stream: the stream to wrap, or None for one that writes nothing; every other attribute is
        read from it.

    Example:
      >>> import io
      >>> stream = io.StringIO()
      >>> SafeStream(stream).write("loss 0.5")
      8
      >>> stream.close()
      >>> SafeStream(stream).write("lost")
      4
    """

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes `text` and returns its length, also where nothing could be written."""
        if self._stream is not None:
            self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flushes the stream."""
        if self._stream is not None:
            self._try(self._stream.flush)

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        with contextlib.suppress(AttributeError, ValueError):
            return self._stream.isatty()
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _try(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except OSError as error:
            if error.errno in CLOSED:
                _redirect_to_devnull(self._stream)
        except ValueError:
            if not getattr(self._stream, "closed", False):
                raise


@contextlib.contextmanager
def safe_output() -> Generator[None, None, None]:
    """A context in which `sys.stdout` and `sys.stderr` are `SafeStream`s.

    A stream that is None, because its descriptor was closed before Python started, becomes
    one that writes nothing.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = safe = SafeStream(sys.stdout), SafeStream(sys.stderr)
    try:
        yield
    finally:
        for stream in safe:
            stream.flush()
        sys.stdout, sys.stderr = before


def _redirect_to_devnull(stream: Any) -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sink = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(sink, stream.fileno())
        finally:
            os.close(sink)
