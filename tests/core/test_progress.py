"""Stages, bars and log lines: redrawn on a terminal, whole lines anywhere else, and nothing from other processes."""

import io
import logging
import re
from types import SimpleNamespace

import pytest

from spo_jax.core import progress


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


@pytest.fixture(params=[Terminal, io.StringIO], ids=["terminal", "file"])
def stderr(request, monkeypatch):
    stream = request.param()
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=stream))
    monkeypatch.setattr(progress, "_NOTHING", -1.0)
    return stream


def test_a_stage_ends_with_its_seconds(stderr):
    with progress.stage("reading toy"):
        pass
    time = "" if stderr.isatty() else r"\d\d:\d\d:\d\d "
    assert re.fullmatch(time + r"reading toy: 0\.\d s", stderr.getvalue().rstrip("\n").rpartition("\r")[2])


def test_a_long_stage_is_announced(stderr, monkeypatch):
    monkeypatch.setattr(progress, "_LONG", 0.0)
    with progress.stage("compiling"):
        assert wait_for("compiling", stderr)
    assert stderr.getvalue().count("compiling: ") == 1


def wait_for(text, stream):
    return any(text in stream.getvalue() for _ in range(10_000_000))


def test_a_short_stage_is_not_worth_a_line(stderr, monkeypatch):
    monkeypatch.setattr(progress, "_NOTHING", 60.0)
    with progress.stage("reading"):
        pass
    assert "reading: " not in stderr.getvalue()


def test_an_error_says_in_which_stage_it_came(stderr):
    with pytest.raises(ValueError) as caught, progress.stage("compiling update"):
        raise ValueError
    assert caught.value.__notes__ == ["while compiling update"]
    assert "compiling update: " not in stderr.getvalue()


def test_a_bar_in_a_file_is_a_few_whole_lines(monkeypatch):
    """tqdm's own bars write thousands of carriage returns into the log of a cluster."""
    stream = io.StringIO()
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=stream))
    with progress.bar("images", 5000, "image") as shown:
        for _ in range(5000):
            shown.set_postfix({"score": "1.0"}, refresh=False)
            shown.update()
    lines = stream.getvalue().splitlines()
    assert "\r" not in stream.getvalue() and 2 <= len(lines) <= 4
    assert "images: 0/5000" in lines[0]
    assert re.match(r"\d\d:\d\d:\d\d images: 5000/5000 \[.*image/s, score=1.0\]", lines[-1])


def test_log_lines_have_no_thread_and_no_microseconds(stderr):
    handler = progress.LogHandler()
    for level in (logging.INFO, logging.WARNING):
        handler.handle(logging.LogRecord("absl", level, "file.py", 3, "found %d", (4,), None))
    lines = [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in stderr.getvalue().splitlines()]
    assert lines == ["found 4", "warning: found 4"]


def test_only_one_of_several_processes_shows_progress(stderr, monkeypatch):
    monkeypatch.setattr(progress, "_hidden", False)
    progress.hide()
    with progress.stage("reading"), progress.bar("images", 2, "image") as shown:
        shown.update(2)
    assert stderr.getvalue() == ""


def test_a_terminal_that_was_closed_does_not_end_a_run(monkeypatch):
    class Gone(io.StringIO):
        def write(self, text):
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=Gone()))
    monkeypatch.setattr(progress, "_NOTHING", -1.0)
    with progress.stage("reading"), progress.bar("images", 2, "image") as shown:
        shown.update(2)
