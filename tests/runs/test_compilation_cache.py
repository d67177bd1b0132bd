"""The folder of compiled programs: which one is used, and that a second start compiles nothing."""

import os
import subprocess
import sys
from pathlib import Path

from dynexit.cli.main import main
from dynexit.runs.compilation_cache import default_cache, use_cache

PROGRAM = """
import os, jax, jax.numpy as jnp
from pathlib import Path
from dynexit.runs.compilation_cache import use_cache
print(use_cache(Path(os.environ["FOLDER"])))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_log_compiles", True)
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))
print(jax.jit(lambda x: jnp.sin(x) @ x.T)(jnp.ones((3, 3)))[0, 0])
print(sum("cache_hits" in name for name in hits), sum("cache_misses" in name for name in hits))
"""


def run(folder, **environment):
    cleared = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        env={**cleared, "JAX_PLATFORMS": "cpu", "FOLDER": str(folder), **environment},
    )
    assert done.returncode == 0, done.stderr
    used, value, counts = done.stdout.split("\n")[:3]
    return Path(used), value, tuple(map(int, counts.split()))


def test_a_second_start_loads_the_programs_of_the_first(tmp_path):
    used, value, (hits, misses) = run(tmp_path / "cache")
    assert used == tmp_path / "cache" and hits == 0 and misses > 0
    assert run(tmp_path / "cache") == (used, value, (misses, 0))


def test_the_folder_of_the_environment_stays(tmp_path):
    used, _, _ = run(tmp_path / "cache", JAX_COMPILATION_CACHE_DIR=str(tmp_path / "mine"))
    assert used == tmp_path / "mine" and not (tmp_path / "cache").exists()


def test_the_default_is_the_users_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "dynexit" / "programs"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache() == tmp_path / ".cache" / "dynexit" / "programs"


def test_a_configured_folder_is_not_changed(tmp_path):
    import jax

    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    try:
        assert use_cache(tmp_path / "other") == tmp_path / "mine"
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_a_cache_inside_a_run_folder_is_refused(tmp_path, monkeypatch, capsys):
    """A run folder is data; programs of the cache are executed."""
    monkeypatch.chdir(tmp_path)
    experiment = Path(__file__).parents[2] / "experiments" / "digits_vit.py"
    for cache in ("run/cache", "run", "./run/../run/deeper/cache"):
        assert main(["train", str(experiment), "--run", "run", "--cache", cache]) == 2
        assert "--cache" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
