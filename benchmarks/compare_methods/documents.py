"""Where the results go: JSON with everything, the text, the figures, and on request the section of the documents."""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.compare_methods import figures, tables
from benchmarks.compare_methods.results import summarised
from spo_jax.core.errors import UserError
from spo_jax.core.files import read_json_object, write_json, write_text
from spo_jax.core.json_text import finite_or_null
from spo_jax.core.run_files import SUMMARY

BEGIN = "<!-- begin: python -m benchmarks.compare_methods --docs=docs -->"
END = "<!-- end: python -m benchmarks.compare_methods -->"
SECTION = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)


def write(out: Path, found: Mapping[str, Any]) -> str:
    """Writes ``results.json``, ``results.md`` and a figure for each kind of labels; returns the text.

    Args:
      out: folder to write to.
      found: what was found; ``entries`` holds the entries of each kind of labels, with their runs.
    """
    base = found["base"]
    found = {**found, "hours": hours_of(out)}
    summaries = {labels: [summarised(entry, base) for entry in entries] for labels, entries in found["entries"].items()}
    write_json(out / "results.json", finite_or_null({**found, "entries": summaries}))
    text = tables.text_of(found)
    write_text(out / "results.md", text)
    for labels, entries in found["entries"].items():
        if entries:
            figures.draw(entries, base, out / figure_name(labels))
    return text


def hours_of(out: Path) -> float:
    """Returns the hours that runs and measurements in a folder took; of a resumed run, its last part counts."""
    files = [path for kind in ("points", "costs") for path in (out / kind).glob("*.json")]
    seconds = [read_json_object(path)["seconds"] for path in files]
    seconds += [read_json_object(path)["wall_seconds"] for path in out.glob(f"runs/*/{SUMMARY}")]
    return round(sum(seconds) / 3600, 2)


def figure_name(labels: str) -> str:
    """Returns the name of the figure of some labels."""
    return f"compare_methods_{labels}.svg"


def into_documents(out: Path, docs: Path, found: Mapping[str, Any]) -> None:
    """Puts text and figures into the section of ``results.md`` that is between the two marks.

    Raises:
      UserError: the file has no such section.
    """
    document = check(docs)
    parts = [(out / "results.md").read_text(encoding="utf-8")]
    for labels, entries in found["entries"].items():
        if entries:
            name = figure_name(labels)
            (docs / "images").mkdir(exist_ok=True)
            shutil.copyfile(out / name, docs / "images" / name)
            parts.append(f"![Every measure against the work: {labels}](images/{name})\n")
    section = "\n".join([BEGIN, "", *parts, END])
    write_text(docs / "results.md", SECTION.sub(lambda _: section, document))


def check(docs: Path) -> str:
    """Returns the text of ``results.md``.

    Raises:
      UserError: it has no section for the results.
    """
    path = docs / "results.md"
    document = path.read_text(encoding="utf-8") if path.is_file() else ""
    if not SECTION.search(document):
        raise UserError(f"--docs={docs}: {path} has no section between {BEGIN!r} and {END!r}")
    return document
