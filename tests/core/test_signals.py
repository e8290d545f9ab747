"""Signals: what a command leaves behind, and that its last line can be written wherever stderr goes."""

import sys

from spo_jax.core.signals import Interruption, write_line


def test_a_hook_that_was_put_on_top_stays_after_the_command(monkeypatch):
    """Orbax's writers report failures after the command has ended; see `spo_jax.run.silence`."""
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    with Interruption():
        assert Interruption.active
        inner = sys.unraisablehook
        sys.unraisablehook = lambda error: inner(error)
        top = sys.unraisablehook
    assert sys.unraisablehook is top and not Interruption.active
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    with Interruption():
        assert sys.unraisablehook is not sys.__unraisablehook__
    assert sys.unraisablehook is sys.__unraisablehook__


def test_a_line_can_be_written_without_stderr(monkeypatch, capfd):
    monkeypatch.setattr(sys, "stderr", None)
    write_line("the end")
    assert "the end" not in capfd.readouterr().out
