"""Measures the images per second of every reward, ours against its original's computation in PyTorch.

python -m benchmarks.rewards
python -m benchmarks.rewards --rewards=pickscore,hpsv21 --batch=2

Both sides score the same images for the same prompts with the same random weights, in float32 and on the same number of
cores, each in a process of its own. Both are warmed up, and then their batches alternate, in turns of changing order.
`benchmarks.reward_peers` describes the peers. Rates per core are those of processor time, which other programs on the
machine hardly change; a ratio on the clock is given too. What is measured of a batch:

- the whole: prompts to tokens, images to pixels, both towers, the score. Every image has a prompt of its own, and
  nothing is kept from one batch to the next.
- the preparation alone: resize, crop and normalisation of 8-bit images. Decoding of files is on neither side.

The results of the rewards that are named replace those in the file; the others stay, so that rewards can be measured
one after the other.
"""

import datetime
import importlib.metadata
import os
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from PIL import Image

from benchmarks.against_torch import SIDES, Contender
from benchmarks.places import RESULTS
from spo_jax.core.cli import run_command
from spo_jax.core.errors import UserError
from spo_jax.core.files import check_writable, read_json, write_json, write_text

REWARDS = ("pickscore", "clip_score", "aesthetic", "hpsv21", "image_reward")
SIZES = ("true", "tiny")
PROMPTS = (
    "a red star over a quiet harbour",
    "an oil painting of a fox that reads a newspaper",
    "macro photograph of dew on a spider web, morning light",
    "a small robot waters plants on a balcony",
    "isometric drawing of a library in a tree",
    "portrait of an old sailor, charcoal on paper",
    "two cats asleep on a warm radiator",
    "the skyline of a city made of books",
)
# Rates, and the seconds that they are computed from.
_RATES = {
    "images_per_second": "seconds",
    "images_per_second_and_core": "core_seconds",
    "prepared_per_second_and_core": "core_seconds_prepared",
}
# Both sides are float32, and differ by the order of their sums in dozens of layers.
_AGREE = 1e-3


def make_images(count: int, side: int) -> np.ndarray:
    """Makes smooth images under some noise; returns uint8 [count side side 3]."""
    rng = np.random.default_rng(0)
    images = []
    for _ in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (max(1, side // 32),) * 2 + (3,), np.uint8))
        smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), np.float32)
        images.append(np.clip(smooth + rng.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8))
    return np.stack(images)


def measure(name: str, *, size: str, batch: int, image_side: int, threads: int, repeats: int) -> dict[str, Any]:
    """Measures a reward on both sides.

    Args:
      name: name of the reward.
      size: one of `SIZES`.
      batch: images of a batch.
      image_side: their height and width in pixels.
      threads: cores that each side may use.
      repeats: timed batches.

    Raises:
      UserError: there is too little memory.
      RuntimeError: the sides give different scores.
    """
    prompts = [f"{PROMPTS[row % len(PROMPTS)]}, {row}" for row in range(batch)]  # all are different
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images.npy"
        np.save(images, make_images(batch, image_side))
        common = {"images": str(images), "prompts": prompts}
        places = {"name": name, "size": size, "folder": f"{folder}/weights", "threads": threads}
        rows: dict[str, list[dict[str, float]]] = {who: [] for who in SIDES}
        sides: dict[str, Contender] = {}
        try:
            # Theirs first, because it writes the weights that ours reads.
            sides["theirs"] = Contender("theirs", {**places, **common}, threads, "benchmarks.reward_contender")
            spec = sides["theirs"].about.pop("spec")
            sides["ours"] = Contender("ours", {"spec": spec, **common}, threads, "benchmarks.reward_contender")
            for turn in range(repeats):
                for who in SIDES if turn % 2 == 0 else reversed(SIDES):
                    rows[who].append(sides[who].batch())
        finally:
            for contender in sides.values():
                contender.close()
    about = {who: sides[who].about for who in SIDES}
    difference = score_difference(*(about[who].pop("scores") for who in SIDES))
    if difference > _AGREE:
        raise RuntimeError(f"{name}: the sides differ by {difference:.2g} of the largest score")
    return {"sides": about, "score_difference": difference, **results(rows, batch)}


def score_difference(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Returns the largest difference over the largest score."""
    return float(np.abs(np.subtract(ours, theirs)).max() / np.abs(theirs).max())


def results(rows: dict[str, list[dict[str, float]]], batch: int) -> dict[str, Any]:
    """Computes rates from the median batches, and their ratios, where more than 1 is better for ours.

    Args:
      rows: the batches of each side.
      batch: images of a batch.
    """
    found: dict[str, Any] = {}
    for who in SIDES:
        columns = {key: [row[key] for row in rows[who]] for key in rows[who][0]}
        peak = max(columns.pop("peak_memory_bytes"))
        rates = {name: batch / statistics.median(columns[key]) for name, key in _RATES.items()}
        found[who] = {**rates, "peak_memory_bytes": peak, **columns}
    ours, theirs = (found[who] for who in SIDES)
    found["ratios"] = {name: ours[name] / theirs[name] for name in _RATES}
    found["ratios"]["peak_memory"] = theirs["peak_memory_bytes"] / ours["peak_memory_bytes"]
    return found


# Results


def table(found: dict[str, Any]) -> str:
    """Formats the results as a Markdown document."""
    settings, device = found["settings"], found["device"]
    head = (
        "reward", "parameters", "images a second and core", "PyTorch", "ratio", "ratio on the clock",
        "prepared a second and core", "PyTorch", "ratio", "peak of memory", "PyTorch", "scores differ by",
    )  # fmt: skip
    lines = [head, ("---",) * len(head)]
    for name, row in found["rewards"].items():
        sides, ratios = [row[who] for who in SIDES], row["ratios"]
        lines.append((
            f"`{name}`", f"{row['sides']['theirs']['parameters'] / 1e6:.0f} M",
            *(f"{side['images_per_second_and_core']:.3g}" for side in sides),
            f"{ratios['images_per_second_and_core']:.2f}", f"{ratios['images_per_second']:.2f}",
            *(f"{side['prepared_per_second_and_core']:.3g}" for side in sides),
            f"{ratios['prepared_per_second_and_core']:.2f}",
            *(f"{side['peak_memory_bytes'] / 2**30:.1f} GiB" for side in sides), f"{row['score_difference']:.0e}",
        ))  # fmt: skip
    about = (
        "# Rewards against PyTorch\n\n"
        f"Written by `python -m benchmarks.rewards`; its docstring says what is measured. {device['host']}, "
        f"{settings['threads']} cores, networks of {settings['size']} size with random weights, float32, batches of "
        f"{settings['batch']} images of {settings['image_side']} pixels, medians of {settings['repeats']} batches; "
        f"{', '.join(f'{name} {version}' for name, version in found['versions'].items())}. "
        "Ratios above 1 are better for ours.\n\n"
    )
    return about + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _record(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the content of a results file, before anything is measured."""
    import jax

    from benchmarks.common import device_info
    from spo_jax.parallel.mesh import make_mesh

    with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):
        device = device_info()
    return {
        "benchmark": "rewards",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": device,
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "torch", "transformers", "pillow")},
        "settings": settings,
        "rewards": {},
    }


def run() -> None:
    """Runs the command."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    named = {
        "rewards": flags.DEFINE_list("rewards", list(REWARDS), f"Measure these rewards: {', '.join(REWARDS)}."),
        "size": flags.DEFINE_enum("size", "true", SIZES, "Build networks of this size; tiny is for trying it out."),
        "batch": flags.DEFINE_integer("batch", 4, "Score this number of images at a time.", lower_bound=1),
        "image_side": flags.DEFINE_integer("image_side", 512, "Make images of this size.", lower_bound=32),
        "threads": flags.DEFINE_integer("threads", cores, "Let each side use this number of cores.", lower_bound=1),
        "repeats": flags.DEFINE_integer("repeats", 5, "Time this number of batches.", lower_bound=1),
        "out": flags.DEFINE_string("out", RESULTS, "Write the results to this folder."),
    }

    def main(_: Sequence[str]) -> None:
        value = {name: flag.value for name, flag in named.items()}
        rewards, out = value.pop("rewards"), Path(value.pop("out"))
        for name in rewards:
            if name not in REWARDS:
                raise UserError(f"--rewards={name}: expected some of {', '.join(REWARDS)}")
        check_writable(out)
        found = _record(value)
        path = out / f"rewards-{found['device']['platform']}.json"
        if path.is_file():
            known = read_json(path)
            if all(known[key] == found[key] for key in ("device", "versions", "settings")):
                found["rewards"] = known["rewards"]
        for name in rewards:
            found["rewards"][name] = measure(name, **value)
            found["rewards"] = {known: found["rewards"][known] for known in REWARDS if known in found["rewards"]}
            write_json(path, found)
            write_text(path.with_suffix(".md"), table(found))
        print(table(found))
        print(f"written to {path}")

    run_command(main)


if __name__ == "__main__":
    run()
