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

RESULTS = "results"  # of the methods
ABLATIONS = "ablations"  # results of SPO that lacks a part, which have files and a section of their own
_FLAGS = {RESULTS: "--docs=docs", ABLATIONS: "--ablations --docs=docs"}


def marks(kind: str) -> tuple[str, str]:
    """Returns the lines between which a document has the results of a kind."""
    return tuple(f"<!-- {where}: python -m benchmarks.compare_methods {_FLAGS[kind]} -->" for where in ("begin", "end"))


def kind_of(found: Mapping[str, Any]) -> str:
    """Returns the kind of results that was found."""
    return ABLATIONS if ABLATIONS in found["entries"] else RESULTS


def write(out: Path, found: Mapping[str, Any]) -> str:
    """Writes ``results.json``, ``results.md`` and a figure for each kind of labels; returns the text.

    Results of ablations are written to ``ablations.json`` and ``ablations.md``.

    Args:
      out: folder to write to.
      found: what was found; ``entries`` holds the entries of each kind of labels, with their runs.
    """
    name = kind_of(found)
    base = found["base"]
    found = {**found, "hours": hours_of(out)}
    summaries = {labels: [summarised(entry, base) for entry in entries] for labels, entries in found["entries"].items()}
    write_json(out / f"{name}.json", finite_or_null({**found, "entries": summaries}))
    text = tables.text_of(found)
    write_text(out / f"{name}.md", text)
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
    kind = kind_of(found)
    document = check(docs, kind)
    parts = [(out / f"{kind}.md").read_text(encoding="utf-8")]
    for labels, entries in found["entries"].items():
        if entries:
            name = figure_name(labels)
            (docs / "images").mkdir(exist_ok=True)
            shutil.copyfile(out / name, docs / "images" / name)
            parts.append(f"![Every measure against the work: {labels}](images/{name})\n")
    begin, end = marks(kind)
    section = "\n".join([begin, "", *parts, end])
    write_text(docs / "results.md", _section(kind).sub(lambda _: section, document))


def check(docs: Path, kind: str = RESULTS) -> str:
    """Returns the text of ``results.md``.

    Raises:
      UserError: it has no section for results of this kind.
    """
    path = docs / "results.md"
    document = path.read_text(encoding="utf-8") if path.is_file() else ""
    if not _section(kind).search(document):
        begin, end = marks(kind)
        raise UserError(f"--docs={docs}: {path} has no section between {begin!r} and {end!r}")
    return document


def _section(kind: str) -> re.Pattern[str]:
    begin, end = marks(kind)
    return re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
