"""What a run does before its first batch, and what it prints of its scores."""

import threading
import time

import jax
import pytest

import spo_jax
from spo_jax.core.errors import UserError
from spo_jax.run.metrics import FILE_NAME as METRICS
from spo_jax.run.metrics import read_metrics
from spo_jax.work.outcome import print_scores
from tests.e2e.counting import Counting, CountingSettings, Guarded

SETTINGS = CountingSettings(batches=1, eval=Guarded(guard="off"))


def test_programs_are_compiled_on_the_mesh_while_the_state_is_measured(monkeypatch, tmp_path):
    traced = threading.Event()
    trace, meshes = Counting.trace, []

    def noted(run, state):
        traced.set()
        meshes.append(jax.sharding.get_mesh())
        return trace(run, state)

    monkeypatch.setattr(Counting, "trace", noted)
    monkeypatch.setattr(Counting, "begin", lambda *_: {"traced_meanwhile": float(traced.wait(60))})
    spo_jax.train(SETTINGS, tmp_path / "run")
    assert read_metrics(tmp_path / "run" / METRICS)[0]["traced_meanwhile"] == 1
    assert not meshes[0].empty


def test_a_mistake_that_compiling_finds_ends_the_run(monkeypatch, tmp_path):
    def refuse(*_):
        raise UserError("these shapes do not fit")

    monkeypatch.setattr(Counting, "trace", refuse)
    with pytest.raises(UserError, match="these shapes do not fit"):
        spo_jax.train(SETTINGS, tmp_path / "run")


def test_a_mistake_that_the_measurement_finds_is_told_before_compiling_has_ended(monkeypatch, tmp_path):
    told = threading.Event()

    def refuse(*_):
        raise UserError("these images are too small")

    monkeypatch.setattr(Counting, "begin", refuse)
    monkeypatch.setattr("spo_jax.work.train.compile_program", lambda _: told.wait(60) and None)
    begin = time.monotonic()
    with pytest.raises(UserError, match="these images are too small"):
        spo_jax.train(SETTINGS, tmp_path / "run")
    assert time.monotonic() - begin < 30
    told.set()
    assert not (tmp_path / "run").exists()


def test_of_two_mistakes_none_is_lost(monkeypatch, tmp_path, caplog):
    failed = threading.Event()

    def refuse(compiled):
        failed.set()
        raise UserError("these shapes do not fit")

    def begin(*_):
        assert failed.wait(60)
        time.sleep(0.2)
        raise UserError("these images are too small")

    monkeypatch.setattr("spo_jax.work.train.compile_program", refuse)
    monkeypatch.setattr(Counting, "begin", begin)
    with pytest.raises(UserError, match="these images are too small"):
        spo_jax.train(SETTINGS, tmp_path / "run")
    assert "compiling has failed as well: these shapes do not fit" in caplog.text


def test_a_total_of_almost_nothing_has_no_sign(capsys, tmp_path):
    """The mean of normalised scores is 0 up to rounding, on either side."""
    total = {"before": -1e-17, "after": -0.00126, "change": -0.00126, "change_se": 0.01}
    print_scores({"scores": {"total": total}, "verdict": "No change.", "wall_seconds": 1.0}, tmp_path)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("total")]
    assert line.split() == ["total", "0.0000", "->", "-0.0013", "change", "-0.0013", "±", "0.0100"]
