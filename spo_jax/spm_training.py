"""Training a step-aware preference model, from settings to report: builds, measures, trains, measures, exports."""

import contextlib
import dataclasses
import itertools
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from spo_jax.core.files import check_writable, write_atomic, write_json
from spo_jax.core.statistics import paired_scores
from spo_jax.data.preferences.format.format import Preferences, open_preferences
from spo_jax.data.preferences.format.loading import LoadedBatch, batches
from spo_jax.data.tokenizer import Tokenizer
from spo_jax.methods.common.before_after import versions
from spo_jax.methods.common.latents import latent_cache, latent_file
from spo_jax.methods.spm.accuracy import Agreement, Evaluator, mean_and_error, summarised
from spo_jax.methods.spm.init import Start
from spo_jax.methods.spm.plot import accuracy_figure
from spo_jax.methods.spm.programs import Networks, Programs, compile_programs
from spo_jax.methods.spm.settings import SPMTrainSettings
from spo_jax.methods.spm.split import Split
from spo_jax.methods.spm.update import SPMState, flat_row, init_state, make_optimiser, state_shardings
from spo_jax.parallel.mesh import check_divides, make_mesh
from spo_jax.parallel.multihost import is_writer, local_positions
from spo_jax.parallel.sharding import make, to_host
from spo_jax.rewards.common.preference_model import write_spm
from spo_jax.run import loop
from spo_jax.run.checkpoint import Checkpointer
from spo_jax.run.folder import CHECKPOINTS, Resume, open_folder, restore, run_meta
from spo_jax.run.metrics import MetricsWriter, read_metrics
from spo_jax.run.report import as_svg, write_report
from spo_jax.spm_evaluation import PLAIN_LINE, SPM_LINE, load_clip, load_frozen_pipeline, relabelled, write_accuracy

CHARTS = {
    "loss": ("Loss", "of the pairs of a step; log 2 = 0.693 for a model that cannot tell them apart, 0 for a sure one"),
    "accuracy": ("Accuracy on the step's own pairs", "those that are no ties; before the step"),
    "accuracy_at": ("The same by timestep", ""),
    "eval_accuracy": ("Accuracy on held-out pairs, by timestep", "ties count a half"),
    "grad_norm": ("Gradient norm", "global, before clipping"),
    "learning_rate": ("Learning rate", ""),
    "logit_scale": ("Scale of the cosine", "exp(logit_scale)"),
    "seconds": ("Seconds per step", "where the time goes"),
    "pairs_per_second": ("Pairs per second", ""),
}
_TELLING = loop.Telling(
    title="SPM",
    shown=lambda row: {"loss": f"{row['loss']:.3f}", "accuracy": f"{row.get('accuracy', math.nan):.0%}"},
    watched=("loss", "grad_norm"),
    hint="Lower learning_rate, or use float32",
)


def train_spm(settings: SPMTrainSettings, out: str | os.PathLike, resume: Resume | None = None) -> dict:
    """Trains a preference model and leaves it, curves, accuracies, summary and report in ``out``.

    Args:
      resume: what to do with a run that is in ``out`` already; by default it is refused.

    Returns:
      The content of ``summary.json``.

    Raises:
      UserError: a setting, file or folder that does not work, or numbers that are no longer finite.
      Preempted: SIGTERM came; the run has been saved.
    """
    begin, out = time.perf_counter(), Path(out)
    pairs = [open_preferences(settings.data_dir, split) for split in (settings.train_split, settings.eval_split)]
    digests = [pairs[0].digest]
    resuming = open_folder(out, resume or Resume(), settings, digests)
    mesh = make_mesh(settings.mesh)
    check_divides("batch_size", settings.batch_size, mesh)
    check_divides("eval.batch", settings.eval.batch, mesh)
    with jax.set_mesh(mesh):
        run = _Run(settings, out, mesh, *pairs)
        return run.train(resuming, run_meta(settings, digests), begin)


class _Run:
    """What is built once: networks, data, programs to measure with."""

    def __init__(self, settings: SPMTrainSettings, out: Path, mesh: Mesh, train: Preferences, held_out: Preferences):
        self.settings, self.out, self.mesh = settings, out, mesh
        pipeline = load_frozen_pipeline(settings, mesh)
        init_key, self.train_key = make(lambda: loop.run_keys(settings.seed), mesh)
        self.start = load_clip(settings, settings.init, init_key, mesh, random=settings.init_random)
        self.networks = Networks(pipeline, self.start.clip, settings, mesh)
        tokenizer = Tokenizer(self.start.tokenizer)
        self.networks.check_timesteps(settings.eval.timesteps)
        if settings.cache_latents:
            check_writable(settings.cache_latents)
            latent_file(**self._latents(train))  # of something else: said before hours of relabelling
        # Last, for it may take hours.
        labels = relabelled(settings, out / "labels", mesh, train, held_out)
        self.split, evaluated = (
            Split.of(pairs, pipeline, tokenizer, new) for pairs, new in zip((train, held_out), labels, strict=True)
        )
        self.frozen = self.networks.frozen()
        self.evaluator = Evaluator(self.networks, self.frozen, evaluated, mesh)

    def train(self, resuming: bool, meta: dict, begin: float) -> dict:
        """All of the run; gives its summary."""
        settings, log = self.settings, self.settings.log
        state = fresh_state(settings, self.start, self.mesh)
        keep = {"keep": log.keep_checkpoints, "keep_every": log.keep_every or None}
        with Checkpointer(self.out / CHECKPOINTS, **keep) as checkpointer:
            done = 0
            if resuming:
                done, state = restore(checkpointer, state, settings.num_steps)
            with (
                MetricsWriter(self.out, resume_step=done if resuming else None, active=is_writer()) as writer,
                contextlib.closing(self._loaded(done)) as loaded,
            ):
                look = _Look(self.evaluator, self.out)
                if not resuming:
                    writer.write(0, look(0, state))
                first = next(loaded)
                logging.info("compiling the training step")
                programs = compile_programs(self.networks, state, self.frozen, self._fed(first))
                logging.info("compiled in %.1f s", programs.compile_seconds)
                step = self._step(programs, itertools.chain([first], loaded))
                outlets = loop.Outlets(writer, checkpointer, meta, look, log.eval_every, log.checkpoint_every)
                state = loop.run(step, state, range(done, settings.num_steps), outlets, _TELLING)
        params = to_host(state.params)
        if look.step != settings.num_steps:  # there was nothing left to do
            look(settings.num_steps, state)
        summary = {
            "steps": settings.num_steps,
            "pairs": len(self.split.pairs),
            "compile_seconds": round(programs.compile_seconds, 2),
            "wall_seconds": round(time.perf_counter() - begin, 2),
            "versions": versions(self.mesh),
        }
        if is_writer():
            self._export(params)
            summary = self._report(summary, look.last)
        return summary

    def _latents(self, pairs: Preferences) -> dict[str, Any]:
        """Arguments of `latent_file` and `latent_cache`."""
        settings = self.settings
        return {
            "folder": Path(settings.cache_latents) / settings.train_split,
            "preferences": pairs,
            "pipeline": self.networks.pipeline,
            "side": self.networks.side,
            "posterior": settings.posterior == "sample",
        }

    def _loaded(self, start: int) -> Iterator[LoadedBatch]:
        """This process's parts of the batches from number ``start`` on; all pairs take part, judged or not."""
        settings, pairs, read = self.settings, self.split.pairs, None
        loading = dataclasses.asdict(settings.loading)
        if settings.cache_latents:
            read = latent_cache(**self._latents(pairs), **loading).pair
        return batches(
            pairs,
            np.arange(len(pairs), dtype=np.int32),
            side=self.networks.side,
            batch_size=settings.batch_size,
            seed=settings.seed,
            start=start,
            positions=local_positions(settings.batch_size),
            read=read,
            **loading,
        )

    def _fed(self, batch: LoadedBatch):
        return self.networks.feed(self.split.feed(batch))

    def _step(self, programs: Programs, loaded: Iterator[LoadedBatch]) -> Callable:
        """For the loop; the batches come in their numbers' order."""

        def step(number: int, state: SPMState) -> tuple[SPMState, loop.Row]:
            del number  # the state counts too, and its count is what the draws follow from
            begin = time.perf_counter()
            rows = self._fed(next(loaded))
            middle = time.perf_counter()
            state, metrics = programs.step(state, self.frozen, rows, self.train_key)
            row = flat_row(jax.device_get(metrics), self.networks.timesteps)
            end = time.perf_counter()
            speed = {"seconds/loading": middle - begin, "seconds/step": end - middle}
            return state, {**row, **speed, "pairs_per_second": self.settings.batch_size / (end - begin)}

        return step

    def _export(self, params) -> None:
        write_spm(
            self.out / "spm", self.start.clip.config, params, self.start.tokenizer, self.settings.export_dtype,
            self.networks.pipeline.kind,
        )  # fmt: skip

    def _report(self, summary: dict, after: Agreement) -> dict:
        before, lines = _read_agreement(self.out, self.evaluator.told), {SPM_LINE: after}
        if before is not None:
            # Before its first step the model scores as the plain CLIP that it was made from.
            lines |= {PLAIN_LINE: before} if self.start.is_plain else {"before training": before}
            named = [{f"pair accuracy/t{t:04d}": v for t, v in x.items()} for x in (before, after)]
            judged = (
                "as PickScore does on the clean pictures" if self.split.relabelled else "as people did; ties count half"
            )
            meanings = dict.fromkeys(named[0], f"share of held-out pairs that are ordered {judged}")
            summary = {"scores": paired_scores(*named, meanings), **summary}
        write_accuracy(self.out, lines)
        write_json(self.out / "summary.json", summary)
        caption = "Mean over held-out pairs with one standard error; chance is a half."
        write_report(
            self.out / "report.html",
            title="SPM run",
            settings=dataclasses.asdict(self.settings),
            rows=read_metrics(self.out / "metrics.jsonl"),
            summary=summary,
            figures=[("Accuracy against timestep", caption, as_svg(accuracy_figure(lines)))],
            charts=CHARTS,
        )
        print(f"{summary['wall_seconds']:.0f} s in all; see {self.out / 'report.html'}")
        return summary


class _Look:
    """For the loop, with (step, state): held-out accuracies, as a part of the row and in ``evaluation/``."""

    def __init__(self, evaluator: Evaluator, out: Path):
        self.evaluator, self.out = evaluator, out
        self.last: Agreement = {}
        self.step = -1

    def __call__(self, step: int, state: SPMState) -> dict[str, float]:
        self.last, self.step = self.evaluator.measure(state.params), step
        if is_writer():
            write_json(self.out / "evaluation" / f"{step:06d}.json", summarised(self.last))
            if step == 0:
                _write_agreement(self.out, self.last, self.evaluator.told)
        return {f"eval_accuracy/t{t:04d}": mean_and_error(values)[0] for t, values in self.last.items()}


def _agreement_file(out: Path) -> Path:
    return out / "evaluation" / "before.npz"


def _write_agreement(out: Path, measured: Agreement, told: str) -> None:
    arrays = {str(t): values for t, values in measured.items()}
    write_atomic(_agreement_file(out), lambda path: np.savez(path, told=told, **arrays))


def _read_agreement(out: Path, told: str) -> dict | None:
    """What was measured before the first step; a resumed run finds it on the disk.

    None where it was on other pairs or noises than those of ``told``: the two cannot be paired.
    """
    path = _agreement_file(out)
    if not path.is_file():
        return None
    with np.load(path) as arrays:
        if str(arrays["told"]) != told:
            return None
        return {int(t): arrays[t] for t in arrays.files if t != "told"}


def fresh_state(settings: SPMTrainSettings, start: Start, mesh: Mesh) -> SPMState:
    """The state before the first step, cut over the mesh; the weights of ``start`` are used up."""
    optimiser = make_optimiser(settings)
    shapes = jax.eval_shape(lambda params: init_state(params, optimiser), start.params)
    make_state = jax.jit(
        lambda params: init_state(params, optimiser), out_shardings=state_shardings(shapes, mesh), donate_argnums=0
    )
    return make_state(start.params)
