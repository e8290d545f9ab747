"""A training run from settings to report: builds, evaluates, trains, evaluates, exports."""

import os
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import logging
from jax.sharding import Mesh

from spo_jax.core.files import write_json
from spo_jax.core.trees import take_rows
from spo_jax.core.typing import Key
from spo_jax.data.prompts import load_prompts
from spo_jax.methods.common.before_after import Evaluation, versions
from spo_jax.methods.spo.batch import batch_rows, run_batches
from spo_jax.methods.spo.programs import Networks, compile_programs
from spo_jax.methods.spo.resampler import judged_timesteps
from spo_jax.methods.spo.settings import TrainSettings
from spo_jax.methods.spo.update import TrainState, init_state, make_optimiser
from spo_jax.models.stable_diffusion.pipeline import load_pipeline
from spo_jax.nn.lora import init_lora
from spo_jax.parallel.mesh import check_divides, make_mesh
from spo_jax.parallel.multihost import is_writer
from spo_jax.parallel.sharding import make
from spo_jax.rewards.common.preference_model import load_spm, read_config, resolve_model
from spo_jax.run.checkpoint import Checkpointer
from spo_jax.run.folder import CHECKPOINTS, Resume, open_folder, restore, run_meta
from spo_jax.run.loop import Outlets, run_keys
from spo_jax.run.metrics import MetricsWriter
from spo_jax.weights.lora import write_lora


def train(settings: TrainSettings, out: str | os.PathLike, resume: Resume | None = None) -> dict:
    """Runs SPO and leaves LoRA, curves, grids, summary and report in ``out``.

    Args:
      resume: what to do with a run that is in ``out`` already; by default it is refused.

    Returns:
      The content of ``summary.json``.

    Raises:
      UserError: a setting, file or folder that does not work, or numbers that are no longer finite.
      Preempted: SIGTERM came; the run has been saved.
    """
    begin, out = time.perf_counter(), Path(out)
    prompts, eval_prompts = load_prompts(settings.prompts), load_prompts(settings.eval.prompts)
    resuming = open_folder(out, resume or Resume(), settings, prompts)
    mesh = make_mesh(settings.mesh)
    check_divides("prompts_per_batch", settings.prompts_per_batch, mesh)
    check_divides("spo.train_batch_size", settings.spo.train_batch_size, mesh)
    with jax.set_mesh(mesh):
        return _train(settings, out, resuming, mesh, prompts, eval_prompts, begin)


def _train(
    settings: TrainSettings, out: Path, resuming: bool, mesh: Mesh, prompts: list[str], eval_prompts: list[str],
    begin: float,
) -> dict:  # fmt: skip
    networks = load_networks(settings, mesh)
    init_key, train_key = make(lambda: run_keys(settings.seed), mesh)
    state = fresh_state(settings, networks, init_key)

    evaluation = Evaluation(networks, settings, eval_prompts, out)
    before = evaluation.pictures(state.lora)
    scores_before = evaluation.measure(before)
    frozen, inputs = networks.frozen(), networks.inputs(prompts)
    logging.info("compiling the rollout and the update")
    programs = compile_programs(networks, state, frozen, take_rows(inputs, batch_rows(settings, len(prompts), 0)))
    logging.info("compiled in %.1f s", programs.compile_seconds)
    log = settings.log
    with Checkpointer(out / CHECKPOINTS, keep=log.keep_checkpoints, keep_every=log.keep_every or None) as checkpointer:
        start, total = 0, settings.total_batches(len(prompts))
        if resuming:
            start, state = restore(checkpointer, state, total)
        with MetricsWriter(out, resume_step=start if resuming else None, active=is_writer()) as writer:
            draw = evaluation.grid_writer(writer)
            look = lambda batch, state: draw(batch, state.lora)  # noqa: E731
            meta = run_meta(settings, prompts)
            outlets = Outlets(writer, checkpointer, meta, look, log.sample_every, log.checkpoint_every)
            timesteps = judged_timesteps(settings.spo, networks.schedule)
            state = run_batches(settings, programs, frozen, inputs, timesteps, state, train_key, start, outlets)
    if is_writer():
        metadata = {"base_model": settings.model, "method": "SPO"}
        write_lora(out / "lora.safetensors", settings.lora.adapter(state.lora), metadata=metadata)

    after = evaluation.pictures(state.lora)
    summary = evaluation.compare(scores_before, evaluation.measure(after)) | {
        "batches": settings.total_batches(len(prompts)),
        "compile_seconds": round(programs.compile_seconds, 2),
        "wall_seconds": round(time.perf_counter() - begin, 2),
        "versions": versions(mesh),
    }
    if is_writer():
        write_json(out / "summary.json", summary)
        evaluation.write_report(summary, before, after)
        _print_scores(summary, out)
    return summary


def load_networks(settings: TrainSettings, mesh: Mesh) -> Networks:
    """Pipeline and preference model of a run, their weights on the mesh."""
    logging.info("reading %s and %s", settings.model, settings.spm.model)
    read_config(resolve_model(settings.spm.model))  # whether it is there at all: the rest takes its time
    shared = {"dtype": jnp.dtype(settings.dtype), "mesh": mesh}
    pipeline = load_pipeline(
        settings.model, revision=settings.revision or None, remat=settings.remat, vae=settings.vae, base=settings.base,
        **shared,
    )  # fmt: skip
    spm = load_spm(settings.spm.model, tokenizer=settings.spm.tokenizer or None, judges=pipeline.kind, **shared)
    return Networks.build(pipeline, spm, settings.spo, settings.lora.scale, mesh)


def fresh_state(settings: TrainSettings, networks: Networks, key: Key) -> TrainState:
    """The state before the first batch, whole on every device."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), networks.pipeline.params["unet"])
    optimiser = make_optimiser(settings.spo)
    return make(lambda key: init_state(init_lora(key, shapes, settings.lora.rank), optimiser), networks.mesh, key)


def _print_scores(summary: dict, out: Path) -> None:
    print(f"\n{summary['pictures']} pairs of pictures, same prompts and noise:")
    for name, score in summary["scores"].items():
        error = "" if score["change_se"] is None else f" ± {score['change_se']:.4f}"
        print(f"  {name:16s} {score['before']:8.4f} -> {score['after']:8.4f}   change {score['change']:+.4f}{error}")
    print(f"{summary['wall_seconds']:.0f} s in all; see {out / 'report.html'}")
