"""Memory and hours of SPO by machine: what fits, before anything is downloaded.

python -m benchmarks.machines

Memory comes from the formula in `spo_jax/methods/spo/memory.py`, with the largest batches that fit, and from
`benchmarks.aot` where the same was compiled for the chip. Hours are operations, counted from the layers, over the
maker's peak for dense bfloat16 times the share of it that is reached, 40 to 20 %; all pairs are valid, which is the
most work. The tables and their numbers are written to `benchmarks/results/`; docs/machines.md holds the same tables.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from benchmarks.compiled import RESULTS, compiled_bytes, errors, is_of, records, settings_of_record
from benchmarks.recipes import MACHINES, RECIPES, SHARES, Machine, Recipe, fit, hours, settings_of, work
from spo_jax.core.cli import run_command
from spo_jax.core.config_flag import load_config
from spo_jax.core.files import check_writable, write_json, write_text
from spo_jax.core.words import counted
from spo_jax.methods import read_settings
from spo_jax.methods.common.decoding import ELSEWHERE, ON_TPU
from spo_jax.methods.spo.memory import GIB, Memory, estimate
from spo_jax.methods.spo.settings import SPOTrainSettings

PROMPTS = (500, 4000)
_PROGRAMS = (("rollout", "collect"), ("update", "update"))


def rows(recipe: Recipe, found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns a row for every machine: what fits with each decoder, how that is known, and the hours.

    Args:
      recipe: the recipe.
      found: what was compiled.
    """
    return [_row(recipe, machine, found) for machine in MACHINES]


def _row(recipe: Recipe, machine: Machine, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    record = _record(recipe, machine, found)
    if record:
        settings, fits = settings_of_record(record), True
        settings = _with(settings, decode_chunk=settings.spo.decode_chunk or ON_TPU)  # SDXL's has a number of its own
    else:
        settings, _, fits = fit(recipe, machine)
    row: dict[str, Any] = {"machine": dataclasses.asdict(machine), "config": recipe.config}
    for name, decoder in (("exact", "vae"), ("distilled", recipe.distilled_id)):
        settings = _with(settings, decoder=decoder)
        memory = estimate(settings, recipe.sizes, machine.devices)
        gib = {"rollout": memory.of_rollout / GIB, "update": memory.of_update / GIB}
        if name == "exact" and record:
            gib = {part: compiled_bytes(record, program) / GIB for part, program in _PROGRAMS}
        tflop = work(recipe, settings)
        row[name] = {
            "batch": _batch(settings, machine.devices),
            "gib": gib,
            "fits": fits,
            "known": "compiled" if name == "exact" and record else "computed",
            "tflop_a_prompt": tflop,
            "hours": {str(count): hours(machine, tflop, count) for count in PROMPTS},
        }
    return row


def _record(recipe: Recipe, machine: Machine, found: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Returns the record of this machine, if both programs were compiled and fit."""
    for record in found:
        programs = record["programs"]
        is_same = record["topology"] == machine.topology and is_of(record, recipe.config)
        if is_same and all(programs.get(name, {}).get("fits") for _, name in _PROGRAMS):
            return record
    return None


def _batch(settings: SPOTrainSettings, devices: int = 1) -> str:
    """Describes a device's batch: ``10 prompts, 10 pairs, 4 decoded, weights cut``."""
    parts = [counted(settings.prompts_per_batch // devices, "prompt")]
    parts.append(counted(settings.spo.chunk(devices) // devices, "pair"))
    shown = "judged" if settings.spo.judged == "noisy" else "decoded"
    parts.append(f"{settings.spo.decode_chunk or ELSEWHERE} {shown}")
    return ", ".join(parts + ["weights cut"] * (settings.mesh.fsdp != 1))


def table(found: Sequence[dict[str, Any]]) -> str:
    """Formats rows of one recipe as a Markdown table."""
    passes = " and ".join(f"{count:,}" for count in PROMPTS)
    head = (
        "machine",
        "a device has at a time",
        "memory, exact decoder",
        f"{passes} prompts once, exact",
        "memory, distilled decoder",
        f"{passes} prompts once, distilled",
    )
    lines = [head, ("---",) * len(head)]
    for row in found:
        cells = [row["machine"]["name"], row["exact"]["batch"]]
        for decoder in ("exact", "distilled"):
            cells += [_memory(row["machine"], row[decoder]), _hours(row[decoder])]
        lines.append(tuple(cells))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _memory(machine: dict[str, Any], cell: dict[str, Any]) -> str:
    peak = max(cell["gib"].values())
    text = f"{peak:.1f} of {machine['gib']} GiB"
    return f"{text}, {cell['known']}" if cell["fits"] else f"does not fit: {text}, {cell['known']}"


def _hours(cell: dict[str, Any]) -> str:
    """Formats the spans of hours as ``38–76 min, 5.0–10 h``."""
    return ", ".join(span(*pair) for pair in cell["hours"].values()) if cell["fits"] else "–"


def span(least: float, most: float) -> str:
    """Formats a span of hours: minutes below two hours, and no more than two digits."""
    unit = "min" if most < 2 else "h"
    values = [60 * value if unit == "min" else value for value in (least, most)]
    return "–".join(f"{value:.0f}" if value >= 9.95 else f"{value:.1f}" for value in values) + f" {unit}"


# What can be changed


def knobs(recipe: Recipe) -> dict[str, Memory]:
    """Returns the memory of one device with the published batch of a device, and with one field changed at a time."""
    batch, less = recipe.batches[0], recipe.batches[1]
    decode = read_settings(load_config(recipe.config)).spo.decode_chunk or ELSEWHERE
    base = settings_of(recipe, batch, 1, decode, cut=False)
    small = settings_of(recipe, 1, 1, 1, cut=False)
    rank = base.lora.rank
    other = 16 if rank > 16 else 64
    changed = {
        f"{batch} prompts, {batch} pairs at a time, {decode} decoded, bfloat16, rank {rank}": base,
        f"`prompts_per_batch={less}`": dataclasses.replace(base, prompts_per_batch=less),
        f"`spo.train_chunk={less}`": _with(base, train_chunk=less),
        "`spo.decode_chunk=1`": _with(base, decode_chunk=1),
        f"`spo.decoder={recipe.distilled_id}`": _with(base, decoder=recipe.distilled_id),
        "`dtype=float32`": dataclasses.replace(base, dtype="float32"),
        f"`lora.rank={other}`": dataclasses.replace(base, lora=dataclasses.replace(base.lora, rank=other)),
        "1 prompt, 1 pair at a time, 1 decoded": small,
        "the same, distilled decoder": _with(small, decoder=recipe.distilled_id),
    }
    return {name: estimate(settings, recipe.sizes) for name, settings in changed.items()}


def _with(settings: SPOTrainSettings, **fields: Any) -> SPOTrainSettings:
    return dataclasses.replace(settings, spo=dataclasses.replace(settings.spo, **fields))


def knobs_table(found: dict[str, Memory]) -> str:
    """Formats the memory of changed settings as a Markdown table."""
    lines = [("config", "rollout", "update"), ("---",) * 3]
    for name, memory in found.items():
        lines.append((name, f"{memory.of_rollout / GIB:.1f} GiB", f"{memory.of_update / GIB:.1f} GiB"))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


# By judge


def judges(recipe: Recipe) -> list[list[tuple[str, SPOTrainSettings]]]:
    """Returns settings of one device by how candidates are judged, in two groups.

    The first has the published batches of a device; the second one pair and one image at a time, and LPO's prompts.
    """
    spo, lpo = (_of_a_device(name) for name in (recipe.config, recipe.lpo))
    same = dataclasses.replace(spo, prompts_per_batch=lpo.prompts_per_batch)
    groups = []
    for policy, chunks in ((spo, {}), (same, {"train_chunk": 1, "decode_chunk": 1})):
        exact, latent = _with(policy, **chunks), _with(lpo, **chunks)
        distilled = _with(exact, decoder=recipe.distilled_id)
        groups.append([("SPO, autoencoder", exact), ("SPO, distilled decoder", distilled), ("LPO", latent)])
    return groups


def _of_a_device(config: str) -> SPOTrainSettings:
    """Returns the settings of a published config with a fourth of its batches, which are those of four devices."""
    settings = read_settings(load_config(config))
    return settings.with_batch_sizes({field: size // 4 for field, size in settings.batch_sizes().items()})


def judges_table(recipe: Recipe) -> str:
    """Formats the memory of a recipe by judge as a Markdown table; peaks are shares of each group's first one."""
    lines = [
        ("candidates are judged by", "a device has at a time", "rollout", "update", "the larger of both"),
        ("---",) * 5,
    ]
    for group in judges(recipe):
        memories = [estimate(settings, recipe.sizes) for _, settings in group]
        for (name, settings), memory in zip(group, memories, strict=True):
            gib = [f"{count / GIB:.1f} GiB" for count in (memory.of_rollout, memory.of_update)]
            lines.append((name, _batch(settings), *gib, f"{memory.peak / memories[0].peak:.0%}"))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


# Everything


def accuracy(found: Sequence[dict[str, Any]]) -> str:
    """Says how far the formula is off, over all compiled programs."""
    off = [formula / compiled - 1 for *_, compiled, formula in errors(found)]
    return f"The formula is between {min(off):+.1%} and {max(off):+.1%} off in {len(off)} compiled programs."


def report(found: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], str]:
    """Returns all numbers, and the tables of all recipes as Markdown."""
    by_recipe = {recipe: rows(recipe, found) for recipe in RECIPES}
    compared = ("config", "topology", "program", "compiled_gib", "formula_gib")
    numbers = {
        "benchmark": "machines",
        "shares_of_peak": SHARES,
        "rows": [row for many in by_recipe.values() for row in many],
        "formula": [dict(zip(compared, row, strict=True)) for row in errors(found)],
    }
    texts = [f"## {recipe.title}\n\n{table(many)}" for recipe, many in by_recipe.items()]
    texts += [f"## {recipe.title}: by judge\n\n{judges_table(recipe)}" for recipe in RECIPES]
    texts += [f"## {recipe.title}: one field changed\n\n{knobs_table(knobs(recipe))}" for recipe in RECIPES]
    return numbers, "\n".join([*texts, f"{accuracy(found)}\n"])


_ABOUT = """# Memory and hours by machine

Written by `python -m benchmarks.machines`; [docs/machines.md](../../docs/machines.md) explains the tables.

"""


def run() -> None:
    """Runs the command."""
    out = flags.DEFINE_string("out", str(RESULTS), "Write the results to this folder.")

    def main(_: Sequence[str]) -> None:
        check_writable(out.value)
        numbers, text = report(records())
        folder = Path(out.value)
        write_json(folder / "machines.json", numbers)
        write_text(folder / "machines.md", _ABOUT + text)
        print(text, end="")
        print(f"written to {folder / 'machines.md'}")

    run_command(main)


if __name__ == "__main__":
    run()
