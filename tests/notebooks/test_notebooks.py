"""The notebooks: one form, no outputs, public names alone, and every cell runs from top to bottom on the toy."""

import ast
import json
import os
import re
from pathlib import Path

import nbclient
import nbformat
import pytest

import spo_jax
from notebooks import refresh
from tests.support.commands import ROOT

FOLDER = ROOT / "notebooks"
CACHE = str(ROOT / ".pytest_cache" / "jax")  # as for all tests, of which a kernel knows nothing
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
QUICK = "inside_the_resampler"  # the one that takes least; the others, which train, are marked slow
RUN = [pytest.param(file, id=file.stem, marks=() if file.stem == QUICK else pytest.mark.slow) for file in NOTEBOOKS]
every_notebook = pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)


def read(file: Path) -> dict:
    return json.loads(file.read_text(encoding="utf-8"))


def code_cells(notebook: dict) -> list[str]:
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def python_of(source: str) -> ast.Module:
    """Parses a cell; lines for the shell and for IPython are left out."""
    return ast.parse(re.sub(r"^(\s*)[!%].*$", r"\1pass", source, flags=re.MULTILINE))


def not_public(source: str) -> list[str]:
    """Returns what a cell takes from the package that is no public name of it."""
    found = []
    for node in ast.walk(python_of(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "spo_jax":
            found += [] if node.attr in spo_jax.__all__ else [f"spo_jax.{node.attr}"]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "spo_jax":
            found.append(f"from {node.module} import …")
        elif isinstance(node, ast.Import):
            found += [f"import {name.name}" for name in node.names if name.name.startswith("spo_jax.")]
    return found


@every_notebook
def test_a_notebook_is_as_refreshing_it_leaves_it(file):
    """No outputs, no counts, the badge, the cell that installs, ids: one form, which one command restores."""
    text = file.read_text(encoding="utf-8")
    assert text == refresh.as_text(refresh.refreshed(file.stem, json.loads(text))), "run: python notebooks/refresh.py"
    nbformat.validate(nbformat.reads(text, 4))


@every_notebook
def test_a_notebook_says_what_one_learns_and_how_long_it_takes(file):
    title, _, settings = read(file)["cells"][:3]
    text = "".join(title["source"])
    assert text.startswith("# ") and re.search(r"\d+ (to \d+ )?(minutes?|hours?)", text)
    assert f"/notebooks/{file.name})" in text
    assert 'MODEL = "toy"' in "".join(settings["source"])


@every_notebook
def test_a_notebook_uses_public_names_only(file):
    assert [name for source in code_cells(read(file)) for name in not_public(source)] == []


def test_a_name_that_is_not_public_is_found():
    source = "import spo_jax.run\nfrom spo_jax.core import files\nspo_jax.trian()\nspo_jax.train()\n!ls\n"
    assert not_public(source) == ["import spo_jax.run", "from spo_jax.core import …", "spo_jax.trian"]


def test_refreshing_takes_away_what_running_leaves():
    file = FOLDER / f"{QUICK}.ipynb"
    notebook = read(file)
    clean = refresh.as_text(notebook)
    for number, cell in enumerate(notebook["cells"]):
        cell["metadata"] = {"executionInfo": {"user": "me"}}
        if cell["cell_type"] == "code":
            cell |= {"execution_count": number, "outputs": [{"output_type": "stream", "name": "stdout", "text": ["a"]}]}
    notebook["metadata"]["colab"] = {"provenance": []}
    notebook["cells"][1]["source"] = ["print('another')"]
    refreshed = refresh.refreshed(QUICK, notebook)
    refreshed["metadata"].pop("colab")
    assert refresh.as_text(refreshed) == clean


def test_all_notebooks_are_listed_with_their_badges():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert [file.stem for file in NOTEBOOKS if refresh.badge(file.stem) not in text] == []


@pytest.mark.parametrize(
    ("saved", "found"),
    [("notebooks/votes/preferences", "votes/preferences"), ("votes/preferences", "../votes/preferences")]
    + [("votes/comparison", "votes/simulated")],
)
def test_votes_of_the_page_are_found_here_and_in_the_folder_above(tmp_path, monkeypatch, saved, found):
    (tmp_path / saved).mkdir(parents=True)
    (tmp_path / "notebooks").mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / "notebooks")
    settings = code_cells(read(FOLDER / "your_own_preferences.ipynb"))[1]
    names: dict = {}
    exec(compile(python_of(settings), "settings", "exec"), names)
    assert names["VOTES"] == Path(found)
    assert names["JUDGE"].endswith("_simulated") == (found == "votes/simulated")


@pytest.mark.parametrize("file", RUN)
def test_a_notebook_runs_from_top_to_bottom(file, tmp_path):
    """As on a machine of somebody else: in an empty folder, with sizes that are as small as they can be."""
    environment = {"SPO_JAX_QUICK": "1", "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"}
    environment |= {"JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR", CACHE)}
    environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    client = nbclient.NotebookClient(
        nbformat.read(file, 4), timeout=600, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute(env=os.environ | environment)
    shown = [output for cell in client.nb.cells for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in shown)
    assert not any("IProgress" in output.get("text", "") for output in shown)  # a warning where widgets are missing
