"""Compiled programs kept on disk, so that a second start does not compile again."""

import os
from pathlib import Path

VARIABLE = "JAX_COMPILATION_CACHE_DIR"


def default_cache() -> Path:
    """`dynexit/programs` of the user's cache folder: `$XDG_CACHE_HOME`, or `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dynexit/programs"


def use_cache(folder: Path | None = None) -> Path:
    """Makes JAX keep compiled programs in a folder. Call it before the first compilation.

    A folder that JAX is configured with already, such as `JAX_COMPILATION_CACHE_DIR`, stays.
    JAX's key of a program covers the program, the compiler, its flags and the kind of the
    devices, so several experiments, versions and machines may share one folder. Whoever can
    write there can make this process execute their code.

    Args:
      folder: where; None for `default_cache()`.

    Returns:
      The folder in use.

    Example:
      >>> use_cache(Path("programs")).name == "programs"  # doctest: +SKIP
      True
    """
    import jax

    configured = getattr(jax.config, "jax_compilation_cache_dir")  # noqa: B009
    if configured:
        return Path(configured)
    folder = default_cache() if folder is None else Path(folder)
    jax.config.update("jax_compilation_cache_dir", str(folder.resolve()))
    return folder
