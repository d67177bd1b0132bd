"""The job folder: the experiment with its neighbours, and the pinned version of dynexit."""

import hashlib
import importlib.metadata
import json
import platform
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dynexit.runs.experiment_file import SettingsError, digest, neighbours
from dynexit.runs.launch.plan import SOURCE, File
from dynexit.runs.run_folder import commit, versions

CACHE = "compilation_cache"
LEFT_OUT = ("python", "dynexit", "jax", "jaxlib")  # written by hand, or pinned by jax


class Job(NamedTuple):
    """What is launched.

    Attributes:
      experiment: the experiment file.
      words: of `dynexit train`, after the file: settings, `--smoke`.
      name: of the job, of its run folder and of its job folder `NAME.job`.
      folder: folder on this machine that holds both.
    """

    experiment: Path
    words: tuple[str, ...]
    name: str
    folder: Path

    @property
    def files(self) -> Path:
        """The job folder on this machine."""
        return self.folder / f"{self.name}.job"

    @property
    def run(self) -> Path:
        """The run folder on this machine."""
        return self.folder / self.name


def make_job(
    experiment: Path, words: Sequence[str] = (), name: str | None = None, folder: str = "runs"
) -> Job:
    """A job; without a name it gets the file's with a hash of the experiment and the words.

    Raises:
      SettingsError: the experiment file or a neighbour is no Python.
    """
    if name is None:
        text = "\0".join((digest(experiment), *words))
        stem = re.sub(r"[^a-z0-9]+", "-", experiment.stem.lower()).strip("-")[:30]
        start = stem if stem[:1].isalpha() else f"run-{stem}"
        name = f"{start.rstrip('-')}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
    return Job(experiment, tuple(words), name, Path(folder))


def pack(job: Job, devices: str) -> tuple[File, ...]:
    """The files of the job folder that every target has.

    Args:
      job: the job.
      devices: extra of jax that the hosts need: "tpu", "cuda12", "" for none.
    """
    base = job.experiment.resolve().parent
    copies = [job.experiment.resolve(), *sorted(neighbours(job.experiment))]
    experiment = [
        File(job.files / "experiment" / path.relative_to(base), path.read_bytes(), path)
        for path in copies
    ]
    record = {
        "name": job.name,
        "experiment": job.experiment.name,
        "sha256": digest(job.experiment),
        "words": list(job.words),
        "dynexit": version(),
    }
    return (
        *experiment,
        *source(job.files / SOURCE),
        text(job.files / "requirements.txt", "\n".join(requirements(devices)) + "\n"),
        text(job.files / "job.json", json.dumps(record, indent=2) + "\n"),
    )


def text(path: Path, content: str) -> File:
    """A composed file."""
    return File(path, content.encode())


def train_words(job: Job, run: str, cache: str, file: str | None = None) -> list[str]:
    """`train FILE ... --run RUN --cache CACHE`, relative to the job folder."""
    file = file or f"experiment/{job.experiment.name}"
    return ["train", file, *job.words, "--run", run, "--cache", cache]


def checkout() -> Path | None:
    """The development tree that dynexit is imported from; None for an installed release."""
    tree = Path(__file__).resolve().parents[3]
    return tree if (tree / "pyproject.toml").is_file() else None


def version() -> str:
    """The pinned version in words: a release, or a commit of a checkout."""
    tree = checkout()
    if tree is None:
        return _requirement()
    return f"commit {commit(tree) or 'unknown'}"


def source(folder: Path) -> tuple[File, ...]:
    """Of a development tree, the files from which pip installs it; of a release, none."""
    tree = checkout()
    if tree is None:
        return ()
    own = sorted(p for p in (tree / "dynexit").rglob("*") if p.suffix in (".py", ".typed"))
    paths = [*(tree / name for name in ("pyproject.toml", "README.md", "LICENSE")), *own]
    return tuple(
        File(folder / path.relative_to(tree), path.read_bytes(), path)
        for path in paths
        if path.is_file()
    )


def requirements(devices: str) -> list[str]:
    """Lines for pip: dynexit as it is here, JAX for the devices, and the versions of this machine.

    Example:
      >>> [line for line in requirements("tpu") if line.startswith("jax")]  # doctest: +ELLIPSIS
      ['jax[tpu]==...']
    """
    found = versions()
    extra = f"[{devices}]" if devices else ""
    pins = [f"{name}=={v}" for name, v in found.items() if name not in LEFT_OUT]
    return [_requirement(), *([f"jax{extra}=={found['jax']}"] if "jax" in found else []), *pins]


def python_version() -> str:
    """`3.12`: hosts get the Python of this machine."""
    return ".".join(platform.python_version_tuple()[:2])


def _requirement() -> str:
    if checkout() is not None:
        return f"./{SOURCE}"
    installed = importlib.metadata.distribution("dynexit")
    origin = installed.read_text("direct_url.json")
    if origin is None:
        return f"dynexit=={installed.version}"
    found = json.loads(origin)
    if "vcs_info" not in found:
        raise SettingsError(
            f"dynexit was installed from {found.get('url')}, which hosts cannot read; install a "
            "release, or run the command from a checkout"
        )
    return f"dynexit @ git+{found['url']}@{found['vcs_info']['commit_id']}"
