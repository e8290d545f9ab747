"""Phases of a start: every second belongs to one phase of the main thread, and what runs beside them is apart."""

import threading
import time

import pytest

from benchmarks import startup
from benchmarks.startup import Phase, Recorder, joined, table


def test_stages_and_what_lies_between_them_add_up_to_the_whole():
    begin = time.time()
    recorder = Recorder(begin)
    with recorder.stage("reading"):
        time.sleep(0.06)
    time.sleep(0.06)
    recorder.change("loop")
    *phases, whole = joined(recorder.phases)
    assert [phase.title for phase in phases][-2:] == ["reading", "after reading"]
    assert all(0.06 <= phase.clock < 1 for phase in phases[-2:])
    assert whole.title == "in all" and whole.clock == pytest.approx(sum(phase.clock for phase in phases))


def test_a_stage_of_another_thread_is_beside_the_phases():
    recorder = Recorder(time.time())

    def compile_program():
        with recorder.stage("compiling"):
            time.sleep(0.06)

    thread = threading.Thread(target=compile_program)
    with recorder.stage("drawing"):
        thread.start()
        thread.join()
    *_, drawing, whole, compiling = joined(recorder.phases)
    assert (drawing.title, compiling.title, compiling.beside) == ("drawing", "compiling", True)
    assert compiling.clock <= drawing.clock <= whole.clock


def test_the_table_has_the_first_start_and_the_medians_of_the_others():
    starts = [[Phase("reading", clock, 1.0), Phase("in all", clock, 1.0)] for clock in (9.0, 4.0, 1.0, 2.0)]
    cold, *warm = starts
    cold.append(Phase("compiling", 3.0, 2.0, beside=True))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table(cold, warm).splitlines()[2:]]
    assert rows == [
        ["reading", "9.0", "1.0", "2.0", "1.0"],
        ["in all", "9.0", "1.0", "2.0", "1.0"],
        ["beside these: compiling", "3.0", "2.0", "", ""],
    ]


@pytest.mark.slow
def test_a_start_ends_at_the_first_batch(tmp_path):
    small = ["--config=toy", "--config.prompts_per_batch=2", "--config.spo.train_batch_size=2"]
    small += ["--config.eval.images=4", "--config.eval.grid_images=4", "--config.spo.num_steps=13"]
    phases = startup.start(small, tmp_path / "programs")
    titles = [phase.title for phase in phases]
    assert {"importing JAX", "reading toy", "images before training", "in all", "tracing the programs"} <= set(titles)
    assert list((tmp_path / "programs").iterdir())
