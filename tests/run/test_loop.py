"""The loop over batches: what is written when, what stops a run, and that a run in two parts equals a whole one."""

import os
import signal
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.core.errors import Interrupted, Preempted, UserError
from spo_jax.run import loop
from spo_jax.run.checkpoint import Checkpointer
from spo_jax.run.checkpoint_reader import CheckpointReader
from spo_jax.run.guard.look import looks_of
from spo_jax.run.loop import Progress, RunIO, run_keys
from spo_jax.run.metrics import MetricsWriter, read_metrics
from tests.support.guarded import hacked, make_guard

PROGRESS = Progress(
    title="Test",
    shown=lambda rows: {"loss": f"{rows[-1]['loss']:.2f}"},
    watched=("loss", "score"),
    hint="Use float32",
)


class State(NamedTuple):
    params: dict
    step: jax.Array


def start():
    return State({"a": jnp.zeros(1)}, jnp.zeros((), jnp.int32))


class Steps:
    """Steps that count: a batch adds 1 to the weights. ``bad`` replaces values of its rows, by (name, number)."""

    def __init__(self, bad=None):
        self.bad = bad or {}
        self.seen = []

    def __call__(self, number, state):
        self.seen.append((number, float(state.params["a"][0])))
        row = {"loss": 0.7, "score/t0000": 2.0, "seconds": 1.0}
        row |= {name: value for (name, at), value in self.bad.items() if at == number}
        return State(jax.tree.map(lambda x: x + 1, state.params), state.step + 1), row


def nothing(*_):
    pass


def run(
    folder,
    step,
    total,
    first=0,
    state=None,
    eval_every=50,
    checkpoint_every=50,
    export=nothing,
    during=nothing,
    guard=None,
    keep=10,
):
    """Batches ``first`` to ``total``; gives (state, what was evaluated). ``during`` is called in every evaluation."""
    evaluated = []

    def evaluate(number, state):
        during()
        evaluated.append((number, float(state.params["a"][0])))
        return {"evaluated": 1.0}

    def preserved():
        return () if guard is None else guard.preserved

    with (
        Checkpointer(folder / "checkpoints", keep=keep, preserved=preserved) as checkpointer,
        MetricsWriter(folder, resume_step=first or None) as writer,
    ):
        io = RunIO(writer, checkpointer, {"seed": 3}, evaluate, eval_every, checkpoint_every, export, guard)
        _, state = loop.run(step, state or start(), range(first, total), io, PROGRESS)
    return state, evaluated


def checkpoints_in(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


def test_rows_evaluations_and_checkpoints_come_when_they_are_due(tmp_path):
    exported = []
    state, evaluated = run(tmp_path, Steps(), 5, eval_every=2, checkpoint_every=3, export=exported.append)
    assert evaluated == [(2, 2.0), (4, 4.0), (5, 5.0)]
    assert checkpoints_in(tmp_path) == [3, 5]
    assert [int(state.step) for state in exported] == [3, 5]
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert rows[0]["loss"] == 0.7
    assert ["evaluated" in row for row in rows] == [False, True, False, True, True]
    assert state.params["a"].tolist() == [5.0]


def test_a_checkpoint_holds_state_and_meta(tmp_path):
    run(tmp_path, Steps(), 2, checkpoint_every=1)
    checkpoints = CheckpointReader(tmp_path / "checkpoints")
    assert checkpoints.read_meta(2) == {"seed": 3}
    assert checkpoints.read_item(2, "params")["a"].tolist() == [2.0]
    assert checkpoints.read_item(1, "params")["a"].tolist() == [1.0]


def test_zero_means_at_the_end_alone(tmp_path):
    _, evaluated = run(tmp_path, Steps(), 3, eval_every=0, checkpoint_every=0)
    assert evaluated == [(3, 3.0)] and checkpoints_in(tmp_path) == [3]


def test_a_run_in_two_parts_takes_the_same_steps(tmp_path):
    whole, parts = Steps(), Steps()
    run(tmp_path / "whole", whole, 6)
    state, _ = run(tmp_path / "parts", parts, 2)
    run(tmp_path / "parts", parts, 6, first=2, state=state)
    assert whole.seen == parts.seen


def test_the_bar_compares_with_all_batches_of_a_resumed_run(tmp_path, monkeypatch):
    seen = []
    progress = Progress("Test", lambda rows: seen.append([row["step"] for row in rows]) or {}, ("loss",), "")
    monkeypatch.setitem(globals(), "PROGRESS", progress)
    state, _ = run(tmp_path, Steps(), 2)
    run(tmp_path, Steps(), 4, first=2, state=state)
    assert seen == [[1], [1, 2], [1, 2, 3], [1, 2, 3, 4]]


@pytest.mark.parametrize(
    ("bad", "name"),
    [
        ({("loss", 3): np.nan}, "loss is nan"),
        ({("loss", 3): np.inf}, "loss is inf"),
        ({("score/t0000", 3): np.nan}, "score/t0000 is nan"),
    ],
)
def test_values_that_are_not_finite_stop_the_run_and_the_last_good_checkpoint_is_named(tmp_path, bad, name):
    message = f"batch 4: {name}; the last good checkpoint is {tmp_path}/checkpoints/2. Use float32"
    with pytest.raises(UserError, match=message):
        run(tmp_path, Steps(bad), 6, checkpoint_every=2)
    assert checkpoints_in(tmp_path) == [2]
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[-1][name.partition(" ")[0]] is None  # the curves show why they end


def test_there_may_be_no_checkpoint_to_name(tmp_path):
    with pytest.raises(UserError, match="batch 1: loss is nan; no checkpoint was saved yet"):
        run(tmp_path, Steps({("loss", 0): np.nan}), 6)


def test_weights_that_are_not_finite_replace_nothing(tmp_path):
    """Loss and gradients of the batch are finite, and the step that follows from them is not."""
    steps = Steps()
    exported = []

    def step(number, state):
        state, row = steps(number, state)
        return (state._replace(params={"a": jnp.full(1, jnp.inf)}) if number == 3 else state), row

    message = (
        f"batch 4: a trained weight is not finite; the last good checkpoint is {tmp_path}/checkpoints/2. Use float32"
    )
    with pytest.raises(UserError, match=message):
        run(tmp_path, step, 6, checkpoint_every=2, export=exported.append)
    assert checkpoints_in(tmp_path) == [2]
    assert [float(state.params["a"][0]) for state in exported] == [2.0]


def test_values_that_are_not_watched_may_be_anything(tmp_path):
    run(tmp_path, Steps({("seconds", 0): np.inf}), 1)
    assert read_metrics(tmp_path / "metrics.jsonl")[0]["seconds"] is None


@pytest.mark.parametrize(
    "number, error, name", [(signal.SIGTERM, Preempted, "SIGTERM"), (signal.SIGINT, Interrupted, "Ctrl-C")]
)
def test_a_signal_between_two_batches_saves_and_stops(tmp_path, number, error, name):
    """The error comes after the batch in which the signal came; afterwards it has its earlier effect again."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored if the tests run in the background
    before = signal.getsignal(number)
    steps = Steps()
    exported = []

    def step(batch, state):
        if batch == 2:
            os.kill(os.getpid(), number)
        return steps(batch, state)

    with pytest.raises(error, match=f"stopped by {name} and saved after batch 3 of 6"):
        run(tmp_path, step, 6, checkpoint_every=0, eval_every=1, export=exported.append)
    # The machine will be gone soon: the state is saved at once, and not evaluated.
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert ["evaluated" in row for row in rows] == [True, True, False]
    assert checkpoints_in(tmp_path) == [3]
    assert [float(state.params["a"][0]) for state in exported] == [3.0]
    assert signal.getsignal(number) == before


def test_a_signal_in_the_last_batch_saves_it_and_leaves_what_follows_to_the_resumed_run(tmp_path):
    steps = Steps()

    def step(number, state):
        if number == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return steps(number, state)

    with pytest.raises(Preempted, match="saved after batch 2 of 2"):
        run(tmp_path, step, 2, checkpoint_every=0, eval_every=1)
    assert ["evaluated" in row for row in read_metrics(tmp_path / "metrics.jsonl")] == [True, False]
    assert checkpoints_in(tmp_path) == [2]


def test_a_signal_during_an_evaluation_starts_no_other_batch(tmp_path):
    steps = Steps()
    with pytest.raises(Preempted, match="saved after batch 2 of 6"):
        run(tmp_path, steps, 6, checkpoint_every=0, eval_every=2, during=lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert checkpoints_in(tmp_path) == [2]


def test_the_keys_of_a_run_follow_from_its_seed():
    keys = [jax.random.key_data(key).tolist() for seed in (0, 0, 1) for key in run_keys(seed)]
    assert keys[:2] == keys[2:4]
    assert len({str(key) for key in keys}) == 4


def test_a_guard_looks_saves_the_best_and_ends_the_run(tmp_path):
    """The run is worth most after batch 3, so that its guard ends it after batch 6; batches 4 and 5 are not saved."""
    steps = Steps()
    guard = make_guard(hacked(best=3), 20)
    state, evaluated = run(tmp_path, steps, 20, checkpoint_every=0, eval_every=0, guard=guard)
    assert len(steps.seen) == 6 and state.params["a"].tolist() == [6.0] and not evaluated
    assert checkpoints_in(tmp_path) == [1, 2, 3, 6]
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [look.worse for look in looks_of(rows)] == [0, 0, 0, 0, 1, 2]
    saved = CheckpointReader(tmp_path / "checkpoints").read_meta(6)
    assert saved["seed"] == 3 and saved["guard"] == guard.saved() and saved["guard"]["stopped"]


def test_the_best_checkpoint_is_never_removed(tmp_path):
    guard = make_guard(hacked(best=3), 20, mode="warn")
    run(tmp_path, Steps(), 20, checkpoint_every=1, keep=2, guard=guard)
    assert checkpoints_in(tmp_path) == [2, 3, 19, 20]  # 2 was the best before 3 was saved


def test_a_run_that_is_stopped_has_no_time_for_a_look_and_takes_it_when_it_is_resumed(tmp_path):
    whole = make_guard(hacked(best=3), 20)
    run(tmp_path / "whole", Steps(), 20, guard=whole)

    guard = make_guard(hacked(best=3), 20)
    steps = Steps()

    def step(number, state):
        if number == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return steps(number, state)

    with pytest.raises(Preempted):
        run(tmp_path / "parts", step, 20, guard=guard)
    assert guard.looks[-1].batch == 3 and checkpoints_in(tmp_path / "parts")[-1] == 4

    again = make_guard(hacked(best=3), 20)
    again.resume(CheckpointReader(tmp_path / "parts" / "checkpoints").read_meta(4)["guard"], [1, 2, 3, 4])
    assert again.misses(4)
    with MetricsWriter(tmp_path / "parts", resume_step=4) as writer:
        writer.extend(4, again.look(4, None))
    run(tmp_path / "parts", steps, 20, first=4, guard=again)
    assert again.saved() == whole.saved()
    parts, of_whole = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("parts", "whole"))
    assert looks_of(parts) == looks_of(of_whole) and [row["step"] for row in parts] == [1, 2, 3, 4, 5, 6]
