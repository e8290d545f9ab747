"""Measures how the cost of a batch grows: ``python -m benchmarks.scaling`` (table, JSON and plot).

The seconds of a whole batch, rollout and update, are measured against the number of prompts, the number of candidates,
the size of the latents and the number of devices, which are changed one at a time. The expected seconds beside them
follow from the work counted from the layers and the seconds of the first point. Every pair is trained on (threshold 0),
so that the work does not depend on the judge.

Devices share one batch. On accelerators, n devices should take an n-th of the time. On a CPU they are simulated and
share its cores: there the time should not change, and its growth is the cost of cutting the work.
"""

import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags

from benchmarks import train
from benchmarks.common import define_flags, memory_explained, record, result_path, save
from benchmarks.subjects import Subject, build, read_settings
from spo_jax.core.cli import run_command
from spo_jax.core.errors import UserError
from spo_jax.core.files import check_writable, write_atomic, write_text
from spo_jax.methods.spo.settings import SPOTrainSettings
from spo_jax.parallel.mesh import make_mesh

PROMPTS = 8
DEVICES = 8
# Fewer steps than in a real run, because there are many points; the slopes are the same.
BASE = (
    f"prompts_per_batch={PROMPTS}",
    f"spo.train_batch_size={PROMPTS}",
    "spo.threshold=0.0",
    "spo.num_steps=8",
    "spo.divert_start_step=4",
)
TITLES = {
    "prompts": "prompts of a batch",
    "candidates": "candidates of a pool",
    "resolution": "latents' side",
    "devices": "devices, same batch",
}
Point = dict[str, float]


def points(axis: str, size: str) -> list[int]:
    """Returns the values of an axis that are measured."""
    if axis == "resolution":
        return [32, 48, 64, 96] if size == "sd15" else [8, 12, 16, 24]
    if axis == "devices":
        return [n for n in (1, 2, 4, 8) if n <= jax.device_count()]
    return {"prompts": [2, 4, 8, 16], "candidates": [2, 4, 8]}[axis]


def measure(
    axis: str, values: Sequence[int], size: str, overrides: Sequence[str], decoder: str, runs: tuple[int, int]
) -> list[Point]:
    """Measures seconds, and computes expected ones, for every value of an axis.

    Args:
      axis: a key of `TITLES`.
      values: values of the axis.
      size: size of the models.
      overrides: changes of the settings.
      decoder: decoder of the images.
      runs: number of warm-up runs and number of timed runs.
    """
    rows: list[Point] = []
    for value in values:
        print(f"{TITLES[axis]}: {value}")
        devices = value if axis == "devices" else 1
        changed = {"prompts": ["prompts_per_batch"], "candidates": ["spo.num_candidates"]}.get(axis, [])
        settings = read_settings(size, [*BASE, *overrides, *(f"{field}={value}" for field in changed)], decoder=decoder)
        with jax.set_mesh(make_mesh(devices=jax.devices()[:devices])):
            subject = build(size, settings, decoder)
            if axis == "resolution":
                subject = with_latents(subject, value)
            found = train.measure(subject, *runs)
        work = found["flops_rollout"] + found["flops_update"]
        if axis == "devices" and jax.devices()[0].platform != "cpu":
            work /= value
        rows.append(
            {
                "value": value,
                "seconds": found["seconds"]["median"],
                "seconds_rollout": found["seconds_rollout"],
                "seconds_update": found["seconds_update"],
                "compile_seconds": found["compile_seconds"],
                "work": work,
            }
        )
    return with_expectations(rows)


def with_latents(subject: Subject, side: int) -> Subject:
    """Returns the subject with the same networks, but latents of ``side`` times ``side``."""
    unet = subject.spo.pipeline.unet
    return subject.with_unet(unet.clone(config=dataclasses.replace(unet.config, sample_size=side)))


def with_expectations(rows: Sequence[Point]) -> list[Point]:
    """Adds the seconds that each point takes if only work counts: the first point's, times the ratio of their work."""
    first = rows[0]
    return [{**row, "expected_seconds": first["seconds"] * row["work"] / first["work"]} for row in rows]


def slope(rows: Sequence[Point], name: str) -> float | None:
    """Returns the exponent of growth: the slope of the least-squares line through the logarithms of value and ``name``.

    It is None where all values are equal.
    """
    xs, ys = ([math.log(row[key]) for row in rows] for key in ("value", name))
    mean_x = sum(xs) / len(xs)
    mean_y = sum(ys) / len(ys)
    spread = sum((x - mean_x) ** 2 for x in xs)
    return sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread if spread else None


def table(results: dict[str, Any]) -> str:
    """Formats a Markdown table for every axis, with the slopes."""
    parts = []
    for axis, found in results.items():
        rows = "\n".join(
            f"| {row['value']} | {row['seconds']:.3g} | {row['seconds_rollout']:.3g} | {row['seconds_update']:.3g} "
            f"| {row['expected_seconds']:.3g} |"
            for row in found["points"]
        )
        slopes = ", ".join(
            f"{name} {'-' if value is None else f'{value:.2f}'}"
            for name, value in (("measured", found["slope"]), ("expected", found["expected_slope"]))
        )
        parts.append(
            f"| {TITLES[axis]} | s per batch | rollout | update | expected |\n|---|---|---|---|---|\n{rows}\n\n"
            f"Slope (log-log): {slopes}.\n"
        )
    return "\n".join(parts)


def plot(path: Path, results: dict[str, Any], title: str) -> None:
    """Draws a panel for every axis, with logarithmic scales."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(results), figsize=(3.4 * len(results), 3.2), squeeze=False)
    for panel, (axis, found) in zip(panels[0], results.items(), strict=True):
        rows = found["points"]
        values = [row["value"] for row in rows]
        panel.loglog(values, [row["seconds"] for row in rows], "o-", color="tab:blue", label="measured")
        panel.loglog(values, [row["expected_seconds"] for row in rows], "--", color="tab:gray", label="expected")
        panel.set_xticks(values, [str(value) for value in values], minor=False)
        panel.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        panel.set_xlabel(TITLES[axis])
        panel.set_ylabel("seconds per batch")
        panel.legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    write_atomic(path, lambda temporary: figure.savefig(temporary, dpi=150))
    pyplot.close(figure)


def run() -> None:
    """Runs the command."""
    values = define_flags(repeats=3)
    axes = flags.DEFINE_list("axes", list(TITLES), f"Change these, one at a time: {', '.join(TITLES)}.")

    def main(_: Sequence[str]) -> None:
        value = {key: flag.value for key, flag in values.items()}
        unknown = [axis for axis in axes.value if axis not in TITLES]
        if unknown or not axes.value:
            raise UserError(f"--axes={','.join(axes.value)}: expected some of {', '.join(TITLES)}")
        check_writable(value["out"])
        size = value["size"]
        decoder = value["decoder"]
        runs = (value["warmup"], value["repeats"])
        settings = read_settings(size, [*BASE, *value["set"]], decoder=decoder)
        rows: dict[str, list[Point]] = {}
        with memory_explained():
            for axis in axes.value:  # an axis takes minutes, so every one is written when it is done
                rows[axis] = measure(axis, points(axis, size), size, value["set"], decoder, runs)
                path = write(value["out"], settings, size, decoder, rows)
        print(path.with_suffix(".md").read_text(), end="")

    # Before anything touches a device. It has no effect on accelerators.
    jax.config.update("jax_num_cpu_devices", DEVICES)
    run_command(main)


def write(
    folder: str | os.PathLike, settings: SPOTrainSettings, size: str, decoder: str, rows: dict[str, list[Point]]
) -> Path:
    """Writes JSON, table and plot; returns the path of the JSON.

    Args:
      folder: folder to write to.
      settings: settings of the run.
      size: size of the models.
      decoder: decoder of the images.
      rows: points of every axis.
    """
    results = {
        axis: {"points": found, "slope": slope(found, "seconds"), "expected_slope": slope(found, "expected_seconds")}
        for axis, found in rows.items()
    }
    with jax.set_mesh(make_mesh()):
        found = record("scaling", settings, size, decoder, results)
    path = result_path(folder, found)
    write_text(path.with_suffix(".md"), table(results))
    plot(path.with_suffix(".png"), results, f"{size} on {found['versions']['device']}")
    save(folder, found, show=False)
    return path


if __name__ == "__main__":
    run()
