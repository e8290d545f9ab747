"""Prepares preference pairs: ``python -m spo_jax.prepare --dataset=pick_a_pic --source=FOLDER_OR_ID --data-dir=DIR``.

``pick_a_pic`` reads parquet files (``--source`` is a folder or a hub id), ``folder`` a user's own JSONL files and
pictures, ``scenes`` draws pairs of the embedded world. A split is whole or not there: start the command again after it
was killed, and it goes on with the first split that is not.
"""

from absl import flags

from spo_jax.core.cli import run_command

_TAKES = {
    "pick_a_pic": ("source", "revision", "partial"),
    "folder": ("source",),
    "scenes": ("pairs", "held-out-pairs", "seed"),
}


def run() -> None:
    """The command."""
    dataset = flags.DEFINE_enum("dataset", "pick_a_pic", list(_TAKES), "What the pairs come from.")
    source = flags.DEFINE_string("source", "", "Folder; for pick_a_pic a folder or a hub id.")
    revision = flags.DEFINE_string("revision", "", "Revision of the hub id.")
    data_dir = flags.DEFINE_string("data-dir", None, "Where the prepared splits shall be.")
    splits = flags.DEFINE_list("splits", [], "Which; by default of Pick-a-Pic its usual three, else all.")
    max_bad = flags.DEFINE_float("max-bad", 0.01, "Share of a split's rows that may be unusable.")
    limit = flags.DEFINE_integer("limit", 0, "The first so many rows of a split; 0 is all.", lower_bound=0)
    partial = flags.DEFINE_bool("partial", False, "Take the parquet files that are there, though some are missing.")
    pairs = flags.DEFINE_integer("pairs", 100_000, "Of scenes' train.", lower_bound=1)
    held_out = flags.DEFINE_integer("held-out-pairs", 2000, "Of scenes' validation_unique.", lower_bound=1)
    seed = flags.DEFINE_integer("seed", 0, "Of scenes.", lower_bound=0)
    flags.mark_flag_as_required("data-dir")

    def main(_) -> None:
        from spo_jax import preparing
        from spo_jax.core.errors import UserError

        takes = _TAKES[dataset.value]
        for name in sorted({name for names in _TAKES.values() for name in names} - set(takes)):
            if flags.FLAGS[name].present:
                raise UserError(f"--{name}: --dataset={dataset.value} does not take it, only --{', --'.join(takes)}")
        if "source" in takes and not source.value:
            raise UserError(f"--dataset={dataset.value} needs a --source")
        makers = {
            "pick_a_pic": lambda: preparing.pick_a_pic_source(source.value, revision.value, partial.value),
            "folder": lambda: preparing.folder_source(source.value),
            "scenes": lambda: preparing.scenes_source(pairs.value, held_out.value, seed.value),
        }
        preparing.prepare(makers[dataset.value](), data_dir.value, splits.value, max_bad.value, limit.value)

    run_command(main)


if __name__ == "__main__":
    run()
