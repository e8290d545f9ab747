"""Pictures per second and core that the loader of preference pairs makes: ``python -m benchmarks.loading``.

JPEGs are made on the spot, and read, decoded, resized and put into batches as training does it. Beside that, the rate
at which a training step of the preference model eats pictures, by the cost model of its layers and the chip's peak;
so many cores have to load for each chip.
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
from spo_jax.data.preferences.loading import batches

from benchmarks.common import RESULTS, device_info, spread_of
from benchmarks.flops import PEAKS
from spo_jax.core.cli import run_command
from spo_jax.core.files import check_writable, write_json
from spo_jax.parallel.mesh import make_mesh

# (side of the stored pictures, side that training wants)
SIZES = ((512, 512), (1024, 512), (512, 1024), (1024, 1024))
CHIPS = {"TPU v5e": "TPU v5e", "TPU v5p": "TPU v5", "A100": "A100", "H100": "H100"}  # to names in `PEAKS`
# Operations of one call at batch 1, in TFLOP, multiplications and additions apart, counted from the layers.
COSTS = {
    "sd15": {"side": 512, "unet": 0.803, "encode": 1.117, "decode": 2.515},
    "sdxl": {"side": 1024, "unet": 6.761, "encode": 4.879, "decode": 10.470},
}
_VISION, _TEXT = 0.335, 0.047


class MadePairs:
    """Pairs of JPEGs in memory: smooth colours under some noise, which compress about as photographs do."""

    digest = "made on the spot"

    def __init__(self, count: int, side: int):
        self._files = [_jpeg(seed, side) for seed in range(2 * count)]

    def __len__(self) -> int:
        return len(self._files) // 2

    def images(self, row: int) -> tuple[bytes, bytes]:
        """Both pictures of a pair, encoded."""
        return self._files[2 * row], self._files[2 * row + 1]

    @property
    def picture_bytes(self) -> float:
        """Mean size of a file."""
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
    """TFLOP of a training step for one pair.

    Two pictures are encoded (unless latents are cached), predicted with and without the prompt, decoded and scored; a
    backward pass through the preference model is twice its forward pass.
    """
    cost = COSTS[size]
    frozen = 2 * ((0 if cached else cost["encode"]) + 2 * cost["unet"] + cost["decode"])
    return frozen + 3 * (2 * _VISION + _TEXT)


def needed(utilisation: float) -> dict[str, dict[str, float]]:
    """Model to chip to the pictures per second that one chip eats when it computes at that share of its peak."""
    peaks = dict(PEAKS)
    return {
        size: {
            chip: 2 * utilisation * peaks[kind] / (1e12 * step_tflop(size, cached=False))
            for chip, kind in CHIPS.items()
        }
        for size in COSTS
    }


def measure(pairs: MadePairs, side: int, batch: int, repeats: int, threads: int) -> dict[str, Any]:
    """The loader with nothing else to do; rates per core are of processor time, whatever else the machine does."""
    stream = batches(pairs, np.arange(len(pairs)), side=side, batch_size=batch, threads=threads)
    seconds = []
    with contextlib.closing(stream):
        for _ in range(3):  # two batches are loaded ahead and would come for nothing
            next(stream)
        begin_core = time.process_time()
        for _ in range(repeats):
            begin = time.perf_counter()
            next(stream)
            seconds.append(time.perf_counter() - begin)
        core_seconds = time.process_time() - begin_core
    pictures = 2 * batch * repeats
    return {
        "seconds": spread_of(seconds),
        "pictures_per_second": pictures / sum(seconds),
        "pictures_per_second_and_core": pictures / core_seconds,
        "picture_bytes": pairs.picture_bytes,
    }


def table(found: dict[str, Any]) -> list[str]:
    """What is printed."""
    lines = ["stored -> trained     file KiB   pictures/s   pictures/s/core"]
    for name, row in found["results"]["loader"].items():
        rates = row["pictures_per_second"], row["pictures_per_second_and_core"]
        lines.append(f"{name:20s} {row['picture_bytes'] / 1024:9.0f} {rates[0]:12.1f} {rates[1]:17.1f}")
    share = found["settings"]["utilisation"]
    lines.append(f"one chip at {share:.0%} of its peak needs  pictures/s   cores that load for it")
    for size, chips in found["results"]["needed_pictures_per_second"].items():
        for chip, rate in chips.items():
            cores = found["results"]["cores_per_chip"][size][chip]
            lines.append(f"{size:8s} {chip:24s} {rate:13.1f} {cores:12.2f}")
    return lines


def run_sizes(count: int, batch: int, repeats: int, threads: int, utilisation: float) -> dict[str, Any]:
    """All sizes, and how many cores a chip needs at the slowest of its model's."""
    loader, slowest = {}, {}
    for stored, side in SIZES:
        row = measure(MadePairs(count, stored), side, batch, repeats, threads)
        loader[f"{stored} -> {side}"] = row
        slowest[side] = min(slowest.get(side, math.inf), row["pictures_per_second_and_core"])
    rates = needed(utilisation)
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
    """The command."""
    values = {
        "pairs": flags.DEFINE_integer("pairs", 16, "Pairs that are made.", lower_bound=1),
        "batch": flags.DEFINE_integer("batch", 8, "Pairs per batch.", lower_bound=1),
        "repeats": flags.DEFINE_integer("repeats", 8, "Batches on the clock.", lower_bound=1),
        "threads": flags.DEFINE_integer("threads", 2, "That load.", lower_bound=1),
        "utilisation": flags.DEFINE_float(
            "utilisation", 0.5, "Share of its peak at which a chip is taken to compute.", lower_bound=0, upper_bound=1
        ),
        "out": flags.DEFINE_string("out", RESULTS, "Folder of the results."),
    }

    def main(_: Sequence[str]) -> None:
        settings = {name: flag.value for name, flag in values.items()}
        out, count = settings.pop("out"), settings.pop("pairs")
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
