"""Gives all notebooks the form they have in git: ``python notebooks/refresh.py``.

The first cell gets its badge, the second the source of `install.py`; outputs, execution counts and the metadata of
editors are removed, and cells without an id get one. What authors write is left alone.
"""

import itertools
import json
import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
COLAB = "https://colab.research.google.com"
BADGE = re.compile(r"\[!\[[^\]]*\]\([^)]*\)\]\([^)]*\)\n*")
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def repository() -> str:
    """Returns the address of the repository, which setup.py decides."""
    return re.search(r'url="(.+?)"', (HERE.parent / "setup.py").read_text(encoding="utf-8"))[1]


def badge(name: str) -> str:
    """Returns the Markdown of the badge that opens the notebook ``name`` in Colab."""
    path = repository().removeprefix("https://github.com/")
    return f"[![Open in Colab]({COLAB}/assets/colab-badge.svg)]({COLAB}/github/{path}/blob/main/notebooks/{name}.ipynb)"


def refreshed(name: str, notebook: dict[str, Any]) -> dict[str, Any]:
    """Returns a notebook in the form for git.

    Args:
      name: name of the notebook, without its ending.
      notebook: the content of its file. Its first cell is Markdown and begins with the title; its second one is the
        cell that installs, whatever it holds.
    """
    title, install, *rest = notebook["cells"]
    heading, _, text = BADGE.sub("", _text(title)).partition("\n")
    title = {**title, "source": f"{heading}\n\n{badge(name)}\n\n{text.strip()}"}
    code = (HERE / "install.py").read_text(encoding="utf-8").rstrip("\n")
    install = {"id": "install", "cell_type": "code", "source": code, "metadata": {"cellView": "form"}}
    cells = [title, install, *rest]
    free = (f"cell-{number}" for number in itertools.count() if f"cell-{number}" not in {c.get("id") for c in cells})
    colab = {key: notebook["metadata"][key] for key in ("accelerator", "colab") if key in notebook["metadata"]}
    return {
        "cells": [_cell(cell, cell.get("id") or next(free)) for cell in cells],
        "metadata": {**colab, **METADATA},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def _cell(cell: dict[str, Any], name: str) -> dict[str, Any]:
    kept = {key: value for key, value in cell.get("metadata", {}).items() if key in ("cellView", "tags")}
    whole = {"cell_type": cell["cell_type"], "id": name, "metadata": kept}
    if cell["cell_type"] == "code":
        whole |= {"execution_count": None, "outputs": []}
    return {**whole, "source": _text(cell).rstrip("\n").splitlines(keepends=True)}


def _text(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def as_text(notebook: dict[str, Any]) -> str:
    """Returns the text of a notebook's file."""
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    """Rewrites the notebooks that are not as they should be."""
    for file in sorted(HERE.glob("*.ipynb")):
        old = file.read_text(encoding="utf-8")
        new = as_text(refreshed(file.stem, json.loads(old)))
        if new != old:
            file.write_text(new, encoding="utf-8")
            print(f"refreshed {file.name}")


if __name__ == "__main__":
    sys.exit(main())
