"""Every notebook runs from top to bottom in its short form, holds no outputs, and can be opened
where its badge points.
"""

import ast
import inspect
import operator
import re
from pathlib import Path

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient

import dynexit

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))
# by default the curve, the histogram and the digits by depth; of a language model the agreement
PICTURES = {"04_language_model": 1}
COLAB = "https://colab.research.google.com/github/dynexit/dynexit/blob/main/"

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(notebook) -> str:
    return "".join(
        o.text
        for cell in code_cells(notebook)
        for o in cell.outputs
        if o.output_type == "stream" and o.name == "stdout"
    )


def pictures(notebook) -> list:
    return [
        o for cell in code_cells(notebook) for o in cell.outputs if "image/png" in o.get("data", {})
    ]


def test_there_are_notebooks():
    assert NOTEBOOKS


@every_notebook
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning:jupyter_client", "ignore::DeprecationWarning:zmq"
)
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # the kernel client's sockets
def test_it_runs_in_short_form(path, tmp_path, monkeypatch):
    monkeypatch.setenv("DYNEXIT_SMOKE", "1")
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # the devices that a user has
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # most of the time is compilation
    monkeypatch.setenv("DYNEXIT_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = read(path)
    NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    ).execute()
    assert all(cell.execution_count for cell in code_cells(notebook))
    speedup = re.search(r"measured speed-up: ([\d.]+) times", printed(notebook))
    assert speedup and float(speedup[1]) > 0
    assert len(pictures(notebook)) == PICTURES.get(path.stem, 3)


@every_notebook
def test_outputs_are_stripped(path):
    for cell in code_cells(read(path)):
        assert cell.outputs == [] and cell.execution_count is None


@every_notebook
def test_the_badge_opens_this_file(path):
    first = read(path).cells[0]
    assert first.cell_type == "markdown"
    assert re.findall(re.escape(COLAB) + r"[^)\s]*", first.source) == [
        COLAB + path.relative_to(ROOT).as_posix()
    ]


@every_notebook
def test_the_install_cell_pins_versions_and_leaves_an_installed_package_alone(path):
    source = code_cells(read(path))[0].source
    lines = source.splitlines()
    installs = [k for k, line in enumerate(lines) if "pip install" in line]
    assert installs and not any("pip install" in cell.source for cell in code_cells(read(path))[1:])
    for k in installs:
        assert lines[k].startswith("    ") and lines[k - 1].startswith(
            'if importlib.util.find_spec("dynexit") is None:'
        )
        wanted = re.findall(r'"[^"]+"|\S+', lines[k].split("pip install")[1])
        wanted = [word.strip('"') for word in wanted if not word.startswith("-")]
        assert any(word.startswith("dynexit @ ") for word in wanted)
        for word in wanted:
            assert re.fullmatch(
                r"[\w-]+==[\d.]+|[\w-]+ @ git\+https://\S+@(v[\d.]+|[0-9a-f]{40})", word
            ), word


@every_notebook
def test_cells_are_thin(path):
    for cell in code_cells(read(path)):
        assert len(cell.source.splitlines()) <= 20


@every_notebook
def test_public_names_and_their_keywords_exist(path):
    """Also in the notebooks that only the slow tests run."""
    cells = [TransformerManager().transform_cell(c.source) for c in code_cells(read(path))]
    nodes = [node for cell in cells for node in ast.walk(ast.parse(cell))]
    called = [n for n in nodes if isinstance(n, ast.Call) and ast.unparse(n).startswith("dx.")]
    assert len(called) > 5
    for node in nodes:
        if isinstance(node, ast.Attribute) and re.fullmatch(r"dx(\.\w+)+", ast.unparse(node)):
            operator.attrgetter(ast.unparse(node)[3:])(dynexit)
    for call in called:
        if not re.fullmatch(r"dx(\.\w+)+", name := ast.unparse(call.func)):
            continue
        known = inspect.signature(operator.attrgetter(name[3:])(dynexit)).parameters
        assert {word.arg for word in call.keywords} - {None} <= known.keys(), name
