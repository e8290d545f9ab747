"""Logging to Weights & Biases, with a stand-in for the library: what is sent, and that no failure ends a run."""

import importlib.machinery
import importlib.util
import json
import sys
import types

import numpy as np
import pytest

from spo_jax.core.errors import UserError
from spo_jax.run.metrics import MetricsWriter, read_metrics
from spo_jax.run.settings import LogSettings
from spo_jax.run.wandb_log import WandbLog, check_installed

CONFIG = {"seed": 3, "spo": {"beta": 10.0}}
IMAGE = np.zeros((2, 3, 3), np.uint8)
LOG = LogSettings(wandb="project")


class FakeRun:
    """Records what a run sends; ``fails`` names the call that raises."""

    def __init__(self, name, fails):
        self.id = name
        self.fails = fails
        self.logged = []
        self.sent_summary = {}
        self.finished = 0

    def check(self, call):
        if self.fails == call:
            raise ConnectionError("no network")

    def log(self, row, step):
        self.check("log")
        self.logged.append((step, row))

    @property
    def summary(self):
        self.check("summary")
        return self.sent_summary

    def finish(self, exit_code):
        self.check("finish")
        self.exit_code = exit_code
        self.finished += 1


class FakeLibrary(types.ModuleType):
    """The part of ``wandb`` that is used."""

    def __init__(self):
        super().__init__("wandb")
        self.__spec__ = importlib.machinery.ModuleSpec("wandb", None, origin="wandb/__init__.py")
        self.started = []
        self.runs = []
        self.fails = ""

    def init(self, **arguments):
        if self.fails == "init":
            raise ConnectionError("no network")
        self.started.append(arguments)
        self.runs.append(FakeRun(arguments["id"] or f"run{len(self.runs)}", self.fails))
        return self.runs[-1]

    def Image(self, image):
        if self.fails == "Image":
            raise ConnectionError("no network")
        return ("image", image.shape)


@pytest.fixture
def library(monkeypatch):
    fake = FakeLibrary()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "my_run").mkdir()
    return tmp_path / "my_run"


# What is sent


def test_a_run_is_named_after_its_folder(library, folder):
    WandbLog(folder, LOG, CONFIG, resuming=False)
    [arguments] = library.started
    assert arguments == {
        "project": "project",
        "entity": None,
        "name": "my_run",
        "id": None,
        "resume": None,
        "config": CONFIG,
        "dir": str(folder),
    }


def test_settings_name_user_and_run(library, folder):
    WandbLog(folder, LogSettings(wandb="project", wandb_entity="team", wandb_name="first"), CONFIG, resuming=False)
    [arguments] = library.started
    assert (arguments["entity"], arguments["name"]) == ("team", "first")


def test_a_resumed_run_continues_its_curves(library, folder):
    WandbLog(folder, LOG, CONFIG, resuming=False)
    assert json.loads((folder / "wandb.json").read_text()) == {"id": "run0"}
    WandbLog(folder, LOG, CONFIG, resuming=True)
    assert (library.started[1]["id"], library.started[1]["resume"]) == ("run0", "allow")
    # A new run in the same folder is a new one there as well, and the next resumption continues that one.
    WandbLog(folder, LOG, CONFIG, resuming=False)
    assert (library.started[2]["id"], library.started[2]["resume"]) == (None, None)
    assert json.loads((folder / "wandb.json").read_text()) == {"id": "run2"}


def test_a_run_that_was_logged_nowhere_before_starts_there_when_resumed(library, folder):
    WandbLog(folder, LOG, CONFIG, resuming=True)
    assert (library.started[0]["id"], library.started[0]["resume"]) == (None, None)


def test_curves_images_and_summary(library, folder):
    log = WandbLog(folder, LOG, CONFIG, resuming=False)
    log.write(1, {"loss": 0.5, "bad": float("nan"), "large": float("inf"), "none": None, "pairs": 3})
    log.write_images(2, {"samples": IMAGE})
    log.write_summary({"images": 4, "scores": {"toy": {"change": 0.1}}})
    log.close()
    [run] = library.runs
    assert run.logged == [(1, {"loss": 0.5, "pairs": 3}), (2, {"samples": ("image", (2, 3, 3))})]
    assert run.sent_summary == {"images": 4, "scores": {"toy": {"change": 0.1}}}
    assert run.finished == 1


def test_the_writer_of_curves_sends_them(library, folder):
    with MetricsWriter(folder, wandb=WandbLog(folder, LOG, CONFIG, resuming=False)) as writer:
        writer.write(1, {"loss": np.float32(0.5)})
        writer.write_images(1, {"samples": IMAGE})
    assert library.runs[0].logged == [(1, {"loss": 0.5}), (1, {"samples": ("image", (2, 3, 3))})]


@pytest.mark.parametrize("failed", [False, True])
def test_a_failed_run_is_not_shown_as_finished(library, folder, failed):
    WandbLog(folder, LOG, CONFIG, resuming=False).close(failed)
    assert library.runs[0].exit_code == int(failed)


def test_a_process_that_does_not_write_sends_nothing(library, folder):
    with MetricsWriter(folder, active=False, wandb=WandbLog(folder, LOG, CONFIG, resuming=False)) as writer:
        writer.write(1, {"loss": 0.5})
        writer.write_images(1, {"samples": IMAGE})
    assert library.runs[0].logged == []


# Failures


@pytest.mark.parametrize(
    ("fails", "finished"), [("init", None), ("log", 0), ("Image", 0), ("summary", 0), ("finish", 0), ("", 1)]
)
def test_a_failure_is_a_warning_and_ends_the_logging_there_alone(library, folder, caplog, fails, finished):
    """The run's own files are complete; after the failure nothing more is sent, not even the end."""
    library.fails = fails
    log = WandbLog(folder, LOG, CONFIG, resuming=False)
    with MetricsWriter(folder, wandb=log) as writer:
        writer.write(1, {"loss": 0.5})
        writer.write_images(1, {"samples": IMAGE})
        writer.write(2, {"loss": 0.25})
    log.write_summary({"images": 4})
    log.close()
    assert [row["loss"] for row in read_metrics(writer.path)] == [0.5, 0.25]
    assert caplog.text.count("Weights & Biases: ConnectionError: no network; nothing more is sent there") == bool(fails)
    assert [run.finished for run in library.runs] == ([] if finished is None else [finished])
    sent = {"init": [], "log": [[]], "Image": [[1]]}.get(fails, [[1, 1, 2]])
    assert [[step for step, _ in run.logged] for run in library.runs] == sent


def test_a_damaged_file_of_the_earlier_run_is_a_warning_too(library, folder, caplog):
    (folder / "wandb.json").write_text("{")
    WandbLog(folder, LOG, CONFIG, resuming=True).write(1, {"loss": 0.5})
    assert "Weights & Biases: JSONDecodeError" in caplog.text and not library.started


def test_a_library_that_cannot_be_imported_is_a_warning(monkeypatch, folder, caplog):
    monkeypatch.setitem(sys.modules, "wandb", None)
    WandbLog(folder, LOG, CONFIG, resuming=False).close()
    assert "Weights & Biases: ModuleNotFoundError" in caplog.text


# The library


def test_a_missing_library_is_a_user_error(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"config field log.wandb = 'project' needs wandb: run pip install -e \"\.\[wandb\]\" in"
    ):
        check_installed(LOG)
    check_installed(LogSettings())


def test_a_folder_of_its_name_is_not_the_library(monkeypatch, tmp_path):
    """Python takes any folder on its path for a package, and the library makes a folder ``wandb`` for each project."""
    (tmp_path / "wandb").mkdir()
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(UserError, match="needs wandb"):
        check_installed(LOG)


def test_an_installed_library_is_fine(library):
    check_installed(LOG)
