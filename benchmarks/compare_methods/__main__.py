"""Compares training methods on the toy world: ``python -m benchmarks.compare_methods --out=runs/compare``.

Every method starts from the same base and learns from the same pairs: offline methods read them, online methods listen
to the preference model that was trained on them. Each is tuned by the same number of trials on training prompts, and
then trained with several seeds; along each run, checkpoints are measured on held-out prompts, against the work that was
done so far. Results go to OUT/results.md, results.json and a figure for each kind of labels; those of --ablations go to
ablations.md and ablations.json.

Everything that is finished is kept in --out: if the command was killed, start it again with the same flags, and it
continues. What fails is reported, does not end the command, and is tried again at the next start.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from benchmarks.compare_methods import contestants
from benchmarks.compare_methods import plan as plans
from spo_jax.core.cli import printing, run_command
from spo_jax.core.compiled_programs import keep_compiled_programs
from spo_jax.core.errors import UserError
from spo_jax.core.files import check_writable, local_path, lock
from spo_jax.core.progress import stage
from spo_jax.models import check_model
from spo_jax.toy import world

LABELS = ("people", "exact")


def run() -> None:
    """Runs the command."""
    out = flags.DEFINE_string("out", "runs/compare", "Keep everything that is made in this folder.")
    data = flags.DEFINE_string(
        "data",
        "data/toy_people",
        "Folder of the pairs, and of the CLIP from which preference models start; what is not there is made.",
    )
    model = flags.DEFINE_string("model", "toy", "Train this pipeline of the toy world: a folder, or 'toy'.")
    only = flags.DEFINE_list("only", [], "Compare only these contestants (default: all).")
    labels = flags.DEFINE_list("labels", list(LABELS), f"Compare on these labels: {', '.join(LABELS)}.")
    quick = flags.DEFINE_bool("quick", False, "Take smaller budgets, one seed and fewer images: a first look.")
    seeds = flags.DEFINE_integer("seeds", None, "Train with this number of seeds (default: 3).", lower_bound=1)
    points = flags.DEFINE_integer(
        "points",
        None,
        "Measure this number of checkpoints of each run (default: 5; of ablations 4).",
        lower_bound=1,
        upper_bound=8,
    )
    budget = flags.DEFINE_float(
        "budget",
        None,
        "Train each run for this many evaluations of the UNet (default: 40,000; ablations 16,000).",
        lower_bound=1,
    )
    ablations = flags.DEFINE_bool("ablations", False, "Compare SPO with itself lacking a part, in place of methods.")
    tune = flags.DEFINE_bool("tune", True, "Choose settings by trials; without them, those of the configs are taken.")
    judges = flags.DEFINE_list(
        "judges",
        [],
        "Preference models by labels, as people=FOLDER (default: the package's own, or one trained first, as by "
        "people=train).",
    )
    docs = flags.DEFINE_string("docs", "", "Also put text and figures into results.md of this folder of documents.")
    only_plan = flags.DEFINE_bool("plan", False, "Print what would be done and how long it takes, and stop.")

    def main(_: Sequence[str]) -> None:
        given = {"points": points.value, "budget": budget.value, "seeds": seeds.value and tuple(range(seeds.value))}
        plan = plans.QUICK if quick.value else plans.ABLATIONS if ablations.value else plans.Plan()
        plan = dataclasses.replace(plan, **{name: value for name, value in given.items() if value is not None})
        chosen = judges_of(judges.value)
        groups = groups_of(ablations.value, only.value, labels.value)
        with printing():
            prompts = (len(world.HELD_OUT_PROMPTS), len(world.TRAIN_PROMPTS))
            print(plans.text_of(plan, groups, prompts, tune.value), end="", flush=True)
        if only_plan.value:
            return
        check_model(model.value)
        folder = local_path(out.value)
        check_writable(folder)
        keep_compiled_programs()
        with lock(folder / ".lock", f"--out={folder}: another process is comparing there; choose another --out"):
            compared = (local_path(data.value), plan, groups, tune.value, model.value, chosen)
            _compare(folder, docs.value, ablations.value, *compared)

    run_command(main)


def _compare(folder: Path, docs: str, ablations: bool, *compared: Any) -> None:
    """Compares, writes what was found, and prints it.

    Args:
      folder: folder of everything that is made.
      docs: folder of documents that take the text and figures; empty for none.
      ablations: whether SPO is compared with itself.
      compared: what `compare` takes besides the folder.
    """
    with stage("importing JAX"):
        from benchmarks.compare_methods import documents
        from benchmarks.compare_methods.command import compare
    kind = documents.ABLATIONS if ablations else documents.RESULTS
    if docs:
        documents.check(local_path(docs), kind)
    found = compare(folder, *compared)
    text = documents.write(folder, found)
    if docs:
        documents.into_documents(folder, local_path(docs), found)
    with printing():
        print(f"\n{text}\nwritten to {folder / f'{kind}.md'}")


def groups_of(
    ablations: bool, only: Sequence[str], labels: Sequence[str]
) -> list[tuple[str, list[contestants.Contestant]]]:
    """Returns the contestants by the labels that they learn from.

    Raises:
      UserError: there are no such labels or contestants.
    """
    unknown = [name for name in labels if name not in LABELS]
    if unknown or not labels:
        raise UserError(f"--labels={','.join(labels)}: expected some of {', '.join(LABELS)}")
    if ablations:
        return [("ablations", contestants.chosen(contestants.ABLATIONS, only))]
    everybody = contestants.chosen(contestants.CONTESTANTS, only)
    groups = {
        "people": everybody,
        "exact": [contestant for contestant in everybody if contestant.name in contestants.ON_EXACT],
    }
    return [(name, groups[name]) for name in LABELS if name in labels and groups[name]]


def judges_of(given: Sequence[str]) -> dict[str, str]:
    """Reads ``people=FOLDER``.

    Raises:
      UserError: it has another form, or there are no such labels.
    """
    found = {}
    for pair in given:
        labels, equals, judge = pair.partition("=")
        if labels not in LABELS or not equals or not judge:
            raise UserError(f"--judges={pair}: expected LABELS=MODEL with one of {', '.join(LABELS)}")
        found[labels] = judge
    return found


if __name__ == "__main__":
    sys.exit(run())
