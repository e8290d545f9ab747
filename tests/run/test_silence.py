"""What orbax leaves behind after a failed save is not reported, and what others leave behind is."""

import gc
import logging
import sys
import types
import warnings

import pytest

from spo_jax.run.silence import silence_orbax


async def unused():
    pass


def test_a_coroutine_that_was_never_awaited_is_not_reported(capfd):
    """A full disk leaves such ones; Python reports them whenever they are collected, also at the end of the program."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        silence_orbax()
        unused()
        gc.collect()
        assert not caught
        warnings.warn("another warning", RuntimeWarning, stacklevel=1)
    assert len(caught) == 1 and capfd.readouterr().err == ""


def error_from(file):
    """An error that was raised in a file of that name, without a message that says so."""
    try:
        exec(compile("raise OSError(27, 'File too large')", file, "exec"))
    except OSError as error:
        return error


@pytest.mark.parametrize(
    ("file", "reported"), [("/lib/orbax/checkpoint/_src/path/async_path.py", False), ("/lib/other.py", True)]
)
def test_errors_that_nobody_asked_for_are_reported_unless_they_are_of_orbax(file, reported, caplog, monkeypatch):
    hooked = []
    monkeypatch.setattr(sys, "unraisablehook", hooked.append)
    silence_orbax()
    error = error_from(file)
    logging.getLogger("asyncio").error("Future exception was never retrieved", exc_info=error)
    traces = {"exc_type": OSError, "exc_value": error, "exc_traceback": error.__traceback__, "object": unused}
    sys.unraisablehook(types.SimpleNamespace(**traces))
    assert (len(caplog.records), len(hooked)) == (int(reported),) * 2


def test_tasks_that_were_never_finished_are_reported_unless_they_are_of_orbax(caplog):
    silence_orbax()
    for file in ("/lib/orbax/checkpoint/_src/futures/future.py", "/lib/other.py"):
        logging.getLogger("asyncio").error("Task was destroyed but it is pending! coro=<write() defined at %s>", file)
    assert ["other.py" in record.getMessage() for record in caplog.records] == [True]
