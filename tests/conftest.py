"""JAX made strict, and four host devices, for every test."""

import gc
import os
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
# Node ids of single cases that take seconds and whose like stay among the fast tests.
SLOW = set((ROOT / "tests" / "slow.txt").read_text().splitlines())


def pytest_collection_modifyitems(items):
    """Marks the cases named by `@pytest.mark.slow_cases(...)` and in `slow.txt` as slow, and leaves
    out refusals where the types of arguments are checked.
    """
    if os.environ.get("DYNEXIT_TEST_TYPES"):
        items[:] = [item for item in items if item.get_closest_marker("refuses") is None]
    known = {}
    for item in items:
        if item.nodeid in SLOW:
            item.add_marker(pytest.mark.slow)
        for mark in item.iter_markers("slow_cases"):
            case = item.callspec.id
            known.setdefault((item.nodeid.partition("[")[0], mark.args), set()).add(case)
            if case in mark.args:
                item.add_marker(pytest.mark.slow)
    for (test, named), cases in known.items():
        if len(cases) > 1 and (unknown := set(named) - cases):  # one case: a node id was given
            raise pytest.UsageError(f"{test} has no case {sorted(unknown)}")


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_programs():
    """Thousands of compiled programs in one process exhaust its memory maps and crash XLA; each
    test module starts afresh.
    """
    yield
    jax.clear_caches()
