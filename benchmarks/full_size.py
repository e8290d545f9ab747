"""The claim at full size: what every method costs at its published settings, beside the hours that were published.

python -m benchmarks.full_size
python -m benchmarks.full_size --only=sd15,sdxl

Operations are counted by `benchmarks.costs` from the programs of the shipped configs, without weights. Hours are
operations over the maker's peak times the share of it that is reached, as in `benchmarks.machines`. Published hours are
copied from where ``source`` says, and compared with nothing but that. The numbers and tables are written to
`benchmarks/results/`; docs/results.md holds the same tables.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags

from benchmarks.costs import CHIPS, PARTS, batches_of, chip_hours, run_costs
from benchmarks.machines import span
from benchmarks.recipes import SHARES
from spo_jax.core.cli import run_command
from spo_jax.core.config_flag import load_config
from spo_jax.core.errors import UserError
from spo_jax.core.files import check_writable, read_json, write_json, write_text
from spo_jax.methods import read_settings

RESULTS = Path(__file__).parent / "results"
NAME = "full_size"


@dataclasses.dataclass(frozen=True)
class Entry:
    """A published recipe.

    Attributes:
      config: name of its shipped config.
      model: the model that it trains.
      title: name of the method.
      prompts: number of its training prompts; 0 if its length does not depend on them.
      published: A100-hours of its authors or of others, as the source gives them; empty if none were found.
      source: where they are from.
      steps: number of optimizer steps in place of the config's, for a recipe of pairs; 0 takes the config's.
      pairs: number of pairs in each of them.
    """

    config: str
    model: str
    title: str
    prompts: int = 0
    published: str = ""
    source: str = ""
    steps: int = 0
    pairs: int = 0


ENTRIES = (
    Entry("sd15", "SD 1.5", "SPO", 4000, "48", "LPO's table, SPO's paper"),
    Entry("spm_sd15", "SD 1.5", "SPO's judge", 0, "32", "the same"),
    Entry("gradspo_sd15", "SD 1.5", "GradSPO, with SPO's judge", 4000),
    Entry("lpo_sd15", "SD 1.5", "LPO", 4000, "23", "LPO's table, with its judge"),
    Entry("lrm_sd15", "SD 1.5", "LPO's judge"),
    Entry("diffusion_dpo_sd15", "SD 1.5", "Diffusion-DPO, as diffusers trains a LoRA"),
    Entry("diffusion_dpo_sd15", "SD 1.5", "Diffusion-DPO", 0, "240; 205", "LPO's table; SmPO's", 2000, 2048),
    Entry("smpo_sd15", "SD 1.5", "SmPO", 0, "41", "SmPO's table, A800"),
    Entry("ddpo_sd15", "SD 1.5", "DDPO, aesthetic score", 45),
    Entry("d3po_sd15", "SD 1.5", "D3PO, with SPO's judge", 4000),
    Entry("sdxl", "SDXL", "SPO", 4000, "118", "LPO's table, SPO's paper"),
    Entry("spm_sdxl", "SDXL", "SPO's judge", 0, "116", "the same"),
    Entry("gradspo_sdxl", "SDXL", "GradSPO, with SPO's judge", 4000),
    Entry("lpo_sdxl", "SDXL", "LPO", 4000, "92", "LPO's table, with its judge"),
    Entry("lrm_sdxl", "SDXL", "LPO's judge"),
    Entry("diffusion_dpo_sdxl", "SDXL", "Diffusion-DPO, as diffusers trains a LoRA"),
    Entry("diffusion_dpo_sdxl", "SDXL", "Diffusion-DPO", 0, "2,560; 976", "LPO's table; SmPO's", 2000, 2048),
    Entry("smpo_sdxl", "SDXL", "SmPO", 0, "151", "SmPO's table, A800"),
    Entry("mapo_sdxl", "SDXL", "MaPO", 0, "834", "SmPO's table"),
)


# The runs that the commands of docs/results.md train for one page of results.
EVENING = {
    "SD 1.5": ("sd15", "gradspo_sd15", "diffusion_dpo_sd15", "smpo_sd15", "d3po_sd15"),
    "SDXL": ("sdxl", "gradspo_sdxl", "diffusion_dpo_sdxl", "smpo_sdxl", "mapo_sdxl"),
}


def count(config: str, prompts: int) -> dict[str, Any]:
    """Counts the operations of a whole run of a config; all pairs of rollouts are valid, which is the most work.

    Args:
      config: name of a shipped config.
      prompts: number of training prompts; 0 if the length does not depend on them.

    Raises:
      UserError: the config is not shipped.
    """
    settings = read_settings(load_config(config))
    costs = run_costs(settings)
    batches = batches_of(settings, prompts)
    return {
        "method": settings.method,
        "batches": batches,
        "batch": settings.batch_sizes(),
        "run": {part: batches * flops for part, flops in costs.of_batch().items()},
        "run_without_training_batches": {part: batches * flops for part, flops in costs.of_batch(0).items()},
        "train_batches": costs.train_batches,
        "unet_forward": costs.unet_forward,
        "each": dict(costs.each),
    }


def row_of(entry: Entry, found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the operations of a recipe: those of its config, or as many times as it has more pairs."""
    row = dict(found[entry.config])
    if entry.steps:
        (field, size), *_ = row["batch"].items()
        longer = entry.steps * entry.pairs / (row["batches"] * size)
        row |= {"batches": entry.steps, "batch": {field: entry.pairs}}
        row["run"] = {part: longer * flops for part, flops in row["run"].items()}
    return row


def work_table(model: str, found: Mapping[str, Mapping[str, Any]]) -> str:
    """Formats the operations of all recipes of a model, by what they are for."""
    head = ("method", "config", "batches of the run", *PARTS, "sum, PFLOP", "UNet evaluations")
    lines = [head, ("---",) * len(head)]
    for entry in _of(model, found):
        row = row_of(entry, found)
        total = sum(row["run"].values())
        parts = (_pflop(row["run"][part]) for part in PARTS)
        evaluations = f"{total / row['unet_forward'] / 1e6:.3g} M"
        lines.append((entry.title, f"`{entry.config}`", _batches(row), *parts, _pflop(total), evaluations))
    return _markdown(lines)


def hours_table(model: str, found: Mapping[str, Mapping[str, Any]]) -> str:
    """Formats the hours of one chip of each kind, beside those that were published."""
    head = ("method", *CHIPS, "published A100-hours", "given by", "share of the peak in these")
    lines = [head, ("---",) * len(head)]
    for entry in _of(model, found):
        row = row_of(entry, found)
        published = (entry.published or "–", entry.source or "–", _shares(row["run"], entry))
        lines.append((entry.title, *_hours(row["run"]), *published))
        least = row["run_without_training_batches"]
        if row["train_batches"] > 1 and least["training"] == 0:
            lines.append((f"{entry.title}, no pair valid", *_hours(least), "", "", _shares(least, entry)))
    return _markdown(lines)


def _of(model: str, found: Mapping[str, Any]) -> Iterable[Entry]:
    return (entry for entry in ENTRIES if entry.model == model and entry.config in found)


def _batches(row: Mapping[str, Any]) -> str:
    """Describes the length: ``1,000 of 40``, with the size in the field that comes first."""
    return f"{row['batches']:,} of {next(iter(row['batch'].values())):,}"


def _hours(run: Mapping[str, float]) -> list[str]:
    return [span(*pair) for pair in chip_hours(sum(run.values())).values()]


def _shares(run: Mapping[str, float], entry: Entry) -> str:
    """Says which share of an A100's peak these operations would be in each of the published hours."""
    hours = [float(value.replace(",", "")) for value in entry.published.split("; ") if value]
    at_peak = chip_hours(sum(run.values()))["A100"][0] * SHARES[0]
    return "; ".join(f"{at_peak / value:.1%}" if at_peak < value / 10 else f"{at_peak / value:.0%}" for value in hours)


def _pflop(flops: float) -> str:
    return f"{flops / 1e15:,.0f}" if flops else "–"


def _markdown(lines: Iterable[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def evening(model: str, found: Mapping[str, Mapping[str, Any]]) -> str:
    """Says how long the runs of `EVENING` take one after the other on eight chips, and the longest of them alone."""
    works = {config: sum(found[config]["run"].values()) for config in EVENING[model] if config in found}
    longest = max(works, key=lambda config: works[config])
    together, alone = (span(*(hours / 8 for hours in chip_hours(flops)["TPU v6e"]))
                       for flops in (sum(works.values()), works[longest]))  # fmt: skip
    chips = f"On 8 chips of TPU v6e the {len(works)} runs of {model} take {together} one after the other"
    return f"{chips}; the longest, `{longest}`, takes {alone}.\n"


def report(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Formats all tables."""
    models = dict.fromkeys(entry.model for entry in ENTRIES)
    texts = [
        f"## {model}\n\n{work_table(model, found)}\n{hours_table(model, found)}\n{evening(model, found)}"
        for model in models
        if any(_of(model, found))
    ]
    return "\n".join(texts)


_ABOUT = """# The claim at full size

Written by `python -m benchmarks.full_size`; [docs/results.md](../../docs/results.md) explains the tables.

"""


def run() -> None:
    """Runs the command."""
    only = flags.DEFINE_list("only", [], "Count only these configs again, and keep what was found of the others.")
    out = flags.DEFINE_string("out", str(RESULTS), "Write the results to this folder.")

    def main(_: Sequence[str]) -> None:
        jax.config.update("jax_platforms", "cpu")  # this machine's accelerators are left alone
        check_writable(out.value)
        folder = Path(out.value)
        prompts = {entry.config: entry.prompts for entry in ENTRIES}
        unknown = [name for name in only.value if name not in prompts]
        if unknown:
            raise UserError(f"--only={unknown[0]}: expected some of {', '.join(prompts)}")
        file = folder / f"{NAME}.json"
        found = read_json(file)["runs"] if file.is_file() else {}
        for config in only.value or prompts:
            found[config] = count(config, prompts[config])
            found = {name: found[name] for name in prompts if name in found}
            write_json(file, {"benchmark": NAME, "runs": found})  # at once, as a config takes up to a minute
            write_text(folder / f"{NAME}.md", _ABOUT + report(found))
        print(report(found), end="")
        print(f"written to {folder / f'{NAME}.md'}")

    run_command(main)


if __name__ == "__main__":
    run()
