"""The work of `spo_jax.train`: a run of any method, from its setup to its report."""

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import logging
from jax.sharding import Mesh

from spo_jax.core.beside import beside
from spo_jax.core.errors import UserError
from spo_jax.core.images import write_png
from spo_jax.core.memory import explaining_memory, return_unused_memory
from spo_jax.core.progress import stage
from spo_jax.core.run_files import CHECKPOINTS
from spo_jax.core.typing import Key
from spo_jax.methods import load_method
from spo_jax.methods.base import Data, Programs, Run
from spo_jax.parallel.agreement import check_equal, decided, ending_together
from spo_jax.parallel.compiling import compile_program
from spo_jax.parallel.mesh import check_divides, make_mesh
from spo_jax.parallel.multihost import is_writer
from spo_jax.parallel.sharding import make, shapes_of
from spo_jax.run.checkpoint import Checkpointer
from spo_jax.run.diagnosis.record import write_start
from spo_jax.run.facts import facts_of
from spo_jax.run.folder import RunFolder, State, joined, open_folder, restore, run_meta, state_items
from spo_jax.run.guard.guard import Guard
from spo_jax.run.loop import Row, RunIO, run_keys
from spo_jax.run.loop import run as run_loop
from spo_jax.run.memory import memory_advice
from spo_jax.run.metrics import MetricsWriter
from spo_jax.run.resume import Resume
from spo_jax.run.settings import RunSettings
from spo_jax.run.wandb_log import WandbLog
from spo_jax.work.outcome import Trained, about_scores, print_scores, summary_of, write_results


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
    with contextlib.ExitStack() as held:
        held.enter_context(explaining_memory(lambda: memory_advice(settings, mesh.size)))
        folder = held.enter_context(open_folder(out, resume, settings, data.digests))
        held.enter_context(jax.set_mesh(mesh))
        run = load_method(settings.method).setup(settings, mesh, data, out)
        guard: Guard | None = getattr(run, "guard", None)

        # Before training.
        init_key, train_key = make(lambda: run_keys(settings.seed), mesh)
        state = run.init_state(init_key)
        prepared = _prepared(run, guard, state, mesh, folder.resuming)
        checkpointer = held.enter_context(_checkpointer(settings, out, guard, folder))
        start, state = _restored(run, guard, checkpointer, state) if folder.resuming else (0, state)
        outputs = held.enter_context(_outputs(settings, out, start if folder.resuming else None))
        if is_writer():
            write_start(out, settings, run.total, command, *about_scores(run))
        if prepared.first_row and not folder.resuming:
            outputs.curves.write(0, prepared.first_row)
        if guard is not None and guard.misses(start):
            outputs.curves.extend(start, guard.look(start, state))

        # Training.
        io = _run_io(run, guard, settings, out, outputs.curves, checkpointer, run_meta(settings, data.digests))
        batches = held.enter_context(_batches(run, start))
        return_unused_memory()  # Compiling has left some.
        done, state = _looped(run, prepared.programs, batches, start, state, train_key, folder, io)
        state, guarded = _guarded(guard, checkpointer, state, done)

        # After training.
        run.export(state, out)
        result = run.finish(state, out)
        seconds = {"compile_seconds": prepared.compile_seconds, "wall_seconds": time.perf_counter() - begin}
        if guarded:
            seconds["guard_seconds"] = guard.seconds
        summary = summary_of(settings, mesh, Trained(done, guarded, seconds, folder.resuming), result)
        if is_writer():
            write_results(settings, out, run, summary, result, command)
            if outputs.wandb is not None:
                outputs.wandb.write_summary(summary)
            print_scores(summary, out)
    return summary


# Before training


class _Prepared(NamedTuple):
    """What training starts with besides the state.

    Attributes:
      programs: the compiled programs.
      compile_seconds: seconds that compiling them took.
      first_row: what was measured before training, as the first row of the curves.
    """

    programs: Programs
    compile_seconds: float
    first_row: Row


def _prepared(run: Run, guard: Guard | None, state: State, mesh: Mesh, resuming: bool) -> _Prepared:
    """Compiles the programs, and measures the state in the meantime."""
    shapes = shapes_of(state)
    # A mistake that the measurement finds ends the command before XLA is done; several processes leave together.
    compiled = beside(lambda: _compile(run, shapes, mesh), awaited=jax.process_count() > 1)
    with _telling_failure(compiled):
        first_row = run.begin(state, resuming)
        if guard is not None:
            first_row = {**first_row, **guard.begin(state, run.total)}
    return _Prepared(*compiled.result(), first_row)


@contextlib.contextmanager
def _telling_failure(compiled: Future) -> Iterator[None]:
    """Logs that compiling has failed if the context fails as well, because only one of two errors ends the run."""
    try:
        yield
    except Exception:
        failure = compiled.exception() if compiled.done() else None
        if failure is not None:
            logging.error("compiling has failed as well: %s", (str(failure) or type(failure).__name__).splitlines()[0])
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


def _checkpointer(settings: RunSettings, out: Path, guard: Guard | None, folder: RunFolder) -> Checkpointer:
    log = settings.log
    kept = {} if guard is None else {"preserved": lambda: guard.preserved}
    return Checkpointer(out / CHECKPOINTS, log.keep_checkpoints, log.keep_every or None, folder.guard, **kept)


def _restored(run: Run, guard: Guard | None, checkpointer: Checkpointer, state: State) -> tuple[int, State]:
    """Reads the number of finished batches, the state after them, and what the guard saw of them."""
    with stage("reading the checkpoint"):
        start, state, meta = restore(checkpointer, state, run.total)
    if guard is not None:
        guard.resume(meta.get("guard"), decided(checkpointer.steps))
    if start == run.total:
        logging.info("all %d batches are trained; what follows them is done again", start)
    return start, state


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


# Training


@contextlib.contextmanager
def _batches(run: Run, start: int) -> Iterator[Iterator[Any]]:
    """Opens the inputs of the batches from ``start`` on.

    The first one is prepared at once: that may take hours, during which SIGTERM has to end the run at once.
    """
    with contextlib.closing(run.batches(start)) as inputs:
        yield itertools.chain(list(itertools.islice(inputs, 1)), inputs)


def _run_io(
    run: Run,
    guard: Guard | None,
    settings: RunSettings,
    out: Path,
    curves: MetricsWriter,
    checkpointer: Checkpointer,
    meta: dict[str, Any],
) -> RunIO:
    """Says where the results of the batches go, and how often."""

    def evaluate(number: int, state: State) -> Row:
        return _evaluate(run, curves, out, number, state)

    def export(state: State) -> None:
        if getattr(run, "exports_at_checkpoints", False):
            run.export(state, out)

    log = settings.log
    return RunIO(curves, checkpointer, meta, evaluate, log.eval_every, log.checkpoint_every, export, guard)


def _looped(
    run: Run,
    programs: Programs,
    batches: Iterator[Any],
    start: int,
    state: State,
    key: Key,
    folder: RunFolder,
    io: RunIO,
) -> tuple[int, State]:
    """Trains from batch ``start`` on; returns the number of batches that are done, and the state after them."""
    if io.guard is not None and io.guard.ends:
        logging.warning(
            "the guard has ended this run after batch %d; what follows is done again. --config.eval.guard=warn trains "
            "on",
            start,
        )
        return start, state

    def step(number: int, state: State) -> tuple[State, Row]:
        state, row = run.step(programs, batches, number, state, key)
        folder.guard()  # before anything of this batch is written
        return state, row

    return run_loop(step, state, range(start, run.total), io, run.progress)


def _evaluate(run: Run, curves: MetricsWriter, out: Path, number: int, state: State) -> Row:
    """Evaluates the run, and keeps the images as ``NAME/NUMBER.png`` and among the curves."""
    row, images = run.evaluate(number, state)
    if images and is_writer():
        for name, image in images.items():
            write_png(out / name / f"{number:06d}.png", image)
        curves.write_images(number, images)
    return row


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
