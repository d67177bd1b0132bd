"""JAX made strict, and four host devices, for every test."""

import gc
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("MPLBACKEND", "agg")
# Tests check values and work, not seconds. Without XLA's expensive passes and its newer fusion code,
# programs compile in a third of the time, and the workers of a session share compiled programs.
# Tests that read the compiled program want what users get: `DYNEXIT_TEST_XLA=default`.
if os.environ.get("DYNEXIT_TEST_XLA") != "default":
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        faster = os.environ["XLA_FLAGS"] + " --xla_cpu_use_fusion_emitters=false"
        # XLA ends a process that has a flag which it does not know
        known = [sys.executable, "-c", "import jax; jax.devices()"]
        tried = subprocess.run(known, env=os.environ | {"XLA_FLAGS": faster}, capture_output=True)
        if tried.returncode == 0:
            os.environ["XLA_FLAGS"] = faster
        # removed when the process that made it ends
        programs = tempfile.TemporaryDirectory(prefix="dynexit-programs-")
        os.environ |= {
            "JAX_COMPILATION_CACHE_DIR": programs.name,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }

import jax
import pytest

# Checks the types and shapes of every annotated argument and result, at each call; an int is a
# float, as to type checkers.
if os.environ.get("DYNEXIT_TEST_TYPES"):
    from jaxtyping import install_import_hook

    conf = "beartype.BeartypeConf(is_pep484_tower=True)"
    install_import_hook("dynexit", f"beartype.beartype(conf={conf})")

# Tracing makes many objects, and a worker holds millions.
gc.freeze()
gc.set_threshold(50_000, 20, 20)

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


ROOT = Path(__file__).parents[1]
# Tests that CI does not run, whose like stay among the fast tests: a line is a node id, that of a
# test without its cases, or a pattern in which `*` stands for anything.
SLOW = (ROOT / "tests" / "slow.txt").read_text().splitlines()
FILES = pytest.StashKey[set[str]]()  # that were collected
NAMING = pytest.StashKey[set[str]]()  # lines of `slow.txt` that name a collected test


def named(line: str, node: str) -> bool:
    """Whether a line of `slow.txt` names a test."""
    if "*" not in line:
        return line in (node, node.partition("[")[0])
    return re.fullmatch(".*".join(map(re.escape, line.split("*"))), node) is not None


def pytest_collection_modifyitems(config, items):
    """Marks what `slow.txt` names as slow, and leaves out refusals where the types of arguments are
    checked.
    """
    lines: dict[str, list[str]] = {}
    for line in SLOW:
        lines.setdefault(line.partition("::")[0], []).append(line)
    config.stash[FILES], config.stash[NAMING] = set(), set()
    for item in items:
        file = item.nodeid.partition("::")[0]
        config.stash[FILES].add(file)
        if found := {line for line in lines.get(file, ()) if named(line, item.nodeid)}:
            config.stash[NAMING] |= found
            item.add_marker(pytest.mark.slow)
    if os.environ.get("DYNEXIT_TEST_TYPES"):
        items[:] = [item for item in items if item.get_closest_marker("refuses") is None]


@pytest.fixture
def idle_lines(request) -> list[str]:
    """Lines of `slow.txt` that name no test of the files that were collected whole."""
    if any("::" in word for word in request.config.args):
        return []
    files, naming = (request.config.stash[key] for key in (FILES, NAMING))
    return [line for line in SLOW if line.partition("::")[0] in files and line not in naming]


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_programs():
    """Thousands of compiled programs in one process exhaust its memory maps and crash XLA; each
    test module starts afresh.
    """
    yield
    jax.clear_caches()
