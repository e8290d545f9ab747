"""Measures the images per second and core of the loader of preference pairs: ``python -m benchmarks.loading``.

JPEGs are made for the measurement, then read, decoded, resized and put into batches as in training. The results also
hold the rate at which a training step of the preference model takes images, from the cost of its layers and the chip's
peak, and so the number of cores that have to load for each chip.
"""

import contextlib
import datetime
import importlib.metadata
import io
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from PIL import Image

from benchmarks.common import RESULTS, device_info, spread_of
from benchmarks.flops import PEAKS
from spo_jax.core.cli import run_command
from spo_jax.core.files import check_writable, write_json
from spo_jax.data.preferences.loading import batches
from spo_jax.parallel.mesh import make_mesh

# (side of the stored images, side that training takes)
SIZES = ((512, 512), (1024, 512), (512, 1024), (1024, 1024))
CHIPS = {"TPU v5e": "TPU v5e", "TPU v5p": "TPU v5", "A100": "A100", "H100": "H100"}  # to their names in `PEAKS`
# TFLOP of one call at batch 1, counted from the layers; a multiplication and an addition are two operations.
COSTS = {
    "sd15": {"side": 512, "unet": 0.803, "encode": 1.117, "decode": 2.515},
    "sdxl": {"side": 1024, "unet": 6.761, "encode": 4.879, "decode": 10.470},
}
_VISION = 0.335
_TEXT = 0.047


class MadePairs:
    """Pairs of JPEGs in memory: smooth colours under some noise, which compress about as photographs do.

    Args:
      count: number of pairs.
      side: side of the images in pixels.
    """

    digest = "made on the spot"

    def __init__(self, count: int, side: int):
        self._files = [_jpeg(seed, side) for seed in range(2 * count)]

    def __len__(self) -> int:
        return len(self._files) // 2

    def images(self, row: int) -> tuple[bytes, bytes]:
        """Returns both images of a pair, encoded."""
        return self._files[2 * row], self._files[2 * row + 1]

    @property
    def image_bytes(self) -> float:
        """The mean size of a file."""
        return sum(map(len, self._files)) / len(self._files)


def _jpeg(seed: int, side: int, quality: int = 90) -> bytes:
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (side // 16, side // 16, 3), np.uint8))
    smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), np.float32)
    noisy = np.clip(smooth + random.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noisy).save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def step_tflop(size: str, cached: bool) -> float:
    """Returns the TFLOP of a training step for one pair.

    Two images are encoded (unless latents are cached), predicted with and without the prompt, decoded and scored; the
    backward pass of the preference model costs twice its forward pass.

    Args:
      size: a key of `COSTS`.
      cached: whether latents are cached.
    """
    cost = COSTS[size]
    frozen = 2 * ((0 if cached else cost["encode"]) + 2 * cost["unet"] + cost["decode"])
    return frozen + 3 * (2 * _VISION + _TEXT)


def required(utilisation: float) -> dict[str, dict[str, float]]:
    """Returns, by model and chip, the images per second that a chip takes at this share of its peak."""
    peaks = dict(PEAKS)
    return {
        size: {
            chip: 2 * utilisation * peaks[kind] / (1e12 * step_tflop(size, cached=False))
            for chip, kind in CHIPS.items()
        }
        for size in COSTS
    }


def measure(pairs: MadePairs, side: int, batch: int, repeats: int, threads: int) -> dict[str, Any]:
    """Measures the loader alone; rates per core are those of processor time, so other programs do not change them.

    Args:
      pairs: pairs to load.
      side: side of the loaded images.
      batch: pairs of a batch.
      repeats: timed batches.
      threads: threads that load.
    """
    stream = batches(pairs, np.arange(len(pairs)), side=side, batch_size=batch, threads=threads)
    seconds = []
    with contextlib.closing(stream):
        for _ in range(3):  # two batches are loaded ahead and would seem to take no time
            next(stream)
        begin_core = time.process_time()
        for _ in range(repeats):
            begin = time.perf_counter()
            next(stream)
            seconds.append(time.perf_counter() - begin)
        core_seconds = time.process_time() - begin_core
    images = 2 * batch * repeats
    return {
        "seconds": spread_of(seconds),
        "pictures_per_second": images / sum(seconds),
        "pictures_per_second_and_core": images / core_seconds,
        "picture_bytes": pairs.image_bytes,
    }


def table(found: dict[str, Any]) -> list[str]:
    """Formats the results as lines of text."""
    results = found["results"]
    lines = ["stored -> trained     file KiB     images/s     images/s/core"]
    for name, row in results["loader"].items():
        rate = row["pictures_per_second"]
        rate_of_core = row["pictures_per_second_and_core"]
        lines.append(f"{name:20s} {row['picture_bytes'] / 1024:9.0f} {rate:12.1f} {rate_of_core:17.1f}")
    share = found["settings"]["utilisation"]
    lines.append(f"one chip at {share:.0%} of its peak takes    images/s   cores that load for it")
    for size, chips in results["needed_pictures_per_second"].items():
        for chip, rate in chips.items():
            cores = results["cores_per_chip"][size][chip]
            lines.append(f"{size:8s} {chip:24s} {rate:13.1f} {cores:12.2f}")
    return lines


def run_sizes(count: int, batch: int, repeats: int, threads: int, utilisation: float) -> dict[str, Any]:
    """Measures all sizes, and computes the cores that a chip needs, at the slowest rate for its model's size.

    Args:
      count: pairs to make.
      batch: pairs of a batch.
      repeats: timed batches.
      threads: threads that load.
      utilisation: share of its peak at which a chip computes.
    """
    loader = {}
    slowest = {}
    for stored, side in SIZES:
        row = measure(MadePairs(count, stored), side, batch, repeats, threads)
        loader[f"{stored} -> {side}"] = row
        slowest[side] = min(slowest.get(side, math.inf), row["pictures_per_second_and_core"])
    rates = required(utilisation)
    cores = {
        size: {chip: rate / slowest[COSTS[size]["side"]] for chip, rate in chips.items()}
        for size, chips in rates.items()
    }
    return {
        "loader": loader,
        "tflop_per_pair": {
            size: {"pictures": step_tflop(size, False), "cached latents": step_tflop(size, True)} for size in COSTS
        },
        "needed_pictures_per_second": rates,
        "cores_per_chip": cores,
    }


def run() -> None:
    """Runs the command."""
    values = {
        "pairs": flags.DEFINE_integer("pairs", 16, "Make this number of pairs.", lower_bound=1),
        "batch": flags.DEFINE_integer("batch", 8, "Load this number of pairs per batch.", lower_bound=1),
        "repeats": flags.DEFINE_integer("repeats", 8, "Time this number of batches.", lower_bound=1),
        "threads": flags.DEFINE_integer("threads", 2, "Load with this number of threads.", lower_bound=1),
        "utilisation": flags.DEFINE_float(
            "utilisation", 0.5, "Assume that a chip computes at this share of its peak.", lower_bound=0, upper_bound=1
        ),
        "out": flags.DEFINE_string("out", RESULTS, "Write the results to this folder."),
    }

    def main(_: Sequence[str]) -> None:
        settings = {name: flag.value for name, flag in values.items()}
        out = settings.pop("out")
        count = settings.pop("pairs")
        check_writable(out)
        with jax.set_mesh(make_mesh()):
            results = run_sizes(count, **settings)
            found = {
                "benchmark": "loading",
                "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "device": device_info(),
                "versions": {name: importlib.metadata.version(name) for name in ("grain", "numpy", "pillow")},
                "settings": {"pairs": count, **settings},
                "results": results,
            }
        path = Path(out) / "loading.json"
        write_json(path, found)
        print("\n".join([*table(found), f"written to {path}"]))

    run_command(main)


if __name__ == "__main__":
    run()
