"""A child process that responds to lines with lines of JSON."""

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any


class Child:
    """A Python module in a child process.

    The child does not preallocate GPU memory, so it can share the GPU with its parent.

    Args:
      module: run as `python -m module`.
      arguments: its command line.
      flags: appended to XLA_FLAGS.
    """

    def __init__(self, module: str, arguments: Sequence[str], flags: str) -> None:
        environment = dict(os.environ, XLA_PYTHON_CLIENT_PREALLOCATE="false")
        environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {flags}".strip()
        self._messages = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._messages,
            env=environment,
        )
        self._pending = b""

    def request(self, line: str, seconds: float) -> Any:
        """Sends a line and returns the response.

        Raises:
          RuntimeError: as `read`.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise RuntimeError(f"ended: {self._last_messages()}") from error
        return self.read(seconds)

    def read(self, seconds: float) -> Any:
        """Returns the next line of the child that is a JSON object.

        Raises:
          RuntimeError: the child ended, or did not respond within `seconds`.
        """
        assert self._process.stdout is not None
        stream, until = self._process.stdout.fileno(), time.monotonic() + seconds
        while True:
            while b"\n" in self._pending:
                line, self._pending = self._pending.split(b"\n", 1)
                if line.startswith(b"{"):
                    return json.loads(line)
            if not select.select([stream], [], [], max(until - time.monotonic(), 0.0))[0]:
                raise RuntimeError(f"no response within {seconds:.0f} s: {self._last_messages()}")
            if not (more := os.read(stream, 1 << 16)):
                raise RuntimeError(f"ended: {self._last_messages()}")
            self._pending += more

    def close(self) -> None:
        """Ends the child."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._messages):
            try:
                if stream is not None:
                    stream.close()
            except OSError:  # unwritten data for a process that ended
                pass

    def _last_messages(self) -> str:
        self._messages.seek(0)
        return self._messages.read().decode(errors="replace")[-500:].strip()
