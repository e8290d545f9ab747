"""Which checkpoint of a run is exported, and which summary is about it."""

import pytest

from spo_jax.core.errors import UserError
from spo_jax.core.files import write_json
from spo_jax.methods.common.settings import LoRASettings
from spo_jax.methods.spo.settings import SPOTrainSettings
from spo_jax.run.checkpoint import Checkpointer
from spo_jax.run.folder import run_meta
from spo_jax.work.export.source import Base, read_source
from tests.work.export.made_up import a_lora


@pytest.fixture(scope="module")
def write_run(tmp_path_factory):
    """Writes a run with checkpoints 1 to 3, of which its guard found 2 the best if it has one."""

    def write(of_checkpoints, **summary):
        folder = tmp_path_factory.mktemp("run")
        meta = run_meta(SPOTrainSettings(model="toy", lora=LoRASettings(rank=2)), [])
        with Checkpointer(folder / "checkpoints") as checkpoints:
            for step in (1, 2, 3):
                checkpoints.save(step, {"params": a_lora().tree}, meta | of_checkpoints)
        if summary:
            write_json(folder / "summary.json", summary)
        return folder

    return write


def step_of(place):
    return read_source(place, Base()).record.step


def test_without_a_guard_it_is_the_last(write_run):
    run = write_run({})
    assert step_of(run) == 3 and step_of(run / "checkpoints" / "1") == 1
    with pytest.raises(UserError, match=r"no guard says which checkpoint was best .*: name one \(1, 2, 3\)"):
        step_of(run / "checkpoints" / "best")


@pytest.mark.parametrize(("stopped", "step"), [(False, 3), (True, 2)])
def test_the_best_is_exported_if_the_guard_ended_the_run_or_by_its_name(write_run, stopped, step):
    guard = {"guard": {"stopped": stopped, "kept": {"batch": 2}}}
    told = {"exported_batch": step, "kept_batch": 2, "stopped_batch": 3 if stopped else None}
    run = write_run(guard, batches=3, guard=told, verdict="it got better")
    assert step_of(run) == step and step_of(run / "checkpoints" / "best") == 2
    assert step_of(run / "checkpoints" / "3") == 3, "a number means what it says"
    for at in (2, 3):
        summary = read_source(run / "checkpoints" / str(at), Base()).record.summary
        assert bool(summary) == (at == step), "it is about the weights that were exported"


def test_a_look_that_was_taken_after_the_last_checkpoint_counts(write_run):
    """The run was stopped before its last look, and ended by it as soon as it was resumed."""
    before = {"guard": {"stopped": False, "kept": {"batch": 1}}}
    told = {"exported_batch": 2, "kept_batch": 2, "stopped_batch": 3}
    run = write_run(before, batches=3, guard=told)
    assert step_of(run) == step_of(run / "checkpoints" / "best") == 2
    earlier = write_run(before, batches=2, guard=told)  # it has been made longer since
    assert step_of(earlier) == 3 and step_of(earlier / "checkpoints" / "best") == 1


def test_before_the_first_look_nothing_is_best(write_run):
    run = write_run({"guard": {"stopped": False, "kept": None}})
    assert step_of(run) == 3
    with pytest.raises(UserError, match="no guard says"):
        step_of(run / "checkpoints" / "best")
