"""Lists of prompts, for training and evaluation: from a file, from the web, or the captions of preference pairs.

This source has no pairs: instead of `open_source` it has a function `prepare`, which writes ``DATA_DIR/NAME.json``. The
name is that of the file or, for captions of parquet files such as Pick-a-Pic's, of the split.
"""

import dataclasses
import glob
import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, NamedTuple
from urllib.parse import unquote, urlsplit

from spo_jax.core.errors import UserError
from spo_jax.core.files import local_path, write_text
from spo_jax.core.words import counted, size
from spo_jax.data import prompts
from spo_jax.data.preferences import parquet
from spo_jax.data.preferences.sources import ParquetOptions

_LARGEST = 64 << 20  # bytes of a list from the web; the list of the reference has 0.6 MB
_SECONDS = 60  # without an answer from the web


@dataclasses.dataclass(frozen=True)
class Options(ParquetOptions):
    """Names the list to read."""

    EXPECTED: ClassVar = "a file, a URL, a folder of parquet files, a hub id, or a file of one (owner/name/file)"


class PromptList(NamedTuple):
    """A list of prompts that has been written.

    Attributes:
      path: its file, a JSON list of strings.
      prompts: number of prompts.
      repeated: number of prompts that had occurred before in the list; a split's captions are taken once each.
      left_out: number of entries that were no prompts.
      kept: whether the file existed already, with the same prompts.
    """

    path: Path
    prompts: int
    repeated: int
    left_out: int
    kept: bool

    def __str__(self) -> str:
        """Returns the line that the command prints."""
        kept = " that were there before" if self.kept else ""
        count = counted(self.prompts, "prompt")
        counts = f"{count}{kept}, {self.repeated} of them repeated, {self.left_out} entries left out"
        return f"{self.path}: {counts}; use it as --config.prompts={self.path}"


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
    done = {}
    for name, (where, entries) in _open(options, splits, fetch).items():
        read = [prompts.prompt_of(entry) for entry in entries]
        found = [prompt for prompt in read if prompt is not None]
        if not found:
            raise UserError(f"{where} holds no prompts: expected at least one")
        left_out = len(entries) - len(found)
        if left_out > max_bad * len(entries):
            first = read.index(None) + 1
            raise UserError(
                f"{where}: {left_out} of {len(entries)} entries are no prompts (the first is entry {first}): expected "
                f"{prompts.EXPECTED}; to leave them out, raise --max-bad"
            )
        found = found[:limit] if limit else found
        path = data_dir / f"{name}.json"
        done[name] = PromptList(path, len(found), len(found) - len(set(found)), left_out, _write(path, found))
        print(done[name])
    return done


def _write(path: Path, found: list[str]) -> bool:
    """Writes a list of prompts; returns whether it was there before."""
    if path.exists():
        if prompts.load_prompts(path) != found:
            raise UserError(f"{path} exists with other prompts: delete it, or choose another --data-dir")
        return True
    write_text(path, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
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
        name, content = _download(source) if is_url else _read(options, fetch)
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


def _download(url: str) -> tuple[str, bytes]:
    """Fetches a file from the web, and returns its name and content."""
    request = urllib.request.Request(url, headers={"User-Agent": "spo_jax"})
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
            content = answer.read(_LARGEST + 1)
            expected = int(answer.headers.get("Content-Length") or len(content))
            kind = answer.headers.get_content_type()
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = error.reason if type(error) is urllib.error.URLError else error
        raise UserError(f"cannot fetch {url}: {reason}; check the address and the network") from error
    if kind == "text/html":
        raise UserError(f"{url} is a web page: expected the address of the file itself (on GitHub: of its button Raw)")
    if len(content) > _LARGEST:
        raise UserError(f"{url} has more than {size(_LARGEST)}: expected a list of prompts")
    if len(content) < expected:
        raise UserError(f"cannot fetch {url}: only {len(content)} of {expected} bytes arrived; try again")
    return PurePosixPath(unquote(urlsplit(url).path)).name, content
