"""Lists of prompts, for training and evaluation: from a file, from the web, or the captions of preference pairs.

This source has no pairs: instead of `open_source` it has a function `prepare`, which writes ``DATA_DIR/NAME.json``. The
name is that of the file or, for captions of parquet files such as Pick-a-Pic's, of the split; the list of an evaluation
protocol has the name that the protocol gives it. Prompts that belong to groups, such as the styles of HPSv2's
benchmark, are written as objects with their group, all others as strings.
"""

import dataclasses
import glob
import json
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, NamedTuple

from absl import logging

from spo_jax.core.config import Settings, setting
from spo_jax.core.errors import UserError
from spo_jax.core.files import local_path, write_text
from spo_jax.core.words import counted
from spo_jax.data import prompts
from spo_jax.data.preferences import parquet
from spo_jax.data.preferences.sources import ParquetOptions
from spo_jax.data.protocol import load_protocol
from spo_jax.data.web import download


@dataclasses.dataclass(frozen=True)
class Options(ParquetOptions):
    """Names the list to read."""

    EXPECTED: ClassVar = "a file, a URL, a folder of parquet files, a hub id, or a file of one (owner/name/file)"

    protocol: str = setting("", "Fetch the prompts of this evaluation protocol (prompts; --source: a copy of them).")

    def __post_init__(self) -> None:
        Settings.__post_init__(self)
        self.require(bool(self.source or self.protocol), "source", f"{self.EXPECTED}, or --protocol=NAME")


class PromptList(NamedTuple):
    """A list of prompts that has been written.

    Attributes:
      path: its file, a JSON list of strings, or of objects with the prompt and its group.
      prompts: number of prompts.
      repeated: number of prompts that had occurred before in the list; a split's captions are taken once each.
      left_out: number of entries that were no prompts.
      kept: whether the file existed already, with the same prompts.
      protocol: the protocol whose list it is; empty for any other list.
    """

    path: Path
    prompts: int
    repeated: int
    left_out: int
    kept: bool
    protocol: str = ""

    def __str__(self) -> str:
        """Returns the line that the command prints."""
        kept = " that were there before" if self.kept else ""
        count = counted(self.prompts, "prompt")
        counts = f"{count}{kept}, {self.repeated} of them repeated, {self.left_out} entries left out"
        use = (
            f"python -m spo_jax.evaluate --protocol={self.protocol}"
            if self.protocol
            else f"--config.prompts={self.path}"
        )
        return f"{self.path}: {counts}; {'for' if self.protocol else 'use it as'} {use}"


class _Rows(NamedTuple):
    """The prompts of one source with their groups, and how many of its entries were none."""

    rows: list[tuple[str, str]]
    left_out: int


def prepare(
    options: Options, data_dir: Path, splits: Sequence[str], max_bad: float, limit: int, fetch: Callable[..., Path]
) -> dict[str, PromptList]:
    """Writes a list of prompts, or a list for each split of preference pairs.

    Args:
      options: where the prompts are.
      data_dir: folder for the lists; it is created if it is missing.
      splits: splits whose captions are taken; empty for a list in one file.
      max_bad: share of the entries that may be no prompts.
      limit: take only the first ``limit`` prompts (0: all).
      fetch: finds a folder or hub id, as `spo_jax.weights.hub.resolve`.

    Returns:
      The lists by name.

    Raises:
      UserError: the source cannot be found, fetched or read; too many entries are no prompts, or all of them; or the
        file exists with other prompts, or cannot be written.
    """
    if options.protocol:
        lists = _of_protocol(options, splits, max_bad, fetch)
    else:
        opened = _open(options, splits, fetch)
        lists = {name: _checked(where, entries, max_bad) for name, (where, entries) in opened.items()}
    done = {}
    for name, (rows, left_out) in lists.items():
        rows = rows[:limit] if limit else rows
        path = data_dir / f"{name}.json"
        repeated = len(rows) - len({prompt for prompt, _ in rows})
        done[name] = PromptList(path, len(rows), repeated, left_out, _write(path, rows), options.protocol)
        print(done[name])
    return done


def _of_protocol(
    options: Options, splits: Sequence[str], max_bad: float, fetch: Callable[..., Path]
) -> dict[str, _Rows]:  # fmt: skip
    """Returns the list of a protocol, whose sources may be several, each of them a group."""
    protocol = load_protocol(options.protocol)
    if splits:
        raise UserError(f"--splits={','.join(splits)}: --protocol={options.protocol} names the split itself")
    if protocol.fetch is None:
        raise UserError(f"--protocol={options.protocol}: its prompts are {protocol.prompts}, which need no fetching")
    rows, left_out = [], 0
    for group, source in protocol.fetch.sources.items():
        part = dataclasses.replace(options, protocol="", source=_copy_of(source, options.source) or source)
        opened = _open(part, [protocol.fetch.split] if protocol.fetch.split else [], fetch)
        ((where, entries),) = opened.values()
        found = _checked(where, entries, max_bad, protocol.fetch.group)
        rows += [(prompt, group or own) for prompt, own in found.rows]
        left_out += found.left_out
    if protocol.count not in (0, len(rows)):
        logging.warning("protocol %s has %d prompts, and its source now %d", protocol.name, protocol.count, len(rows))
    return {PurePosixPath(protocol.prompts).stem: _Rows(rows, left_out)}


def _copy_of(source: str, place: str) -> str:
    """Returns where a user's copy of a source is: the place itself, or the file of the source's name below it."""
    name = source if source.startswith("http") else "/".join(source.split("/")[2:])
    folder = local_path(place) if place else None
    if not name or folder is None or not folder.is_dir():
        return place
    inside = folder / name
    return str(inside if not source.startswith("http") and inside.exists() else folder / PurePosixPath(name).name)


def _checked(where: str, entries: Sequence[Any], max_bad: float, group: str = prompts.GROUP) -> _Rows:
    """Returns the prompts among the entries of a list, with their groups.

    Args:
      where: the list, for messages.
      entries: strings, objects, and what is no prompt.
      max_bad: share of the entries that may be no prompts.
      group: what the group is called in objects.
    """
    read = [prompts.prompt_of(entry) for entry in entries]
    rows = [(p, prompts.group_of(e, group)) for p, e in zip(read, entries, strict=True) if p is not None]
    if not rows:
        raise UserError(f"{where} holds no prompts: expected at least one")
    left_out = len(entries) - len(rows)
    if left_out > max_bad * len(entries):
        first = read.index(None) + 1
        raise UserError(
            f"{where}: {left_out} of {len(entries)} entries are no prompts (the first is entry {first}): expected "
            f"{prompts.EXPECTED}; to leave them out, raise --max-bad"
        )
    return _Rows(rows, left_out)


def _write(path: Path, rows: Sequence[tuple[str, str]]) -> bool:
    """Writes prompts with their groups; returns whether they were there before."""
    if path.exists():
        there = zip(*prompts.load_grouped_prompts(path), strict=True)
        if list(there) != list(rows):
            raise UserError(f"{path} exists with other prompts: delete it, or choose another --data-dir")
        return True
    written = [{"prompt": prompt, prompts.GROUP: group} if group else prompt for prompt, group in rows]
    write_text(path, json.dumps(written, indent=1, ensure_ascii=False) + "\n")
    return False


def _open(options: Options, splits: Sequence[str], fetch: Callable[..., Path]) -> dict[str, tuple[str, list[Any]]]:
    """Returns the entries by name of the list, each with the place where they are, for messages."""
    source = options.source
    is_url = source.startswith(("http://", "https://"))
    local = Path(source) if is_url else local_path(source)
    if options.revision and (is_url or local.exists()):
        raise UserError(f"--revision={options.revision} is for hub ids, and --source={source} is none")
    if not is_url and not local.exists() and not _may_be_on_hub(source):
        raise UserError(
            f"no such file or folder: {source} (a data set on the hub is owner/name, and a list in it is "
            f"owner/name/file, which ends in {', '.join(prompts.SUFFIXES)})"
        )
    if is_url or local.is_file() or (source.count("/") > 1 and not local.exists()):
        if splits:
            raise UserError(f"--splits={','.join(splits)}: --source={source} is one file, which has no splits")
        name, content = download(source) if is_url else _read(options, fetch)
        return {PurePosixPath(name).stem: (source, prompts.parse_entries(content, name))}
    if not splits:
        raise UserError(
            f"--source={source} is not a file: for the captions of preference pairs in a folder or hub id, name their "
            "splits, such as --splits=validation_unique"
        )
    parquet.import_pyarrow()  # before anything is fetched
    folder = _fetch(fetch, source, options, parquet.patterns(splits))
    return {split: (f"split {split} of {source}", _captions(folder, split, options)) for split in splits}


def _may_be_on_hub(source: str) -> bool:
    """Reports whether a path that does not exist can be a hub id, or a list of prompts in a repository there."""
    owner, *rest = source.split("/")
    is_list = PurePosixPath(source).suffix in prompts.SUFFIXES
    is_path = source.startswith(("/", ".", "~")) or Path(owner).is_dir()
    return not is_path and len(rest) > 0 and is_list == (len(rest) > 1)


def _read(options: Options, fetch: Callable[..., Path]) -> tuple[str, bytes]:
    """Returns name and content of a local file, or of ``owner/name/file`` on the hub."""
    path = local_path(options.source)
    if not path.exists():
        owner, name, file = options.source.split("/", 2)
        path = _fetch(fetch, f"{owner}/{name}", options, [glob.escape(file)]) / file
        if not path.is_file():
            raise UserError(f"--source={options.source}: there is no such file here, and no {file} in {owner}/{name}")
    try:
        return path.name, path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read prompts from {path}: {error.strerror or error}") from error


def _fetch(fetch: Callable[..., Path], repository: str, options: Options, patterns: list[str]) -> Path:
    try:
        return fetch(repository, options.revision or None, allow_patterns=patterns, repo_type="dataset")
    except UserError as error:
        raise UserError(f"--source={options.source} is not here: {error}") from error


def _captions(folder: Path, split: str, options: Options) -> list[Any]:
    """Returns the captions of a split's pairs in their order, each of them once."""
    files = parquet.files_by_split(folder)
    if split not in files:
        listed = ", ".join(files) or "none"
        raise UserError(f"--splits: no parquet files of split {split} in --source={options.source}, only of: {listed}")
    parquet.check_complete(split, files[split], options.partial)
    rows = (row for path in files[split] for row in parquet.rows(path, ["caption"]))
    return list(dict.fromkeys(row["caption"] if isinstance(row["caption"], str) else None for row in rows))
