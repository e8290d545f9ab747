"""Prepares data: ``python -m spo_jax.prepare --dataset=toy --pairs=2000 --data-dir=data/toy``.

Preference pairs: the dataset ``pick_a_pic`` reads parquet files (``--source`` is a folder or a hub id), ``folder``
reads a user's own (JSONL or CSV files beside images, or two folders better/ and worse/; ``--hold-out=0.2`` keeps a part
for measuring), and ``toy`` draws pairs of the toy world; a dotted path names a source of your own. A split is either
complete or absent: if the command was killed, start it again, and it continues with the first missing split.

Prompts: the dataset ``prompts`` writes a checked list to ``DIR/NAME.json``. ``--source`` is a file, a URL, a file of a
hub repository (owner/name/file) or, with ``--splits``, a folder or hub id of preference pairs, whose captions it takes.
"""

import dataclasses
import itertools
import os
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import flags

from spo_jax.core.cli import callable_module, run_command, stop
from spo_jax.core.config import MAX_COUNT
from spo_jax.core.errors import UserError
from spo_jax.core.files import check_writable, local_path
from spo_jax.core.lookup import find_module, module_names
from spo_jax.core.words import counted
from spo_jax.data.preferences.format import PROMPTS, import_tfds
from spo_jax.data.preferences.writer import Prepared, prepare_split, preparing
from spo_jax.weights.hub import resolve

_SOURCES = "spo_jax.data.preferences.sources"


def prepare(
    dataset: str,
    data_dir: str | os.PathLike,
    splits: Sequence[str] = (),
    max_bad: float = 0.01,
    limit: int = 0,
    **options: Any,
) -> dict[str, Any]:
    """Prepares splits one after the other, and keeps those that are prepared already.

    Args:
      dataset: a name in `spo_jax.data.preferences.sources`, or a dotted path.
      data_dir: folder for the prepared splits; `spo_jax.data.preferences.format` describes its content.
      splits: splits to prepare; if empty, the source's usual ones (for Pick-a-Pic its usual three, otherwise all).
      max_bad: share of a split's rows that may be rejected, from 0 to 1.
      limit: use only the first N rows of each split (0: all).
      **options: options of the source, such as ``source``.

    Returns:
      The outcome of each split, `Prepared`; of ``prompts``, a `PromptList` for each list.

    Raises:
      UserError: an argument is wrong; or as in `prepare_split`, or as the source raises it.
    """
    # Check the arguments, and open the source.
    data_dir = local_path(data_dir)
    if not 0 <= max_bad <= 1:
        raise UserError(f"--max-bad={max_bad:g}: expected a share between 0 and 1")
    if limit < 0:
        raise UserError(f"--limit={limit}: expected 0 or more (0: all)")
    check_writable(data_dir)
    module = _find_source(dataset)
    read = _read_options(module, dataset, options)
    if hasattr(module, "prepare"):
        return module.prepare(read, data_dir, splits, max_bad, limit, resolve)
    import_tfds()
    source = module.open_source(read, splits, resolve)
    known = source.splits()
    unknown = [split for split in splits if split not in known]
    if unknown:
        raise UserError(f"--splits: no split {', '.join(unknown)} in the source, only {', '.join(known)}")
    # Prepare the splits.
    done: dict[str, Prepared] = {}
    with preparing(data_dir):
        for split in dict.fromkeys(splits or source.usual_splits()):
            done[split] = prepare_split(source, split, data_dir, max_bad, limit)
            print(_line(split, done[split], data_dir))
    return done


def _find_source(dataset: str) -> ModuleType:
    module = find_module(_SOURCES, dataset, "--dataset")
    parts = ("Options", "prepare" if hasattr(module, "prepare") else "open_source")
    missing = [part for part in parts if not hasattr(module, part)]
    if missing:
        raise UserError(f"--dataset={dataset}: {module.__name__} has no {', '.join(missing)}")
    return module


def _read_options(module: ModuleType, dataset: str, options: dict[str, Any]) -> Any:
    known = [field.name for field in dataclasses.fields(module.Options)]
    for name in options:
        if name not in known:
            listed = ", ".join(f"--{field.replace('_', '-')}" for field in known)
            flag = name.replace("_", "-")
            raise UserError(f"--{flag}: --dataset={dataset} does not take it, only {listed}")
    return module.Options(**options)


def _line(split: str, prepared: Prepared, data_dir: Path) -> str:
    rejected = f"{counted(prepared.rejected, 'row')} rejected"
    pairs = counted(prepared.pairs, "pair")
    if prepared.rejected:
        rejected += f" (listed in {data_dir}/rejected-{split}.jsonl)"
    if prepared.kept:
        return f"{split}: {pairs} prepared earlier, kept; {rejected}"
    return f"{split}: {pairs}, {rejected}; prompts in {data_dir}/{split}/{PROMPTS}"


# The command


def run() -> None:
    """Runs the command."""
    dataset = flags.DEFINE_string(
        "dataset", "pick_a_pic", f"Take the data from this source: {', '.join(module_names(_SOURCES))}."
    )
    data_dir = flags.DEFINE_string("data-dir", None, "Write the prepared splits or lists to this folder.")
    splits = flags.DEFINE_list("splits", [], "Prepare these splits (default: Pick-a-Pic's usual three, otherwise all).")
    max_bad = flags.DEFINE_float("max-bad", 0.01, "Accept this share of unusable rows in a split or list.")
    limit = flags.DEFINE_integer(
        "limit", 0, "Use only the first N rows of a split or list (0: all).", lower_bound=0, upper_bound=MAX_COUNT
    )
    flags.mark_flag_as_required("data-dir")
    try:
        options = _define_options(sys.argv)
    except UserError as error:
        stop(str(error))

    def main(_) -> None:
        given = {name: flag.value for name, flag in options.items() if flags.FLAGS[flag.name].present}
        prepare(dataset.value, data_dir.value, splits.value, max_bad.value, limit.value, **given)

    run_command(main)


def _define_options(argv: Sequence[str]) -> dict[str, flags.FlagHolder]:
    """Defines a flag for every option of our sources, and of a user's own source that the command line names."""
    names = [*module_names(_SOURCES), *_own_sources(argv)]
    define = {str: flags.DEFINE_string, int: flags.DEFINE_integer, bool: flags.DEFINE_bool, float: flags.DEFINE_float}
    options: dict[str, flags.FlagHolder] = {}
    for name in names:
        module = _find_source(name)
        kinds = typing.get_type_hints(module.Options)
        for field in dataclasses.fields(module.Options):
            if field.name not in options:
                flag = field.name.replace("_", "-")
                options[field.name] = define[kinds[field.name]](flag, field.default, field.metadata["meaning"])
    return options


def _own_sources(argv: Sequence[str]) -> list[str]:
    """Returns the dotted paths that follow ``--dataset=`` or ``--dataset``."""
    words = " ".join(argv).replace("=", " ").split(" ")
    return [value for flag, value in itertools.pairwise(words) if flag in ("--dataset", "-dataset") and "." in value]


callable_module(__name__, prepare)

if __name__ == "__main__":
    sys.exit(run())
