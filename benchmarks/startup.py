"""Measures what a training command does until its first batch: ``python -m benchmarks.startup --config=toy``.

The command is started in an empty folder of compiled programs, and then again with the programs that it has compiled.
Each start ends where the loop over batches begins. A phase is a stage that the command shows, or what lies between two
of them. Its seconds are those of the clock and those of all processors together; the latter hardly depend on what else
the machine does. What runs in a thread beside the phases is listed below them, by the clock and by its own thread.

Nothing here imports jax, so that a start imports what the command does and no more.
"""

import contextlib
import json
import os
import platform
import runpy
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from benchmarks.places import RESULTS
from spo_jax.core import progress
from spo_jax.core.cli import run_command
from spo_jax.core.errors import UserError
from spo_jax.core.files import write_text
from spo_jax.core.markdown import code

_WORTH_A_ROW = 0.05  # seconds of the clock of a phase that is not added to the one before


class Phase(NamedTuple):
    """A phase of a start.

    Attributes:
      title: what is done.
      clock: seconds of the clock.
      processors: seconds of all processors; of a phase beside others those of its thread.
      beside: whether other phases run at the same time.
    """

    title: str
    clock: float
    processors: float
    beside: bool = False


class Recorder:
    """The phases of this process, from its start on, by the stages and bars that it shows.

    Args:
      begin: `time.time` when the process was started.
    """

    def __init__(self, begin: float):
        self._main = threading.get_ident()
        self._clock, self._processors = begin, 0.0
        self._open = ["Python, flags and checks"]
        self.phases: list[Phase] = []

    def change(self, title: str) -> None:
        """Ends the phase of the main thread, and begins another one."""
        clock, processors = time.time(), time.process_time()
        self.phases.append(Phase(self._open[-1], clock - self._clock, processors - self._processors))
        self._clock, self._processors = clock, processors
        self._open.append(title)

    @contextlib.contextmanager
    def stage(self, title: str) -> Iterator[None]:
        """Records a stage, in place of `spo_jax.core.progress.stage`."""
        begin, own = time.time(), time.thread_time()
        beside = threading.get_ident() != self._main
        if not beside:
            self.change(title)
        try:
            yield
        finally:
            if beside:
                self.phases.append(Phase(title, time.time() - begin, time.thread_time() - own, beside=True))
            else:
                self.change(f"after {title}")


def record(file: str, begin: float) -> None:
    """Runs the command of `sys.argv` in this process until its first batch, and writes its phases to a file."""
    recorder = Recorder(begin)
    shown = progress.bar

    def bar(title: str, total: int, unit: str, *rest: Any, **others: Any) -> Any:
        recorder.change(title)
        if unit == "batch":  # the loop begins
            Path(file).write_text(json.dumps(recorder.phases))
            os._exit(0)
        return shown(title, total, unit, *rest, **others)

    progress.stage, progress.bar = recorder.stage, bar
    runpy.run_module("spo_jax.train", run_name="__main__", alter_sys=True)


def start(arguments: Sequence[str], programs: Path) -> list[Phase]:
    """Starts the command and returns its phases.

    Args:
      arguments: its flags without ``--out``.
      programs: folder of compiled programs.

    Raises:
      UserError: it ended before its first batch.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "phases.json")
        code = f"from benchmarks.startup import record; record({str(file)!r}, {time.time()!r})"
        ended = subprocess.run(
            [sys.executable, "-c", code, *arguments, f"--out={folder}/run"],
            env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(programs)},
            stderr=subprocess.PIPE,
            text=True,
        )
        if not file.exists():
            raise UserError(f"the command ended before its first batch: {ended.stderr.strip()[-300:]}")
        phases = [Phase(*phase) for phase in json.loads(file.read_text())]
    return joined(phases)


def joined(phases: Sequence[Phase]) -> list[Phase]:
    """Adds what takes next to no time to the phase before it, and orders phases beside others last."""
    rows: list[Phase] = []
    for phase in (phase for phase in phases if not phase.beside):
        if rows and phase.clock < _WORTH_A_ROW:
            last = rows[-1]
            rows[-1] = last._replace(clock=last.clock + phase.clock, processors=last.processors + phase.processors)
        else:
            rows.append(phase)
    whole = Phase("in all", sum(row.clock for row in rows), sum(row.processors for row in rows))
    return [*rows, whole, *(phase for phase in phases if phase.beside)]


def table(cold: Sequence[Phase], warm: Sequence[Sequence[Phase]]) -> str:
    """Makes a row for each phase: seconds of the first start, and the medians of those with compiled programs."""
    titles = dict.fromkeys(phase.title for start in (cold, *warm) for phase in start if not phase.beside)
    titles = [*(title for title in titles if title != "in all"), "in all"]
    titles += dict.fromkeys(phase.title for phase in cold if phase.beside)

    def median(starts: Sequence[Sequence[Phase]], title: str, of: str) -> str:
        found = [getattr(phase, of) for start in starts for phase in start if phase.title == title]
        return f"{statistics.median(found):.1f}" if found else ""

    beside = {phase.title for phase in cold if phase.beside}
    rows = [["phase", "first start: clock", "processors", "later: clock", "processors"], ["---"] * 5]
    for title in titles:
        shown = f"beside these: {title}" if title in beside else title
        rows.append(
            [shown, *(median(starts, title, of) for starts in ([cold], warm) for of in ("clock", "processors"))]
        )
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def run() -> None:
    """Runs the command."""
    config = flags.DEFINE_string("config", "toy", "Start training with this config.")
    starts = flags.DEFINE_integer("starts", 3, "Start this often with compiled programs.", lower_bound=1)
    out = flags.DEFINE_string("out", RESULTS, "Write the table to startup.md in this folder.")

    def main(_) -> None:
        arguments = [f"--config={config.value}"]
        with tempfile.TemporaryDirectory() as programs:
            cold, *warm = (start(arguments, Path(programs)) for _ in range(1 + starts.value))
        text = table(cold, warm)
        print(text)
        how = code(f"python -m benchmarks.startup --config={config.value} --starts={starts.value}")
        where = f"{platform.machine()} with {len(os.sched_getaffinity(0))} cores"
        write_text(Path(out.value, "startup.md"), f"# Seconds until the first batch\n\n{how} on {where}:\n\n{text}")

    run_command(main)


if __name__ == "__main__":
    run()
