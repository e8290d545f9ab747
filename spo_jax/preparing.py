"""From downloaded or drawn preference pairs to a prepared folder; see `spo_jax.data.preferences.format` for what is in it."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from spo_jax.core.errors import UserError
from spo_jax.core.files import check_writable
from spo_jax.data.preferences.format.check import Source
from spo_jax.data.preferences.format.format import PROMPTS, import_tfds
from spo_jax.data.preferences.format.sources import pick_a_pic
from spo_jax.data.preferences.format.sources.folder import PreferenceFolder
from spo_jax.data.preferences.format.sources.toy import Scenes
from spo_jax.data.preferences.format.writer import Prepared, prepare_split, preparing
from spo_jax.toy.truth import aesthetic
from spo_jax.weights.hub import resolve

# Opens a source when the splits are known (none: the usual ones): of a repository no other split is fetched.
MakeSource = Callable[[Sequence[str]], Source]


def pick_a_pic_source(source: str, revision: str = "", partial: bool = False) -> MakeSource:
    """Pick-a-Pic's parquet files from a local folder or a hub id; arguments as in `PickAPic`."""

    def make(splits: Sequence[str]) -> Source:
        local = Path(source).expanduser().exists()
        if local and revision:
            raise UserError(f"--revision={revision}: it is of a hub id, and --source={source} is here")
        wanted = pick_a_pic.patterns(tuple(splits) or pick_a_pic.SPLITS)
        folder = resolve(source, revision or None, allow_patterns=wanted, repo_type="dataset")
        return pick_a_pic.PickAPic(folder, "" if local else source, revision, partial)

    return make


def folder_source(source: str) -> MakeSource:
    """A user's own preferences, see `spo_jax.data.preferences.sources.folder`."""
    return lambda splits: PreferenceFolder(Path(source).expanduser())


def scenes_source(pairs: int, held_out_pairs: int, seed: int) -> MakeSource:
    """Pairs of the embedded world."""
    return lambda splits: Scenes({"train": pairs, "validation_unique": held_out_pairs}, seed, aesthetic)


def prepare(
    make_source: MakeSource,
    data_dir: str | os.PathLike,
    splits: Sequence[str] = (),
    max_bad: float = 0.01,
    limit: int = 0,
) -> dict[str, Prepared]:
    """Prepares splits one after the other; those that are there already are kept.

    Args:
      splits: which; empty takes the source's usual ones: of Pick-a-Pic its three, else all.
      max_bad: share of a split's rows that may be rejected.
      limit: take the first ``limit`` rows of each split; 0 takes all.

    Returns:
      What became of each split.

    Raises:
      UserError: as `prepare_split` and the sources.
    """
    data_dir = Path(data_dir)
    if not 0 <= max_bad <= 1:
        raise UserError(f"--max-bad={max_bad:g}: expected a share between 0 and 1")
    check_writable(data_dir)
    import_tfds()
    source = make_source(splits)
    there = source.splits()
    unknown = [split for split in splits if split not in there]
    if unknown:
        raise UserError(f"--splits: no split {', '.join(unknown)} in the source, only {', '.join(there)}")
    done: dict[str, Prepared] = {}
    with preparing(data_dir):
        for split in dict.fromkeys(splits or source.usual_splits()):
            done[split] = prepare_split(source, split, data_dir, max_bad, limit)
            print(_line(split, done[split], data_dir))
    return done


def _line(split: str, prepared: Prepared, data_dir: Path) -> str:
    rejected = f"{prepared.rejected} rows rejected"
    if prepared.rejected:
        rejected += f" (listed in {data_dir}/rejected-{split}.jsonl)"
    if prepared.kept:
        return f"{split}: {prepared.pairs} pairs prepared earlier, kept; {rejected}"
    return f"{split}: {prepared.pairs} pairs, {rejected}; prompts in {data_dir}/{split}/{PROMPTS}"
