"""The documentation site builds without a warning and has an entry for every public name."""

import importlib
import pkgutil
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

import dynexit

ROOT = Path(__file__).parents[2]
PACKAGES = [
    "dynexit",
    *(m.name for m in pkgutil.walk_packages(dynexit.__path__, "dynexit.") if m.ispkg),
]


@pytest.fixture(scope="module")
def entries(tmp_path_factory):
    """Names in the inventory of a site that was built here."""
    for library in ("sphinx", "myst_parser", "sphinx_book_theme"):
        pytest.importorskip(library)
    site = tmp_path_factory.mktemp("site")
    # a copy: the build writes the pages of the API beside the others
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-t", "check"]
    built = subprocess.run(
        [*command, str(ROOT / "docs"), str(site)], capture_output=True, text=True, cwd=ROOT
    )
    assert built.returncode == 0, built.stderr[-3000:]
    content = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    lines = zlib.decompress(content).decode().splitlines()
    return {line.split(" ", 1)[0] for line in lines if " py:" in line}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_has_an_entry(package, entries):
    names = getattr(importlib.import_module(package), "__all__", [])
    assert {f"{package}.{name}" for name in names} - entries == set()


def test_methods_and_fields_have_entries(entries):
    for name in ("dynexit.models.Vit.build", "dynexit.models.Vit.depth", "dynexit.Training.steps"):
        assert name in entries
