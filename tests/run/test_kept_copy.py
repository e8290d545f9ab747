"""The copy of a run: whole at every moment, tried again after failures, and enough to resume from."""

import logging
import shutil
import threading
import time

import jax.numpy as jnp
import pytest

from spo_jax.core.errors import UserError
from spo_jax.run import kept_copy as module
from spo_jax.run.checkpoint import Checkpointer
from spo_jax.run.kept_copy import keep_copy
from spo_jax.run.metrics import MetricsWriter, read_metrics


def state(step):
    return {"params": {"w": jnp.full((3,), float(step))}}


def train(run, steps, pause=0.0):
    """What a run writes: checkpoints of which the latest two are kept, curves, files, and hidden ones."""
    with Checkpointer(run / "checkpoints", keep=2) as checkpointer, MetricsWriter(run, steps.start - 1) as writer:
        for step in steps:
            writer.write(step, {"loss": 1.0 / step})
            checkpointer.save(step, state(step), {"step": step})
            checkpointer.wait()
            (run / "lora.safetensors").write_text(f"weights {step}")
            (run / "lock.json").write_text("{}")
            (run / ".lora.part").write_text("half")
            time.sleep(pause)


def restored(run):
    with Checkpointer(run / "checkpoints") as checkpointer:
        step, items, _ = checkpointer.restore_latest(state(0))
    return step, float(items["params"]["w"][0])


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_run_goes_on_elsewhere_from_its_copy(tmp_path):
    """The machine is taken away, and another one has nothing but the copy."""
    first, second, copy = tmp_path / "first", tmp_path / "second", tmp_path / "copy"
    with keep_copy(first, copy, every=0.01):
        train(first, range(1, 4), pause=0.1)
    shutil.rmtree(first)
    assert names(copy) == ["checkpoints", "lora.safetensors", "metrics.jsonl", "tensorboard"]
    assert names(copy / "checkpoints") == ["2", "3"]  # those that the run keeps
    with keep_copy(second, copy, every=60.0):
        assert restored(second) == (3, 3.0)
        assert [row["step"] for row in read_metrics(second / "metrics.jsonl")] == [1, 2, 3]
        train(second, range(4, 6))
    assert restored(copy) == (5, 5.0)
    assert (copy / "lora.safetensors").read_text() == "weights 5"


def test_a_run_that_is_here_is_not_replaced_by_its_copy(tmp_path):
    run, copy = tmp_path / "run", tmp_path / "copy"
    train(copy, range(1, 2))
    train(run, range(1, 4))
    with keep_copy(run, copy, every=60.0):
        assert restored(run) == (3, 3.0)
    assert restored(copy) == (3, 3.0)


def test_a_run_that_is_behind_its_copy_is_not_mixed_with_it(tmp_path):
    """The copy is of another run, or fetching it was interrupted: nothing of either is changed."""
    run, copy = tmp_path / "run", tmp_path / "copy"
    train(copy, range(1, 5))
    train(run, range(1, 3))
    with pytest.raises(UserError, match="holds checkpoint 4, and .*run comes only to 2: delete"), keep_copy(run, copy):
        pass
    assert restored(copy) == (4, 4.0) and restored(run) == (2, 2.0)


def test_a_copy_that_is_away_at_the_end_is_a_warning(tmp_path, monkeypatch, caplog):
    run, copy = tmp_path / "run", tmp_path / "copy"
    raised = []
    monkeypatch.setattr(threading, "excepthook", raised.append)
    steps = module._steps

    def away(folder):
        if folder == copy:
            raise OSError(107, "Transport endpoint is not connected")
        return steps(folder)

    monkeypatch.setattr(module, "_steps", away)
    with caplog.at_level(logging.WARNING), keep_copy(run, copy, every=60.0):
        train(run, range(1, 2))
    assert not raised and "not connected; the copy is not complete" in caplog.text


def test_a_copy_that_fails_is_tried_again(tmp_path, monkeypatch, caplog):
    """A mounted Drive is away for a while: one warning, and nothing of it reaches the run."""
    run, copy = tmp_path / "run", tmp_path / "copy"
    whole = module._copy_file
    calls = []

    def away(source, target):
        calls.append(source)
        if len(calls) < 5:
            raise OSError(107, "Transport endpoint is not connected")
        whole(source, target)

    monkeypatch.setattr(module, "_copy_file", away)
    with caplog.at_level(logging.WARNING), keep_copy(run, copy, every=0.02):
        train(run, range(1, 3))
        end = time.monotonic() + 60
        while len(calls) < 5 and time.monotonic() < end:
            time.sleep(0.01)
    assert restored(copy) == (2, 2.0)
    (message,) = [record.getMessage() for record in caplog.records if "cannot copy" in record.getMessage()]
    assert "Transport endpoint is not connected; the run goes on, and this is tried again" in message


def test_what_an_interrupted_copy_has_left_is_no_checkpoint(tmp_path):
    run, copy = tmp_path / "run", tmp_path / "copy"
    (copy / "checkpoints" / "2.part").mkdir(parents=True)
    (copy / "checkpoints" / "2.part" / "old").write_text("half")
    with keep_copy(run, copy, every=60.0):
        assert not run.exists()
        train(run, range(1, 3))
    assert names(copy / "checkpoints") == ["1", "2"] and restored(copy) == (2, 2.0)


def test_without_a_folder_there_is_no_copy(tmp_path):
    with keep_copy(tmp_path / "run", ""):
        train(tmp_path / "run", range(1, 2))
    assert names(tmp_path) == ["run"]


def test_a_folder_that_cannot_be_used_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for copy, message in (
        (tmp_path / "run", "is the run itself"),
        (tmp_path / "run" / "copy", "is in the other"),
        (tmp_path, "is in the other"),
        (tmp_path / "file" / "copy", "file"),
    ):
        with pytest.raises(UserError, match=message), keep_copy(tmp_path / "run", copy):
            pass


@pytest.mark.parametrize("every", [0, -1, float("inf"), float("nan")])
def test_looking_at_the_run_without_a_pause_is_refused(tmp_path, every):
    with (
        pytest.raises(UserError, match="expected seconds between two looks"),
        keep_copy(tmp_path / "a", tmp_path / "b", every),
    ):
        pass
