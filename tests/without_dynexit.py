"""Reads exported files in a process that cannot import dynexit."""

import os
import pickle
import subprocess
import sys

import jax
import numpy as np

READER = """
import pickle, sys

class NoDynexit:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "dynexit":
            raise ImportError("dynexit is not installed here")

sys.meta_path.insert(0, NoDynexit())
try:
    import dynexit
except ImportError:
    pass
else:
    raise SystemExit("the test means to run without dynexit")

import jax, jax.export
import numpy as np

with open("calls.pickle", "rb") as file:
    calls = pickle.load(file)
results, programs = [], {}
for name, passed in calls:
    if name not in programs:
        with open(name, "rb") as file:
            programs[name] = jax.jit(jax.export.deserialize(bytearray(file.read())).call)
    results.append(jax.tree.map(np.asarray, programs[name](*passed)))
assert not [name for name in sys.modules if name.split(".")[0] == "dynexit"]
with open("results.pickle", "wb") as file:
    pickle.dump(results, file)
"""


def read_without_dynexit(folder, calls):
    """What a process without dynexit gets of the files in `folder`: a result for each `(name,
    arguments)`.
    """
    (folder / "calls.pickle").write_bytes(
        pickle.dumps([(name, jax.tree.map(np.asarray, passed)) for name, passed in calls])
    )
    (folder / "reader.py").write_text(READER)
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "XLA_FLAGS")
    }
    ran = subprocess.run(
        [sys.executable, "reader.py"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert ran.returncode == 0, ran.stderr
    return pickle.loads((folder / "results.pickle").read_bytes())
