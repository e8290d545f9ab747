"""A training run from settings to report: builds, evaluates, trains, evaluates, exports."""

import dataclasses
import importlib.metadata
import itertools
import math
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from PIL import Image

from spo_jax.checkpoint import Checkpointer
from spo_jax.core.errors import UserError
from spo_jax.core.files import check_writable, write_atomic, write_json
from spo_jax.core.images import image_grid, to_uint8
from spo_jax.core.typing import Float, Params
from spo_jax.data.prompts import load_prompts
from spo_jax.metrics import MetricsWriter, read_metrics
from spo_jax.models.lora import init_lora
from spo_jax.pipeline.build import load_pipeline
from spo_jax.pipeline.sample import Sampler, initial_latents
from spo_jax.report import write_report
from spo_jax.rewards.evaluate import make_judge
from spo_jax.rewards.paired import paired_scores
from spo_jax.spm.model import load_spm
from spo_jax.spo.loop import Outlets, run_batches
from spo_jax.spo.programs import Networks, compile_programs
from spo_jax.spo.resampler import judged_timesteps
from spo_jax.spo.settings import TrainSettings
from spo_jax.spo.train import TrainState, init_state, make_optimiser
from spo_jax.weights.lora import LoRA, write_lora

GRID_COLUMNS = 8
# May differ between a run and its resumption: they do not change the numbers.
_FREE_FIELDS = ("log", "eval", "max_batches", "num_epochs")


def train(settings: TrainSettings, out: str | os.PathLike, resume: bool = False) -> dict:
    """Runs SPO and leaves LoRA, curves, grids, summary and report in ``out``.

    Args:
      resume: go on from the last checkpoint in ``out``.

    Returns:
      The content of ``summary.json``.

    Raises:
      UserError: a setting, file or folder that does not work, or numbers that are no longer finite.
    """
    begin, out = time.perf_counter(), Path(out)
    _check_folder(out, resume, settings)
    prompts, eval_prompts = load_prompts(settings.prompts), load_prompts(settings.eval.prompts)
    logging.info("reading %s and %s", settings.model, settings.spm.model)
    dtype = jnp.dtype(settings.dtype)
    pipeline = load_pipeline(settings.model, revision=settings.revision or None, dtype=dtype, remat=settings.remat)
    spm = load_spm(settings.spm.model, tokenizer=settings.spm.tokenizer or None, dtype=dtype)
    networks = Networks.build(pipeline, spm, settings.spo, settings.lora.scale)

    run_key = jax.random.key(settings.seed)
    lora = init_lora(jax.random.fold_in(run_key, 0), pipeline.params["unet"], settings.lora.rank)
    state = init_state(lora, make_optimiser(settings.spo))

    evaluation = Evaluation(networks, settings, eval_prompts, out)
    before = evaluation.pictures(lora)
    scores_before = evaluation.measure(before)
    frozen, inputs = networks.frozen(), networks.inputs(prompts)
    first = inputs.rows(np.arange(settings.prompts_per_batch) % len(prompts))
    logging.info("compiling the rollout and the update")
    programs = compile_programs(networks, state, frozen, first)
    logging.info("compiled in %.1f s", programs.compile_seconds)
    checkpointer = Checkpointer(out / "checkpoints", keep=settings.log.keep_checkpoints)
    start, state = _restore(checkpointer, state) if resume else (0, state)
    with MetricsWriter(out, resume_step=start if resume else None) as writer:
        outlets = Outlets(writer, checkpointer, evaluation.grid_writer(writer), {"settings": _plain(settings)})
        timesteps = judged_timesteps(settings.spo, networks.schedule)
        train_key = jax.random.fold_in(run_key, 1)
        state = run_batches(settings, programs, frozen, inputs, timesteps, state, train_key, start, outlets)
    checkpointer.close()

    after = evaluation.pictures(state.lora)
    summary = evaluation.compare(scores_before, evaluation.measure(after)) | {
        "batches": settings.total_batches(len(prompts)),
        "compile_seconds": round(programs.compile_seconds, 2),
        "wall_seconds": round(time.perf_counter() - begin, 2),
        "versions": versions(),
    }
    _export(out, settings, state.lora)
    write_json(out / "summary.json", summary)
    _write_report(out, settings, summary, evaluation, before, after)
    _print_scores(summary, out)
    return summary


class Evaluation:
    """Pictures of the evaluation prompts from fixed noise, their scores, and grids."""

    def __init__(self, networks: Networks, settings: TrainSettings, prompts: list[str], out: Path):
        self.settings, self.out = settings, out
        config = settings.eval
        self.prompts = list(itertools.islice(itertools.cycle(prompts), config.pictures))
        self.latents = initial_latents(config.seed, config.pictures, networks.pipeline.latent_shape)
        self.sampler = Sampler(
            networks.pipeline,
            steps=config.steps,
            guidance=config.guidance_scale,
            lora_scale=settings.lora.scale,
            batch=min(config.batch, config.pictures),
        )
        self.judge = make_judge(config.reward, networks.spm)

    def pictures(self, lora: Params) -> Float[np.ndarray, "b H W 3"]:
        """One picture per prompt, not clipped. The fresh adapter is the base model: its B is zero."""
        return self.sampler(self.prompts, self.latents, lora)

    def measure(self, pictures: Float[np.ndarray, "b H W 3"]) -> dict[str, Float[np.ndarray, " b"]]:
        """Scores of `pictures` by name."""
        return self.judge.measure(pictures, self.prompts)

    def compare(self, before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> dict:
        """What `summary.json` holds of two `measure`s: means, changes and their standard errors."""
        scores = paired_scores(before, after, self.judge.meanings, self.judge.lower_is_better)
        return {"pictures": len(self.prompts), "scores": scores}

    def grid_writer(self, writer: MetricsWriter):
        """What the loop calls with (batch, adapter): the first pictures, as a grid in ``samples/`` and TensorBoard."""
        count = min(self.settings.log.sample_pictures, len(self.prompts))

        def write(batch: int, lora: Params) -> None:
            images = self.sampler(self.prompts[:count], self.latents[:count], lora)
            grid = image_grid(to_uint8(images), GRID_COLUMNS)
            write_atomic(self.out / "samples" / f"{batch:06d}.png", lambda path: Image.fromarray(grid).save(path))
            writer.write_images(batch, {"samples": grid})

        return write


def versions() -> dict[str, str]:
    """Of Python, the libraries that decide numbers, and the device."""
    names = ("spo_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed as a package"
    device = jax.devices()[0]
    return {"python": platform.python_version(), **found, "device": f"{jax.device_count()} x {device.device_kind}"}


def _check_folder(out: Path, resume: bool, settings: TrainSettings) -> None:
    """Refuses what would fail after minutes of work: another run's folder, a run that is not there or has other
    settings, a folder that cannot be written."""
    folder = out / "checkpoints"
    held = folder.is_dir() and any(folder.iterdir())
    if held and not resume:
        raise UserError(f"{out} already holds a run: add --resume to go on with it, or choose another --out")
    if resume and not held:
        raise UserError(f"--resume: no checkpoint in {folder}; leave --resume out to start a run there")
    check_writable(out)
    if resume:
        _check_settings(folder, settings)


def _check_settings(folder: Path, settings: TrainSettings) -> None:
    checkpointer = Checkpointer(folder, read_only=True)
    step = checkpointer.latest_step()
    try:
        saved = checkpointer.read_meta(step)["settings"] if step is not None else None
    except UserError:
        saved = None  # damaged: restoring says so, and takes the one before, which has the same settings
    finally:
        checkpointer.close()
    wanted = _plain(settings)
    differing = sorted(key for key in wanted if key not in _FREE_FIELDS and saved and saved.get(key) != wanted[key])
    if differing:
        told = "; ".join(_difference(key, saved.get(key), wanted[key]) for key in differing)
        raise UserError(f"--resume: the checkpoint {folder / str(step)} has other settings: {told}")


def _plain(settings: TrainSettings) -> dict:
    return dataclasses.asdict(settings)


def _restore(checkpointer: Checkpointer, state: TrainState) -> tuple[int, TrainState]:
    """Batch and state of the last whole checkpoint."""
    step, restored, _ = checkpointer.restore_latest(state)
    logging.info("resuming after batch %d", step)
    return step, restored


def _difference(name: str, saved: Any, wanted: Any) -> str:
    """``spo.beta was 10.0, now 5.0``, and so on for every field below ``name`` that differs."""
    if isinstance(saved, dict) and isinstance(wanted, dict):
        differing = (key for key in wanted if saved.get(key) != wanted[key])
        return ", ".join(_difference(f"{name}.{key}", saved.get(key), wanted[key]) for key in differing)
    return f"{name} was {saved!r}, now {wanted!r}"


def _export(out: Path, settings: TrainSettings, lora: Params) -> None:
    rank = settings.lora.rank
    adapter = LoRA(jax.device_get(lora), settings.lora.scale * rank, rank)
    write_lora(out / "lora.safetensors", adapter, metadata={"base_model": settings.model, "method": "SPO"})


def _write_report(out: Path, settings: TrainSettings, summary: dict, evaluation: Evaluation, before, after) -> None:
    count = min(settings.log.sample_pictures, len(before))
    grids = []
    for first in range(0, len(before), count)[:3]:
        cut = slice(first, first + count)
        pair = (image_grid(_enlarged(to_uint8(images[cut])), GRID_COLUMNS) for images in (before, after))
        names = ", ".join(dict.fromkeys(evaluation.prompts[cut]))
        grids.append((f"Same prompts, same noise: {names}", *pair))
    write_report(
        out / "report.html",
        title="SPO run",
        settings=_plain(settings),
        rows=read_metrics(out / "metrics.jsonl"),
        summary=summary,
        grids=grids,
    )


def _enlarged(images: np.ndarray) -> np.ndarray:
    """Small pictures in whole multiples, so that people see pixels and not a browser's blur."""
    factor = max(1, math.floor(96 / images.shape[1]))
    return images.repeat(factor, 1).repeat(factor, 2)


def _print_scores(summary: dict, out: Path) -> None:
    print(f"\n{summary['pictures']} pairs of pictures, same prompts and noise:")
    for name, score in summary["scores"].items():
        print(
            f"  {name:16s} {score['before']:8.4f} -> {score['after']:8.4f}   "
            f"change {score['change']:+.4f} ± {score['change_se']:.4f}"
        )
    print(f"{summary['wall_seconds']:.0f} s in all; see {out / 'report.html'}")
