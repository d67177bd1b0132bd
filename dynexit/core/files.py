"""Paths, files that are written whole or not at all, and locks between processes.

Works on Linux, macOS and Windows. Loads no JAX.
"""

import contextlib
import os
import re
import secrets
from collections.abc import Generator
from pathlib import Path
from typing import IO, Any

_drafts: set[Path] = set()  # that are being written

SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # `C:/` of Windows has one letter


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether a path is an address such as `gs://bucket/run`; `Path` turns its `//` into `/`.

    Example:
      >>> is_url("gs://bucket/run"), is_url(Path("gs://bucket/run")), is_url("C:/runs/first")
      (True, True, False)
    """
    return SCHEME.match(os.fspath(path).replace("\\", "/")) is not None


def local(path: str | os.PathLike[str], name: str) -> Path:
    """The path, which must be of this machine's file system.

    Args:
      path: of a file or folder.
      name: what the message calls it.

    Raises:
      ValueError: an address such as `gs://bucket/run`.
    """
    if is_url(path):
        raise ValueError(
            f"`{name}` must be a path of this machine's file system, got {os.fspath(path)!r}; "
            "mount the bucket, or copy the files"
        )
    return Path(path)


@contextlib.contextmanager
def replacing(path: Path) -> Generator[Path, None, None]:
    """A new file to write in place of `path`, which is replaced when the block ends.

    A link at `path` is replaced too; the file it points to stays as it was. The new file has the
    same suffix. After an exception it is removed and `path` stays.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     with replacing(Path(folder) / "report.md") as draft:
      ...         _ = draft.write_text("done", encoding="utf-8")
      ...     (Path(folder) / "report.md").read_text(encoding="utf-8")
      'done'
    """
    draft = path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")
    draft.touch(exist_ok=False)
    _drafts.add(draft)
    try:
        yield draft
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    finally:
        _drafts.discard(draft)


def discard_drafts() -> None:
    """Removes the files that `replacing` has not finished, before the process ends at once."""
    for draft in tuple(_drafts):
        with contextlib.suppress(OSError):
            draft.unlink()


def lock(file: IO[Any], wait: bool) -> bool:
    """Locks an open, writable file for this process; the lock ends with the file or the process.

    Threads and forks of one process are not kept apart.

    Args:
      file: open for writing; its content is not touched.
      wait: wait for the process that has the lock.

    Returns:
      Whether the lock was taken. True also where neither the system nor the file system has locks.
    """
    try:
        import fcntl
    except ImportError:
        return _lock_on_windows(file, wait)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True
    return True


def _lock_on_windows(file: IO[Any], wait: bool) -> bool:
    try:
        import msvcrt
    except ImportError:
        return True
    place = file.tell()
    windows: Any = msvcrt  # its functions are known on Windows only
    file.seek(2**30)  # beyond the content, which others may then read
    try:
        while True:
            try:
                windows.locking(file.fileno(), windows.LK_LOCK if wait else windows.LK_NBLCK, 1)
            except OSError:  # LK_LOCK gives up after ten seconds
                if not wait:
                    return False
                continue
            return True
    finally:
        file.seek(place)
