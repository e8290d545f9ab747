"""Prepares data: ``python -m spo_jax.prepare --dataset=toy --pairs=2000 --data-dir=data/toy``.

Preference pairs: the dataset ``pick_a_pic`` reads parquet files (``--source`` is a folder or a hub id), ``folder``
reads a user's own (JSONL or CSV files beside images, or two folders better/ and worse/; ``--hold-out=0.2`` keeps a part
for measuring), and ``toy`` draws pairs of the toy world; a dotted path names a source of your own. A split is either
complete or absent: if the command was killed, start it again, and it continues with the first missing split.

Filter: ``--filter=aesthetic=-0.5,clip_score=0`` keeps the pairs whose winner scores higher by more than these gaps, by
any rewards, and ``--filter-ties=clip_score=0.03`` the ties whose images differ by less. ``--filter=lpo`` is the rule of
LPO's authors, without VQAScore. The dataset ``prepared`` filters splits that are prepared already.

Prompts: the dataset ``prompts`` writes a checked list to ``DIR/NAME.json``. ``--source`` is a file, a URL, a file of a
hub repository (owner/name/file) or, with ``--splits``, a folder or hub id of preference pairs, whose captions it takes.
"""

import dataclasses
import functools
import itertools
import os
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import flags, logging

from spo_jax.core.cli import callable_module, run_command, stop
from spo_jax.core.config import MAX_COUNT
from spo_jax.core.errors import UserError
from spo_jax.core.files import check_writable, local_path
from spo_jax.core.lookup import find_module, module_names
from spo_jax.core.words import counted
from spo_jax.data.preferences.filtering.rule import DECIDED_FLAG, LEFT_OUT, RESOLUTION_FLAG, TIES_FLAG, read_rule
from spo_jax.data.preferences.filtering.scores import PairScorer
from spo_jax.data.preferences.filtering.stream import PairFilter, lines_of
from spo_jax.data.preferences.format import PROMPTS, import_tfds
from spo_jax.data.preferences.writer import Prepared, prepare_split, preparing
from spo_jax.rewards import check_reward
from spo_jax.rewards.common.protocol import Context
from spo_jax.weights.hub import resolve

_SOURCES = "spo_jax.data.preferences.sources"


def prepare(
    dataset: str,
    data_dir: str | os.PathLike,
    splits: Sequence[str] = (),
    max_bad: float = 0.01,
    limit: int = 0,
    filter_pairs: Sequence[str] = (),
    filter_ties: Sequence[str] = (),
    filter_resolution: int = 0,
    **options: Any,
) -> dict[str, Any]:
    """Prepares splits one after the other, and keeps those that are prepared already.

    Args:
      dataset: a name in `spo_jax.data.preferences.sources`, or a dotted path.
      data_dir: folder for the prepared splits; `spo_jax.data.preferences.format` describes its content.
      splits: splits to prepare; if empty, the source's usual ones (for Pick-a-Pic its usual three, otherwise all).
      max_bad: share of a split's rows that may be rejected, from 0 to 1.
      limit: use only the first N rows of each split (0: all).
      filter_pairs: keep decided pairs whose winner's score is higher by more than a gap: ``REWARD=GAP``, each, or
        ``lpo``; see `spo_jax.data.preferences.filtering.rule.read_rule`.
      filter_ties: keep ties whose scores differ by less than a gap: ``REWARD=GAP``, each.
      filter_resolution: side of the images that are scored; 0 scores each in its own size.
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
    keep = _read_filter(filter_pairs, filter_ties, filter_resolution)
    if hasattr(module, "prepare"):
        if keep:
            raise UserError(f"--filter: --dataset={dataset} does not take it, because it has no pairs")
        return module.prepare(read, data_dir, splits, max_bad, limit, resolve)
    import_tfds()
    source = module.open_source(read, splits, resolve)
    known = source.splits()
    unknown = [split for split in splits if split not in known]
    if unknown:
        raise UserError(f"--splits: no split {', '.join(unknown)} in the source, only {', '.join(known)}")
    if keep and keep.rule.is_short:
        logging.warning(LEFT_OUT)
    # Prepare the splits.
    done: dict[str, Prepared] = {}
    with preparing(data_dir):
        for split in dict.fromkeys(splits or source.usual_splits()):
            done[split] = prepare_split(source, split, data_dir, max_bad, limit, keep=keep)
            print(_lines(split, done[split], data_dir))
    return done


def _read_filter(decided: Sequence[str], ties: Sequence[str], resolution: int) -> PairFilter | None:
    """Reads the rule by which pairs are filtered, and checks its rewards without jax; returns None without one."""
    rule = read_rule(decided, ties)
    if rule is None:
        if resolution:
            raise UserError(f"{RESOLUTION_FLAG} goes with {DECIDED_FLAG} or {TIES_FLAG} only")
        return None
    for flag, conditions in ((DECIDED_FLAG, rule.decided), (TIES_FLAG, rule.ties)):
        for condition in conditions:
            check_reward(condition.reward, Context(field=flag))

    @functools.cache
    def open_scorer() -> PairScorer:
        from spo_jax.work.prepare import RewardScorer  # imports jax

        return RewardScorer(rule, resolution)

    return PairFilter(rule, open_scorer, resolution)


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


def _lines(split: str, prepared: Prepared, data_dir: Path) -> str:
    rejected = f"{counted(prepared.rejected, 'row')} rejected"
    pairs = counted(prepared.pairs, "pair")
    if prepared.rejected:
        rejected += f" (listed in {data_dir}/rejected-{split}.jsonl)"
    filtered = [f"{split}: {line}" for line in lines_of(prepared.filter)] if prepared.filter else []
    if prepared.kept:
        return "\n".join([f"{split}: {pairs} prepared earlier, kept; {rejected}", *filtered])
    return "\n".join([f"{split}: {pairs}, {rejected}; prompts in {data_dir}/{split}/{PROMPTS}", *filtered])


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
    filter_pairs = flags.DEFINE_list(
        "filter",
        None,
        "Keep decided pairs whose winner scores higher by more than a gap, by each of these rewards: REWARD=GAP,… (of "
        "a reward with several scores REWARD#SCORE=GAP), or lpo, the rule of LPO's authors.",
    )
    filter_ties = flags.DEFINE_list(
        "filter-ties", None, "Keep ties whose images' scores differ by less than a gap: REWARD=GAP,…"
    )
    filter_resolution = flags.DEFINE_integer(
        "filter-resolution",
        0,
        "Score the middle square of images at this side in pixels (0: whole images in their own size).",
        lower_bound=0,
        upper_bound=4096,
    )
    flags.mark_flag_as_required("data-dir")
    try:
        options = _define_options(sys.argv)
    except UserError as error:
        stop(str(error))

    def main(_) -> None:
        given = {name: flag.value for name, flag in options.items() if flags.FLAGS[flag.name].present}
        for flag in (filter_pairs, filter_ties):
            if flag.value == []:
                raise UserError(f"--{flag.name} is empty: expected REWARD=GAP, or no --{flag.name} to keep all pairs")
        prepare(
            dataset.value,
            data_dir.value,
            splits.value,
            max_bad.value,
            limit.value,
            filter_pairs.value or (),
            filter_ties.value or (),
            filter_resolution.value,
            **given,
        )

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
