"""Bars, stages and lines below a cell: one place for a cell, in which each of them is rewritten."""

from types import SimpleNamespace

import pytest
from IPython.core.interactiveshell import InteractiveShell

from spo_jax.core import notebook, progress
from spo_jax.core.errors import Interrupted, UserError


class Cells:
    """Stands in for IPython: what each place shows, in the order in which the places appeared."""

    def __init__(self):
        self.execution_count = 1
        self.shown = []
        self.writes = 0

    def display(self, content, raw, display_id):
        self.shown.append(content)
        number = len(self.shown) - 1

        def update(content, raw):
            self.shown[number] = content
            self.writes += 1

        return SimpleNamespace(update=update)

    def texts(self):
        return [content["text/plain"] for content in self.shown]


@pytest.fixture
def cells(monkeypatch):
    found = Cells()
    monkeypatch.setattr("IPython.display.display", found.display)
    monkeypatch.setattr("IPython.get_ipython", lambda: found)
    monkeypatch.setattr(notebook, "_pages", {})
    monkeypatch.setattr(progress, "in_notebook", lambda: True)
    monkeypatch.setattr(progress, "_NOTHING", -1.0)
    return found


def test_all_lines_of_a_cell_are_in_one_place(cells):
    """A place for each line would put a gap between any two."""
    with progress.stage("reading toy"):
        progress.say("a warning")
    with progress.bar("images", 3, "image") as outer, progress.bar("steps", 2, "step") as inner:
        inner.update(2)
        outer.update(3)
    (text,) = cells.texts()
    first, second, third, fourth = text.splitlines()
    assert first == "a warning" and second.startswith("reading toy: 0.")
    assert third.startswith("images: 100%|██") and fourth.startswith("steps: 100%|██")
    assert all(len(line) <= 110 for line in (third, fourth))
    assert "\x1b" not in text and "\r" not in text


def test_the_next_cell_has_lines_of_its_own(cells):
    progress.say("one")
    cells.execution_count = 2
    progress.say("two")
    assert cells.texts() == ["one", "two"]


def test_a_long_bar_is_not_a_flood(cells):
    with progress.bar("images", 5000, "image") as shown:
        for _ in range(5000):
            shown.update()
    assert cells.writes < 10 and len(cells.texts()[0].splitlines()) == 1


def test_only_the_latest_lines_stay(cells):
    for number in range(150):
        progress.say(f"line {number}")
    assert cells.texts()[0].splitlines() == [f"line {number}" for number in range(50, 150)]


def test_what_runs_outside_of_a_kernel_is_no_notebook():
    assert not notebook.in_notebook()


@pytest.mark.parametrize("kind, shown", [(UserError, "error: no such file\n"), (Interrupted, "no such file\n")])
def test_what_a_user_can_correct_is_shown_in_one_line(kind, shown, capsys):
    """Below a cell, a traceback of fifty lines would hide the one that says what to do."""
    shell = InteractiveShell()
    shell.user_ns["error"] = kind("no such file")
    shell.run_cell("raise error")
    assert capsys.readouterr().out == shown
