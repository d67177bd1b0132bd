"""What is loaded when: nothing with the package, JAX with the primitives, and the heavy libraries
when they are used.
"""

import os
import subprocess
import sys
import textwrap

OPTIONAL = (
    "flax", "optax", "orbax", "safetensors", "wandb", "tensorflow_datasets", "array_record", "matplotlib", "tyro", "sklearn", "tqdm", "rich",
    "diffrax", "optimistix",
)  # fmt: skip

BLOCK = f"""
import importlib.abc, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {OPTIONAL!r}:
            raise ImportError(f"{{name}} is not installed here")

sys.meta_path.insert(0, Refuse())
"""


def run(program: str, blocked: bool) -> str:
    """Runs a program in an interpreter of its own and returns what it printed."""
    source = (BLOCK if blocked else "") + textwrap.dedent(program)
    done = subprocess.run(
        [sys.executable, "-c", source],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_package_alone_loads_nothing():
    loaded = run(
        "import sys, dynexit; print(*{m.split('.')[0] for m in sys.modules})", blocked=False
    ).split()
    assert "dynexit" in loaded
    assert not set(loaded) & {"jax", "numpy", *OPTIONAL}


def test_settings_are_read_without_jax():
    loaded = run("import sys, dynexit.core.settings; print(*sys.modules)", blocked=False).split()
    assert "dynexit.core.settings" in loaded and "jax" not in loaded


def test_the_primitives_need_jax_alone():
    program = """
        import jax.numpy as jnp
        import numpy as np
        import dynexit as dx
        from dynexit.core.cost import cost_of

        weights = [jnp.eye(3) * (k + 1.0) for k in range(4)]
        step = dx.stacked_step(lambda p, h: h @ p, lambda p, h: h, dx.stack(weights))
        same = dx.switched_step(lambda p, h: h @ p, lambda p, h: h, weights)
        state = jnp.array([[1.0, 0.5, 0.0], [0.1, 0.0, 0.05]])
        outputs = dx.run_all(step, state, 4)
        for rule in (
            dx.criteria.max_probability_above(0.5),
            dx.criteria.any_of(dx.criteria.entropy_below(0.5), dx.criteria.patience(2)),
            dx.criteria.not_before(2, dx.criteria.divergence_below(0.2)),
        ):
            halted = dx.run_until(same, state, 4, rule)
            np.testing.assert_array_equal(halted.exit, dx.replay(rule, outputs).exit)
        tied = dx.tied_step(lambda p, h: h * p, lambda p, h: h, jnp.float32(2.0))
        dx.run_stream(tied, state, 5, dx.criteria.max_probability_above(0.6), slots=1)
        dx.check_row_independence(step, state)
        assert cost_of(lambda s: dx.run_all(step, s, 4), state).flops > 0
        import dynexit.objectives, dynexit.calibration, dynexit.criteria, dynexit.engine
        for package in (dynexit.objectives, dynexit.calibration, dynexit.criteria, dynexit.engine):
            for name in package.__all__:
                getattr(package, name)
        print("done")
    """
    assert run(program, blocked=True).split() == ["done"]


def test_no_package_loads_what_only_some_of_its_functions_need():
    """One process: what is not loaded by all packages together is loaded by none."""
    program = """
        import importlib, sys
        apart = {"wandb", "tensorflow_datasets", "matplotlib", "diffrax"}
        packages = (
            "calibration", "core", "criteria", "data", "engine", "evaluation", "methods", "models",
            "objectives", "runs", "solvers", "training", "transforms",
        )
        for name in packages:
            package = importlib.import_module(f"dynexit.{name}")
            for public in getattr(package, "__all__", []):
                getattr(package, public)
            loaded = {m.split(".")[0] for m in sys.modules}
            assert not loaded & apart, (name, loaded & apart)
        print("done")
    """
    assert run(program, blocked=False).split() == ["done"]
