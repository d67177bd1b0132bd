"""The toy experiment, and one compilation of it for all tests of training."""

import importlib.util
from pathlib import Path

import jax
import pytest

TOY = Path(__file__).with_name("toy_experiment.py")


@pytest.fixture(scope="session")
def toy():
    spec = importlib.util.spec_from_file_location("toy_experiment", TOY)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="package", autouse=True)
def compile_once(tmp_path_factory):
    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    )
    before = {name: getattr(jax.config, name) for name in names}
    for name, value in zip(names, (str(tmp_path_factory.mktemp("compiled")), 0.0, -1), strict=True):
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
