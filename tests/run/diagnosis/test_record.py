"""What a folder says of its run: finished, still going, stopped, and how it is continued."""

import dataclasses
import json
import os

import pytest

from spo_jax.core.errors import UserError
from spo_jax.core.files import write_json, write_text
from spo_jax.methods.spo.settings import SPOTrainSettings
from spo_jax.run.diagnosis.record import read_record, unfinished, write_start
from spo_jax.run.lock import RunLock, user_of

SETTINGS = dataclasses.replace(SPOTrainSettings(), seed=7)
FLAGS = ["--config=toy", "--out=runs/a b"]


def run_folder(folder, done, total=10, checkpoint=None, summary=None, flags=FLAGS):
    write_start(folder, SETTINGS, total, flags, ["out_of_range"], ["spm_score"])
    write_text(folder / "metrics.jsonl", "".join(json.dumps({"step": i, "loss": 0.7}) + "\n" for i in range(done + 1)))
    if checkpoint:
        (folder / "checkpoints" / str(checkpoint)).mkdir(parents=True)
    if summary:
        write_json(folder / "summary.json", summary)
    return folder


def test_a_finished_run(tmp_path):
    summary = {"method": "spo", "batches": 10, "wall_seconds": 131, "scores": {"a": {"change": 1.0}}}
    record = read_record(run_folder(tmp_path, 10, checkpoint=10, summary=summary))
    assert record.describe() == f"{tmp_path}: spo, finished, 10 of 10 batches in 2 min 11 s"
    assert record.curves.scores and record.curves.setting("seed", 0) == 7
    assert record.curves.lower_is_better == ["out_of_range"] and unfinished(record) is None
    assert record.curves.judge_scores == ["spm_score"]


def test_a_run_of_an_earlier_version_has_the_present_names_of_curves(tmp_path):
    folder = run_folder(tmp_path, 1)
    write_text(folder / "metrics.jsonl", '{"step": 1, "spm_score/t0501": 3, "spm_gap/t0501": 1, "eval_spm_score": 2}\n')
    start = json.loads((folder / "run.json").read_text())
    del start["judge_scores"]
    write_json(folder / "run.json", start)
    curves = read_record(folder).curves
    assert curves.rows == [{"step": 1, "judge_score/t0501": 3, "judge_gap/t0501": 1, "eval_spm_score": 2}]
    assert curves.judge_scores is None


def test_a_run_that_died(tmp_path):
    record = read_record(run_folder(tmp_path, 7, checkpoint=5))
    found = unfinished(record)
    assert record.state == "stopped" and found.level == "problem"
    assert found.text.startswith("It stopped after batch 7 of 10") and "its last checkpoint is of batch 5" in found.text
    assert "(2 batches after its last checkpoint will be done again)" in found.advice
    assert found.advice.endswith("python -m spo_jax.train --config=toy '--out=runs/a b' --resume")


def test_the_command_of_another_folder_and_of_a_resumed_run(tmp_path, monkeypatch):
    folder = run_folder(tmp_path / "run", 7, checkpoint=5, flags=[*FLAGS, "--auto-resume"])
    here = os.getcwd()
    monkeypatch.chdir(tmp_path)
    assert unfinished(read_record(folder)).advice.endswith(
        f":\ncd {here} && python -m spo_jax.train --config=toy '--out=runs/a b' --auto-resume"
    )


def test_a_run_that_died_before_its_first_checkpoint(tmp_path):
    found = unfinished(read_record(run_folder(tmp_path, 3)))
    assert found.advice.startswith("There is no checkpoint: start it again:\npython -m spo_jax.train")
    assert "--resume" not in found.advice


def test_a_run_that_died_after_its_last_batch(tmp_path):
    found = unfinished(read_record(run_folder(tmp_path, 10, checkpoint=10)))
    assert found.text.startswith("All 10 batches are trained") and found.advice.endswith("--resume")


def test_a_run_that_python_started(tmp_path):
    found = unfinished(read_record(run_folder(tmp_path, 7, checkpoint=5, flags=[])))
    assert "spo_jax.Resume(required=True)" in found.advice


def test_a_run_that_was_made_longer_and_died_is_not_finished(tmp_path):
    summary = {"method": "spo", "batches": 5, "scores": {"a": {"change": 1.0}}}
    record = read_record(run_folder(tmp_path, 7, total=10, checkpoint=5, summary=summary))
    assert record.state == "stopped" and not record.curves.scores


def test_a_run_that_is_going(tmp_path):
    folder = run_folder(tmp_path / "run", 3)
    with RunLock(folder):
        record = read_record(folder)
        assert record.state == "going" and unfinished(record) is None
        assert f"still going (process {os.getpid()} on host" in record.describe()
    assert read_record(folder).state == "stopped"


def test_looking_changes_nothing_and_a_dead_holder_is_none(tmp_path):
    assert user_of(tmp_path) == "" and not list(tmp_path.iterdir())
    write_json(tmp_path / "lock.json", {"host": "a", "pid": 1, "system": "another", "since": "now"})
    (tmp_path / ".lock").touch()
    assert user_of(tmp_path).startswith("process 1 on host a")  # another system, whose card is fresh
    os.utime(tmp_path / "lock.json", (0, 0))
    assert user_of(tmp_path) == ""


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(UserError, match="no metrics.jsonl here, so no batch of a run was finished"):
        read_record(tmp_path)


def test_a_damaged_start_is_named(tmp_path):
    folder = run_folder(tmp_path, 3)
    write_text(folder / "run.json", "{")
    with pytest.raises(UserError, match="cannot read .*run.json as JSON"):
        read_record(folder)
