"""Advice of the report: commands that a shell and the package understand, for this very run."""

import dataclasses
import shlex
from pathlib import Path
from typing import ClassVar

from spo_jax.core.config import setting
from spo_jax.methods.finetune.settings import FinetuneSettings
from spo_jax.methods.spo.settings import SPOTrainSettings
from spo_jax.run.report.steps import command, longer
from spo_jax.run.settings import RunSettings

OUT = Path("runs/my run")


def words(text):
    """The words of a command as a shell reads it, over all its lines."""
    return shlex.split(text.replace("\\\n", ""))


def test_a_command_survives_the_shell():
    arguments = [f"--prompt=it's a {'very ' * 30}red star; $HOME `ls`", "--out=a b", "--steps=20"]
    text = command("sample", *arguments)
    assert words(text) == ["python", "-m", "spo_jax.sample", *arguments]
    assert len(command("export", *[f"--flag-{index}=value" for index in range(20)]).splitlines()) > 3


def test_training_longer_repeats_the_flags_and_doubles_the_length():
    flags = ["--config=toy", "--config.max_batches=10", "--config.seed=3", "--out=elsewhere", "--auto-resume"]
    (step,) = longer(SPOTrainSettings(max_batches=10, num_epochs=5), flags, OUT)
    assert words(step.code) == [
        "python", "-m", "spo_jax.train", "--config=toy", "--config.seed=3", "--config.num_epochs=10",
        "--config.max_batches=20", "--out=runs/my run", "--resume",
    ]  # fmt: skip


def test_flags_may_be_written_in_any_way():
    flags = ["-config", "toy", "--config.max_batches", "10", "--out", "elsewhere", "--multihost", "-resume"]
    (step,) = longer(SPOTrainSettings(max_batches=10, num_epochs=5), flags, OUT)
    assert words(step.code)[3:] == [
        "--config=toy", "--multihost", "--config.num_epochs=10", "--config.max_batches=20", "--out=runs/my run",
        "--resume",
    ]  # fmt: skip


def test_no_limit_stays_none():
    (step,) = longer(SPOTrainSettings(max_batches=0, num_epochs=5), ["--config=toy"], OUT)
    assert "max_batches" not in step.code and "--config.num_epochs=10" in step.code


def test_a_length_that_a_resumed_run_may_not_change_is_changed_all_the_same():
    (step,) = longer(FinetuneSettings(train_steps=7), ["--config=f.py"], OUT)
    assert words(step.code)[-4:] == [
        "--config.train_steps=14",
        "--out=runs/my run",
        "--resume",
        "--resume-with-changes",
    ]


def test_nothing_is_said_where_nothing_is_known():
    """A run that a notebook started has no flags, and a method of one's own may not say what its length is."""

    @dataclasses.dataclass(frozen=True)
    class Own(RunSettings):
        FREE_FIELDS: ClassVar = ()
        rounds: int = setting(3, "Rounds.")

    assert longer(SPOTrainSettings(), [], OUT) == [] and longer(Own(), ["--config=own.py"], OUT) == []
