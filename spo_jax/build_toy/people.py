"""Makes preferences as people give them: ``python -m spo_jax.build_toy.people --out=data/toy_people``.

The images of a pair are drawn by models: by ``--model`` at several guidance scales and numbers of steps, and by an
earlier checkpoint of it, as the users of Pick-a-Pic did. Each pair is labelled by one simulated annotator, of whom two
agree about as often as two people, and who find as many ties (`spo_jax.toy.annotators`). ``OUT/people`` holds the pairs
with these labels and ``OUT/exact`` the same images with labels by the truth, each prepared as by ``spo_jax.prepare``,
with the splits ``train`` (training prompts) and ``validation_unique`` (held-out prompts).

What is drawn is kept in ``OUT/work``: if the command was killed, start it again, and it continues.
"""

import os
import sys
from pathlib import Path
from typing import Any

from absl import flags

from spo_jax import toy
from spo_jax.core.cli import callable_module, run_command
from spo_jax.core.config import SEED_LIMIT
from spo_jax.core.errors import UserError
from spo_jax.core.files import check_writable, local_path
from spo_jax.core.progress import stage
from spo_jax.data.preferences.format import import_tfds
from spo_jax.models import check_model

PEOPLE = "people"  # the folder of the pairs with people's labels
PAIRS = 4000
HELD_OUT_PAIRS = 800
MOST = 10**6


def people(
    out: str | os.PathLike,
    pairs: int = PAIRS,
    held_out_pairs: int = HELD_OUT_PAIRS,
    seed: int = 0,
    model: str = toy.NAME,
    earlier: str = "",
) -> dict[str, dict[str, dict[str, float | None]]]:
    """Draws pairs, has them labelled, and prepares them.

    Args:
      out: folder to write.
      pairs: number of pairs of training prompts.
      held_out_pairs: number of pairs of held-out prompts.
      seed: seed of everything that is drawn.
      model: a pipeline of the toy world: folder, or ``toy``.
      earlier: folder of an earlier checkpoint of it, as a pipeline; if empty, one is trained.

    Returns:
      How the annotators agree, by split and by the names of `spo_jax.toy.annotators.figures`: values with standard
      errors.

    Raises:
      UserError: an argument is wrong, a model cannot be used, or ``out`` holds other pairs or cannot be written.
    """
    for flag, count in (("pairs", pairs), ("held-out-pairs", held_out_pairs)):
        if not 1 <= count <= MOST:
            raise UserError(f"--{flag}={count}: expected 1 to {MOST}")
    out = local_path(out)
    check_writable(out)
    for named in filter(None, (model, earlier)):
        check_model(named)
    import_tfds()
    # Imported here because it takes seconds, and the mistakes above are found in one.
    with stage("importing JAX"):
        from spo_jax.build_toy.people_pairs import make_pairs

    return make_pairs(out, {"train": pairs, "validation_unique": held_out_pairs}, seed, model, earlier)


def pairs_of_people(out: Path, split: str, **arguments: Any) -> Path:
    """Returns the folder of pairs with people's labels, which are drawn first unless ``out`` has them already.

    Args:
      out: as in `people`.
      split: a split that the pairs have once they are complete.
      **arguments: the other arguments of `people`.
    """
    if not (out / PEOPLE / split).is_dir():
        people(out, **arguments)
    return out / PEOPLE


def run() -> None:
    """Runs the command."""
    out = flags.DEFINE_string("out", None, "Write the pairs to this folder.")
    pairs = flags.DEFINE_integer("pairs", PAIRS, "Draw this many pairs of training prompts.")
    held_out_pairs = flags.DEFINE_integer("held-out-pairs", HELD_OUT_PAIRS, "Draw this many pairs of held-out prompts.")
    seed = flags.DEFINE_integer(
        "seed", 0, "Draw pairs and annotators from this seed.", lower_bound=0, upper_bound=SEED_LIMIT - 1
    )
    model = flags.DEFINE_string("model", toy.NAME, "Draw with this pipeline of the toy world: folder, or 'toy'.")
    earlier = flags.DEFINE_string(
        "earlier", "", "Draw with this earlier checkpoint of it too: a pipeline's folder (default: one is trained)."
    )
    flags.mark_flag_as_required("out")

    def main(_) -> None:
        measured = people(out.value, pairs.value, held_out_pairs.value, seed.value, model.value, earlier.value)
        for split, figures in measured.items():
            print(f"\n{split}:")
            for name, figure in figures.items():
                error = "" if figure["error"] is None else f" ± {figure['error']:.3f}"
                print(f"  {name:46s} {figure['value']:.3f}{error}")
        print(f"\npairs with labels by people: {Path(out.value) / 'people'}; by the truth: {Path(out.value) / 'exact'}")

    run_command(main)


callable_module(__name__, people)

if __name__ == "__main__":
    sys.exit(run())
