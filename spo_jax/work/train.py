"""The work of `spo_jax.train`: a run of any method, from its setup to its report."""

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import logging
from jax.sharding import Mesh

from spo_jax.core.beside import beside
from spo_jax.core.cli import printing
from spo_jax.core.errors import UserError
from spo_jax.core.files import write_json
from spo_jax.core.images import write_png
from spo_jax.core.json_text import finite_or_null
from spo_jax.core.memory import explaining_memory
from spo_jax.core.progress import stage
from spo_jax.core.run_files import BEFORE_AFTER, CHECKPOINTS, SUMMARY
from spo_jax.core.words import duration
from spo_jax.methods import load_method, rules_of
from spo_jax.methods.base import Data, Programs, Result, Run
from spo_jax.parallel.agreement import check_equal, decided, ending_together
from spo_jax.parallel.compiling import compile_program
from spo_jax.parallel.mesh import check_divides, make_mesh
from spo_jax.parallel.multihost import is_writer
from spo_jax.parallel.sharding import make, shapes_of
from spo_jax.run.checkpoint import Checkpointer
from spo_jax.run.diagnosis.curves import Curves
from spo_jax.run.diagnosis.record import write_start
from spo_jax.run.diagnosis.rule import diagnose
from spo_jax.run.diagnosis.shared import scores
from spo_jax.run.facts import facts_of
from spo_jax.run.folder import RunFolder, State, joined, open_folder, restore, run_meta, state_items
from spo_jax.run.guard.guard import Guard
from spo_jax.run.guard.look import BEST, WORSE
from spo_jax.run.loop import Row, RunIO, run_keys
from spo_jax.run.loop import run as run_loop
from spo_jax.run.memory import memory_advice
from spo_jax.run.metrics import FILE_NAME as METRICS
from spo_jax.run.metrics import MetricsWriter, read_metrics
from spo_jax.run.report.images import write_sheet
from spo_jax.run.report.steps import longer
from spo_jax.run.resume import Resume
from spo_jax.run.settings import RunSettings
from spo_jax.run.verdict import verdict
from spo_jax.run.versions import versions
from spo_jax.run.wandb_log import WandbLog


@ending_together()
def train(
    settings: RunSettings, out: Path, resume: Resume, data: Data, begin: float, command: Sequence[str]
) -> dict[str, Any]:
    """Trains, after `spo_jax.train.train` has checked what it can without jax.

    Args:
      settings: settings of any method.
      out: the run's folder.
      resume: what to do with a run that ``out`` holds already.
      data: what the method's ``read_data`` returned.
      begin: `time.perf_counter` at the start of the command.
      command: the flags of the command that started the run.

    Returns:
      The content of ``summary.json``.

    Raises:
      UserError: a setting, file or folder cannot be used, a metric is no longer finite, or memory does not suffice.
      Preempted: the process received SIGTERM, and the run has been saved.
      Interrupted: Ctrl-C was pressed, and the run has been saved.
    """
    check_equal(facts_of(settings, data))
    mesh = make_mesh(settings.mesh)
    for field, size in settings.batch_sizes().items():
        check_divides(field, size, mesh)
    with (
        explaining_memory(lambda: memory_advice(settings, mesh.size)),
        open_folder(out, resume, settings, data.digests) as folder,
        jax.set_mesh(mesh),
    ):
        run = load_method(settings.method).setup(settings, mesh, data, out)
        with _trained(settings, out, folder, mesh, run, data, command) as trained:
            run.export(trained.state, out)
            result = run.finish(trained.state, out)
            seconds = {"compile_seconds": trained.compile_seconds, "wall_seconds": time.perf_counter() - begin}
            if trained.guarded:
                seconds["guard_seconds"] = run.guard.seconds
            summary = _summary(settings, mesh, trained, result, seconds, folder.resuming)
            if is_writer():
                _write_results(settings, out, run, summary, result, command)
                if trained.wandb is not None:
                    trained.wandb.write_summary(summary)
                _print_scores(summary, out)
    return summary


class _Trained(NamedTuple):
    """What training ended with.

    Attributes:
      state: the state that is exported and measured.
      batches: number of batches that were trained.
      guarded: the guard's entry of the summary; empty without one.
      wandb: the log of Weights & Biases.
      compile_seconds: seconds that compiling the programs took.
    """

    state: State
    batches: int
    guarded: dict[str, Any]
    wandb: WandbLog | None
    compile_seconds: float


@contextlib.contextmanager
def _trained(
    settings: RunSettings,
    out: Path,
    folder: RunFolder,
    mesh: Mesh,
    run: Run,
    data: Data,
    command: Sequence[str],
) -> Iterator[_Trained]:
    """Trains, and gives what training ended with; checkpoints and logs are open until the context ends."""
    resuming = folder.resuming
    init_key, train_key = make(lambda: run_keys(settings.seed), mesh)
    state = run.init_state(init_key)

    # Before training: compile the programs, and measure the state in the meantime.
    guard: Guard | None = getattr(run, "guard", None)
    shapes = shapes_of(state)
    # A mistake that the measurement finds ends the command before XLA is done; several processes leave together.
    compiled = beside(lambda: _compile(run, shapes, mesh), awaited=jax.process_count() > 1)
    with _telling_failure(compiled):
        first_row = run.begin(state, resuming)
        if guard is not None:
            first_row = {**first_row, **guard.begin(state, run.total)}
    programs, compile_seconds = compiled.result()

    log = settings.log
    with contextlib.ExitStack() as held:
        keep = {"keep": log.keep_checkpoints, "keep_every": log.keep_every or None, "guard": folder.guard}
        if guard is not None:
            keep["preserved"] = lambda: guard.preserved
        checkpointer = held.enter_context(Checkpointer(out / CHECKPOINTS, **keep))
        start = 0
        if resuming:
            with stage("reading the checkpoint"):
                start, state, meta = restore(checkpointer, state, run.total)
            if guard is not None:
                guard.resume(meta.get("guard"), decided(checkpointer.steps))
            if start == run.total:
                logging.info("all %d batches are trained; what follows them is done again", start)
        outputs = held.enter_context(_outputs(settings, out, start if resuming else None))
        if is_writer():
            write_start(out, settings, run.total, command, *_about_scores(run))
        if first_row and not resuming:
            outputs.curves.write(0, first_row)
        if guard is not None and guard.misses(start):
            outputs.curves.extend(start, guard.look(start, state))

        # Prepare the first batch before the loop: it may take hours, during which SIGTERM has to end the run at once.
        inputs = held.enter_context(contextlib.closing(run.batches(start)))
        batches = itertools.chain(list(itertools.islice(inputs, 1)), inputs)

        # Train.

        def step(number: int, state: State) -> tuple[State, Row]:
            state, row = run.step(programs, batches, number, state, train_key)
            folder.guard()  # before anything of this batch is written
            return state, row

        def evaluate(number: int, state: State) -> Row:
            return _evaluate(run, outputs.curves, out, number, state)

        def export(state: State) -> None:
            if getattr(run, "exports_at_checkpoints", False):
                run.export(state, out)

        meta = run_meta(settings, data.digests)
        io = RunIO(outputs.curves, checkpointer, meta, evaluate, log.eval_every, log.checkpoint_every, export, guard)
        done = start
        if guard is not None and guard.ends:
            logging.warning(
                "the guard has ended this run after batch %d; what follows is done again. "
                "--config.eval.guard=warn trains on",
                start,
            )
        else:
            done, state = run_loop(step, state, range(start, run.total), io, run.progress)
        state, guarded = _guarded(guard, checkpointer, state, done)

        yield _Trained(state, done, guarded, outputs.wandb, compile_seconds)


def _guarded(guard: Guard | None, checkpointer: Checkpointer, state: State, done: int) -> tuple[State, dict[str, Any]]:
    """Returns the state that is exported, which is the best one if the guard ended the run, and the guard's summary."""
    if guard is None:
        return state, {}
    exported = done
    if guard.ends and guard.kept not in (None, done):
        exported = guard.kept
        with stage(f"reading checkpoint {exported}, the best by the held-out scores"):
            try:
                items, _ = checkpointer.restore(exported, state_items(state))
            except UserError as error:
                last = f"move it away and resume the run to export the weights after batch {done}"
                raise UserError(f"{error}; it is the best by the held-out scores: restore it, or {last}") from error
            state = joined(items)
    return state, guard.summary(exported, done)


@contextlib.contextmanager
def _telling_failure(compiled: Future) -> Iterator[None]:
    """Logs that compiling has failed if the context fails as well, because only one of two errors ends the run."""
    try:
        yield
    except Exception:
        failure = compiled.exception() if compiled.done() else None
        if failure is not None:
            logging.error("compiling has failed as well: %s", f"{failure}".splitlines()[0])
        raise


def _compile(run: Run, state: State, mesh: Mesh) -> tuple[Programs, float]:
    """Compiles the programs ahead of time, so that they can never recompile: another shape is an error.

    XLA compiles each in a thread of its own, and Python goes on meanwhile.

    Args:
      run: the run.
      state: shapes of the state.
      mesh: the mesh, which threads do not inherit.

    Returns:
      The compiled programs, and the seconds that this took.
    """
    begin = time.perf_counter()

    def compiled(name: str, program: jax.stages.Traced) -> jax.stages.Compiled:
        with jax.set_mesh(mesh), stage(f"compiling {name}"):
            return compile_program(program)

    with ThreadPoolExecutor() as threads:
        with jax.set_mesh(mesh), stage("tracing the programs"):
            traced = run.trace(state)
        begun = {name: threads.submit(compiled, name, program) for name, program in traced.items()}
        programs = {name: program.result() for name, program in begun.items()}
    return programs, time.perf_counter() - begin


class _Outputs(NamedTuple):
    curves: MetricsWriter
    wandb: WandbLog | None


@contextlib.contextmanager
def _outputs(settings: RunSettings, out: Path, resume_step: int | None):
    """Opens the curves, and Weights & Biases if the settings name a project."""
    with contextlib.ExitStack() as held:
        wandb = None
        if settings.log.wandb and is_writer():
            wandb = WandbLog(out, settings.log, dataclasses.asdict(settings), resume_step is not None)
            held.push(lambda kind, error, traceback: wandb.close(failed=kind is not None))
        curves = MetricsWriter(out, resume_step=resume_step, active=is_writer(), wandb=wandb)
        yield _Outputs(held.enter_context(curves), wandb)


def _evaluate(run: Run, curves: MetricsWriter, out: Path, number: int, state: State) -> Row:
    """Evaluates the run, and keeps the images as ``NAME/NUMBER.png`` and among the curves."""
    row, images = run.evaluate(number, state)
    if images and is_writer():
        for name, image in images.items():
            write_png(out / name / f"{number:06d}.png", image)
        curves.write_images(number, images)
    return row


def _summary(
    settings: RunSettings, mesh: Mesh, trained: _Trained, result: Result, seconds: Mapping[str, float], resumed: bool
) -> dict[str, Any]:
    finished = datetime.now(UTC)
    # Of a resumed run only the last part is known.
    started = {} if resumed else {"started": _moment(finished - timedelta(seconds=seconds["wall_seconds"]))}
    summary = {
        "verdict": verdict(result.summary.get("scores", {})),
        **result.summary,
        **({"guard": trained.guarded} if trained.guarded else {}),
        "method": settings.method,
        "batches": trained.batches,
        **{name: round(value, 2) for name, value in seconds.items()},
        **started,
        "finished": _moment(finished),
        "versions": versions(mesh),
    }
    return finite_or_null(summary)  # a method of the user may measure what is not finite


def _moment(when: datetime) -> str:
    return when.isoformat(timespec="seconds")


def _about_scores(run: Run) -> tuple[Sequence[str], Sequence[str]]:
    """Returns the names of the run's scores that improve by falling, and of those from which it learns."""
    return getattr(run, "lower_is_better", ()), getattr(run, "judge_scores", ())


def _write_results(
    settings: RunSettings, out: Path, run: Run, summary: dict[str, Any], result: Result, command: Sequence[str]
) -> None:
    # Imported here, because matplotlib takes a while and nothing before needs it.
    from spo_jax.run.guard.figure import looks_figure
    from spo_jax.run.report.page import write_report

    write_json(out / SUMMARY, summary)
    if result.pairs:
        write_sheet(out / BEFORE_AFTER, result.pairs)
    model = getattr(settings, "model", "")
    rows = read_metrics(out / METRICS)
    curves = Curves(rows, dataclasses.asdict(settings), result.summary.get("scores", {}), *_about_scores(run))
    rules = [rule for rule in rules_of(settings.method) if rule is not scores]  # the verdict tells these
    looks = run.guard.looks if getattr(run, "guard", None) is not None else []
    ended = (summary.get("guard") or {}).get("stopped_batch") is not None  # and would end again
    counts = (WORSE, BEST)  # for programs, and no curves to look at
    shown = [{name: value for name, value in row.items() if name not in counts} for row in rows]
    figures = [*result.figures, *([looks_figure(looks, run.guard.plan.in_a_row)] if looks else [])]
    with stage("writing the report"):
        write_report(
            out / "report.html",
            title=run.progress.title + (f" on {Path(model).name if Path(model).exists() else model}" if model else ""),
            settings=settings,
            rows=shown,
            summary=summary,
            pairs=result.pairs,
            figures=figures,
            charts=run.charts,
            steps=[*result.steps, *([] if ended else longer(settings, command, out))],
            findings=diagnose(curves, rules),
        )


def _print_scores(summary: dict[str, Any], out: Path) -> None:
    with printing():
        if "scores" in summary:
            of = f"{summary['images']} pairs of images, same prompts and noise" if "images" in summary else "scores"
            print(f"\n{of}:")
        for name, score in summary.get("scores", {}).items():
            before, after = (_fixed(score[when], "8.4f") for when in ("before", "after"))
            error = "" if score["change_se"] is None else f" ± {score['change_se']:.4f}"
            print(f"  {name:20s} {before} -> {after}   change {_fixed(score['change'], '+.4f')}{error}")
        print(f"\n{summary['verdict']}")
        if "guard" in summary:
            print(summary["guard"]["text"])
        print(f"{duration(summary['wall_seconds'])} in all; see {out / 'report.html'}")


def _fixed(value: float | None, form: str) -> str:
    return "not finite" if value is None else format(round(value, 4) + 0.0, form)  # and no -0.0000
