"""Pictures before and after a run, their scores, grids and the report."""

import dataclasses
import importlib.metadata
import itertools
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jax.sharding import Mesh
from PIL import Image

from spo_jax.core.errors import UserError
from spo_jax.core.files import write_atomic
from spo_jax.core.images import image_grid, to_uint8
from spo_jax.core.statistics import paired_scores
from spo_jax.core.typing import Float, Params
from spo_jax.methods.spo.programs import Networks
from spo_jax.methods.spo.settings import TrainSettings
from spo_jax.models.sampler import Sampler, initial_latents
from spo_jax.parallel.multihost import is_writer
from spo_jax.rewards.evaluate import make_judge
from spo_jax.run.metrics import MetricsWriter, read_metrics
from spo_jax.run.report import write_report

GRID_COLUMNS = 8
REPORTED_GRIDS = 3


class Evaluation:
    """Pictures of the evaluation prompts from fixed noise, their scores, and grids."""

    def __init__(self, networks: Networks, settings: TrainSettings, prompts: Sequence[str], out: Path):
        self.settings, self.out = settings, out
        config = settings.eval
        self.prompts = list(itertools.islice(itertools.cycle(prompts), config.pictures))
        self.latents = initial_latents(config.seed, config.pictures, networks.pipeline.latent_shape)
        self.condition = networks.pipeline.encode_prompts(self.prompts)
        self.sampler = Sampler(
            networks.pipeline,
            steps=config.steps,
            guidance=config.guidance_scale,
            lora_scale=settings.lora.scale,
            batch=min(config.batch, config.pictures),
        )
        self.judge = make_judge(config.reward, networks.spm)
        self.judge.check(self.prompts, networks.pipeline.image_size)

    def pictures(self, lora: Params, count: int | None = None) -> Float[np.ndarray, "b H W 3"]:
        """One picture per prompt (of the first ``count``), not clipped.

        The fresh adapter is the base model: its B is zero.
        """
        count = len(self.prompts) if count is None else min(count, len(self.prompts))
        return self.sampler.draw(self.condition, self.latents[:count], lora)

    def measure(self, pictures: Float[np.ndarray, "b H W 3"]) -> dict[str, Float[np.ndarray, " b"]]:
        """Scores of `pictures` by name.

        Raises:
          UserError: one is not a finite number.
        """
        scores = self.judge.measure(pictures, self.prompts)
        for name, values in scores.items():
            if not np.isfinite(values).all():
                raise UserError(f"{name} of the evaluation pictures is not finite: look at eval.guidance_scale, dtype")
        return scores

    def compare(self, before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> dict:
        """What `summary.json` holds of two `measure`s: means, changes and their standard errors."""
        scores = paired_scores(before, after, self.judge.meanings, self.judge.lower_is_better)
        return {"pictures": len(self.prompts), "scores": scores}

    def grid_writer(self, writer: MetricsWriter) -> Callable[[int, Params], dict[str, float]]:
        """For the loop, with (batch, adapter): the first pictures, as a grid in ``samples/`` and TensorBoard."""

        def write(batch: int, lora: Params) -> dict[str, float]:
            images = self.pictures(lora, self.settings.log.sample_pictures)
            if is_writer():
                grid = image_grid(to_uint8(images), GRID_COLUMNS)
                write_atomic(self.out / "samples" / f"{batch:06d}.png", lambda path: Image.fromarray(grid).save(path))
                writer.write_images(batch, {"samples": grid})
            return {}  # nothing for the curves

        return write

    def write_report(self, summary: dict, before: np.ndarray, after: np.ndarray) -> None:
        """``report.html``: settings, curves, scores, and the pictures before and after."""
        count = min(self.settings.log.sample_pictures, len(before))
        grids = []
        for first in range(0, len(before), count)[:REPORTED_GRIDS]:
            cut = slice(first, first + count)
            pair = (image_grid(_enlarged(to_uint8(images[cut])), GRID_COLUMNS) for images in (before, after))
            names = ", ".join(dict.fromkeys(self.prompts[cut]))
            grids.append((f"Same prompts, same noise: {names}", *pair))
        write_report(
            self.out / "report.html",
            title="SPO run",
            settings=dataclasses.asdict(self.settings),
            rows=read_metrics(self.out / "metrics.jsonl"),
            summary=summary,
            grids=grids,
        )


def _enlarged(images: np.ndarray) -> np.ndarray:
    """Small pictures in whole multiples, so that people see pixels and not a browser's blur."""
    factor = max(1, math.floor(96 / images.shape[1]))
    return images.repeat(factor, 1).repeat(factor, 2)


def versions(mesh: Mesh) -> dict[str, str]:
    """Of Python, the libraries that decide numbers, and the devices that did the work."""
    names = ("spo_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed as a package"
    device = mesh.devices.flat[0]
    return {"python": platform.python_version(), **found, "device": f"{mesh.size} x {device.device_kind}"}
