"""Prepares one split of preference pairs: checks the rows, writes them aside, reads them back, then names the split."""

import contextlib
import hashlib
import io
import itertools
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from spo_jax.core.errors import UserError
from spo_jax.core.files import lock, read_json_object, write_json
from spo_jax.core.progress import bar
from spo_jax.data.preferences.check import Pair, RawPair, Source, check
from spo_jax.data.preferences.filtering.stream import PairFilter
from spo_jax.data.preferences.format import FILTER, FORMAT, IMAGES, INDEX, PROMPTS, RECORD, import_tfds, open_records

_ASIDE = ".preparing"  # folder of the split until it is complete
_SPLIT = re.compile(r"(?!all$)[A-Za-z]\w*", re.ASCII)  # tfds reserves "all"
_ENOUGH = 1000  # rejected rows that are enough to see what is wrong with a hopeless split
_AHEAD = 8  # rows to read ahead per thread


class Prepared(NamedTuple):
    """The result of preparing a split.

    Attributes:
      pairs: number of pairs in the split.
      rejected: number of rejected rows.
      kept: whether the split had been prepared before and was left as it was.
      filter: what became of the pairs that were filtered (`SplitFilter.record`); None if they were not.
    """

    pairs: int
    rejected: int
    kept: bool
    filter: Mapping[str, Any] | None = None


@contextlib.contextmanager
def preparing(data_dir: Path) -> Iterator[None]:
    """Locks the folder and removes what a killed command left in it.

    Raises:
      UserError: another command is preparing data into the folder, or the folder cannot be written.
    """
    with lock(
        data_dir / ".lock", f"{data_dir}: another command is preparing data in this folder; wait for it to finish"
    ):
        shutil.rmtree(data_dir / _ASIDE, ignore_errors=True)
        try:
            yield
        finally:
            shutil.rmtree(data_dir / _ASIDE, ignore_errors=True)


def prepare_split(
    source: Source,
    split: str,
    data_dir: Path,
    max_bad: float = 0.01,
    limit: int = 0,
    shard: int = 0,
    keep: PairFilter | None = None,
) -> Prepared:
    """Writes ``data_dir/split``, and ``data_dir/rejected-SPLIT.jsonl`` if rows were rejected.

    It has to be called within `preparing`.

    Args:
      source: the source of the rows.
      split: name of the split.
      data_dir: folder of the prepared splits.
      max_bad: share of the rows that may be rejected.
      limit: use only the first ``limit`` rows (0: all).
      shard: number of rows per array_record file; 0 is a number that suits Pick-a-Pic.
      keep: filter of the pairs, which keeps their scores in ``data_dir/scores-SPLIT``; None keeps all pairs.

    Raises:
      UserError: the source does not have the split or cannot be read; too many rows are rejected, or all of them; the
        split was prepared from something else before; the split cannot be written; or as the filter raises it.
    """
    # Check the request, and keep a split that is already prepared.
    if not _SPLIT.fullmatch(split):
        raise UserError(f"split {split!r}: expected letters, digits and underscores, a letter first, and not 'all'")
    if split not in source.splits():
        raise UserError(f"split {split!r} is not in the source: expected one of {', '.join(source.splits())}")
    made_of_rows = source.made_from(split) | {"limit": limit}
    made_from = made_of_rows | (keep.origin if keep else {})
    folder = data_dir / split
    if folder.exists():
        record = _record_of(folder, made_from)
        return Prepared(record["pairs"], record["rejected"], kept=True, filter=record.get("filter"))

    # Write everything aside, and rename the folder once it is complete.
    rows = source.count(split)
    rows = min(rows, limit) if limit else rows
    aside = data_dir / _ASIDE / split
    try:
        (data_dir / f"rejected-{split}.jsonl").unlink(missing_ok=True)
        filtering = keep.of_split(split, rows, data_dir, made_of_rows) if keep else contextlib.nullcontext()
        with _Checked(source, split, rows, max_bad, data_dir) as checked, filtering as chosen:
            stream = chosen(checked, checked.notes) if chosen else iter(checked)
            written = _write_records(checked, stream, split, rows, aside, shard, made_from.get(FILTER, ""))
        pairs, digest = _write_index(written, split)
        record = {"format": FORMAT, "split": split, "pairs": pairs, "rejected": checked.rejected, "digest": digest}
        record |= {"filter": chosen.record()} if chosen else {}
        sizes = {path.name: path.stat().st_size for path in sorted(written.iterdir())}
        write_json(written / RECORD, record | {"made_from": made_from, "files": sizes})
        os.rename(written, folder)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from error
    return Prepared(pairs, checked.rejected, kept=False, filter=record.get("filter"))


def _record_of(folder: Path, made_from: dict[str, Any]) -> dict[str, Any]:
    """Returns the record of an existing split, provided that it was made from the same rows."""
    if not (folder / RECORD).is_file():
        raise UserError(f"{folder} exists but is not a prepared split; choose another --data-dir, or delete it")
    record = read_json_object(folder / RECORD)
    before = record.get("made_from", {})
    for name in sorted(before.keys() | made_from.keys()):
        if before.get(name) != made_from.get(name):
            raise UserError(
                f"{folder} was prepared with {name} = {before.get(name)!r}, but now it is {made_from.get(name)!r}; "
                "choose another --data-dir, or delete the folder"
            )
    return record


class _Checked:
    """Checks the rows of a split in threads and yields the results in order; counts and lists the rejected rows.

    Attributes:
      rejected: number of rejected rows so far.
      seen: number of checked rows so far.
      notes: what the bar shows beside its count, by name.
    """

    def __init__(self, source: Source, split: str, rows: int, max_bad: float, data_dir: Path):
        self._split = split
        self._rows = rows
        self._max_bad = max_bad
        self._raw = itertools.islice(source.rows(split), rows)
        self._list = data_dir / f"rejected-{split}.jsonl"
        self._aside = data_dir / _ASIDE / f"rejected-{split}.jsonl"
        self.rejected = 0
        self.seen = 0
        self.notes: dict[str, int] = {}

    def __enter__(self) -> "_Checked":
        self._aside.parent.mkdir(parents=True, exist_ok=True)
        # A reason may quote characters that UTF-8 cannot represent.
        self._file = open(self._aside, "w", encoding="utf-8", errors="backslashreplace")
        # Threads run in parallel, because Pillow releases the interpreter's lock while it decodes.
        self._threads = os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(self._threads)
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._publish()

    def _publish(self) -> None:
        """Publishes the list of rejected rows, even if the split cannot be prepared."""
        self._file.close()
        if self.rejected:
            os.replace(self._aside, self._list)

    def __iter__(self) -> Iterator[Pair | str]:
        with bar(self._split, self._rows, "pair") as shown:
            while raw := list(itertools.islice(self._raw, _AHEAD * self._threads)):
                shown.set_postfix(self.notes, refresh=False)
                for row, result in zip(raw, self._pool.map(check, raw), strict=True):
                    if isinstance(result, str):
                        self._reject(row, result)
                    self.seen += 1
                    shown.update()
                    yield result

    def _reject(self, row: RawPair, reason: str) -> None:
        """Lists a rejected row, and gives up once there are enough of them in a hopeless split."""
        self.rejected += 1
        self.notes["rejected"] = self.rejected
        entry = {"where": row.where, "image_uids": list(row.uids), "reason": reason}
        self._file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        if self.rejected > max(self._max_bad * self._rows, _ENOUGH):
            self.seen += 1
            self.end()

    def end(self) -> None:
        """Checks the number of rejected rows.

        Raises:
          UserError: too many rows were rejected, or all of them; the message shows the first reason.
        """
        if not self._rows:
            raise UserError(f"split {self._split}: the source has no rows in it")
        if self.rejected <= self._max_bad * self._rows and self.rejected < self._rows:
            return
        self._file.flush()
        with open(self._aside, encoding="utf-8") as listed:
            first = json.loads(listed.readline())
        all_rejected = self.rejected == self._rows
        excess = "which leaves none" if all_rejected else f"which is more than --max-bad={self._max_bad:g} allows"
        raise UserError(
            f"split {self._split}: {self.rejected} of {self.seen} rows ({self.rejected / self.seen:.2%}) cannot be "
            f"used, {excess}, for example {first['where']}: {first['reason']}; the rejected rows are listed in "
            f"{self._list}, and this split was not prepared"
        )


def _write_records(
    checked: _Checked, stream: Iterator[Pair | str], split: str, rows: int, aside: Path, shard: int, rule: str
) -> Path:
    """Writes the array_record files.

    Args:
      checked: the rows.
      stream: their pairs, or the reasons why they are left out; ``checked`` itself, or what a filter leaves of it.
      split: name of the split.
      rows: number of rows.
      aside: folder of the files.
      shard: as in `prepare_split`.
      rule: rule of the filter, for the description; empty without one.

    Returns:
      The folder that they are in.
    """
    import_tfds().disable_progress_bar()
    from spo_jax.data.preferences.builder import ROWS_PER_SHARD, PreferencePairs

    if not rows:
        checked.end()

    builder = PreferencePairs(
        split=split, rows=rows, checked=stream, shard=shard or ROWS_PER_SHARD, rule=rule, data_dir=str(aside),
        file_format="array_record",
    )  # fmt: skip
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # tfds prints a message about downloads of unknown size
            builder.download_and_prepare()
    except RuntimeError as error:
        # array_record says for example "write() failed: No space left on device; writing ...".
        failed = re.search(r"\w+\(\) failed: ([^;]*)", str(error))
        if not failed:
            raise
        raise UserError(f"cannot write to {aside}: {failed[1]}") from error

    for _ in stream:
        raise ValueError("a shard was left out")
    checked.end()
    return Path(builder.data_dir)


def _write_index(folder: Path, split: str) -> tuple[int, str]:
    """Reads the records back and writes the columns that stay in memory during training.

    The columns are read rather than remembered from writing, so that they are aligned with the records on disk, and so
    that every record has been read once.

    Returns:
      (number of pairs, digest of the content).
    """
    # Collect the columns and the digest, record by record.
    records = open_records(folder, split)
    digest = hashlib.blake2b(digest_size=16)
    prompts: dict[str, int] = {}
    columns: dict[str, list[Any]] = {"prompt": [], "labels": [], "count": [], "has_label": [], "are_different": []}
    for row in bar(f"{split}: reading back", len(records), "pair", over=range(len(records))):
        record = records[row]
        caption = record["caption"].decode()
        values = {
            "prompt": prompts.setdefault(caption, len(prompts)),
            "labels": (float(record["label_0"]), float(record["label_1"])),
            "count": int(record["num_example_per_prompt"]),
            "has_label": bool(record["has_label"]),
            "are_different": bool(record["are_different"]),
        }
        for name, value in values.items():
            columns[name].append(value)
        for part in (*(record[name] for name in IMAGES), caption.encode(), repr(values).encode()):
            digest.update(len(part).to_bytes(8, "little") + part)

    index = _arrays(columns)
    with open(folder / INDEX, "wb") as file:
        np.savez(file, **index)
    write_json(folder / PROMPTS, [{"caption": caption} for caption in prompts])
    return len(index["prompt"]), digest.hexdigest()


def _arrays(columns: dict[str, list[Any]]) -> dict[str, np.ndarray]:
    """Converts columns to arrays, and counts the pairs of a prompt where the source does not say their number."""
    kinds = {"prompt": np.int32, "labels": np.float32, "count": np.int32, "has_label": bool, "are_different": bool}
    arrays = {name: np.asarray(values, kinds[name]) for name, values in columns.items()}
    own = Counter(columns["prompt"])
    counted = np.asarray([own[row] for row in columns["prompt"]], np.int32)
    arrays["count"] = np.where(arrays["count"] > 0, arrays["count"], counted)
    return arrays
