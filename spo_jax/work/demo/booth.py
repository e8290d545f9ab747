"""What the tab Vote does: every listener of its events, as functions from the values of fields to what is shown."""

import dataclasses
import math
import time
from collections.abc import Sequence
from typing import Any

import gradio as gr

from spo_jax.core.errors import UserError
from spo_jax.core.markdown import code, plain
from spo_jax.core.words import counted
from spo_jax.work.demo.ballot import COLLECT, COMPARE, Ballot, Setup, comparison, result
from spo_jax.work.demo.context import PageContext, page_errors

_JUST_BEFORE = 1800  # seconds
_FIELDS = tuple(field.name for field in dataclasses.fields(Setup))
SHOWN = 10  # values that `Booth.start` and `Booth.vote` return


class Booth:
    """The listeners of the tab.

    Fields are the values of a `Setup`, in the order of its fields. What is shown is the pair's token, the question, the
    left and the right image, the count of votes, the choices, the booth, the button for the end, the outcome's column,
    and what the browser remembers. ``known`` are the comparisons whose outcome a person has seen.

    Args:
      page: what the tabs share.

    Attributes:
      ballot: where pairs come from and votes go.
    """

    def __init__(self, page: PageContext):
        self._page = page
        self.ballot = Ballot(page)

    def start(self, *values: Any) -> list[Any]:
        """Shows a pair; the values are the fields and ``known``."""
        *fields, known = values
        with page_errors():
            return self._show(_setup(fields), known)

    def vote(self, choice: str, token: str, *values: Any) -> list[Any]:
        """Keeps a vote, and then shows another pair; the values are as in `start`."""
        *fields, known = values
        with page_errors():
            setup = _setup(fields)
            if not self.ballot.vote(token, choice, setup.voter, known):
                gr.Info("That pair was voted on already, or the page was started again. Here is a new one.")
            return self._show(setup, known)

    def end(self, *values: Any) -> list[Any]:
        """Closes a comparison, and shows the names and what the votes say; the values are as in `start`.

        Returns:
          The outcome, its column, the booth, the choices, what the browser remembers, and ``known``.
        """
        *fields, known = values
        with page_errors():
            matchup = self.ballot.matchup(_setup(fields))
            told = result(matchup.loras, self.ballot.tally(matchup), self.ballot.count_late(matchup))
        known = sorted({*known, comparison(matchup)})
        columns = [gr.Column(visible=True), gr.Column(visible=False), gr.Accordion(open=True)]
        return [told, *columns, {"known": known}, known]

    def restore(self, saved: Any) -> list[Any]:
        """Shows the tab, its fields and a new pair to whoever was voting just before the page was loaded again.

        Returns:
          The tabs, the fields, what is shown, and ``known``.
        """
        known = _known(saved)
        try:
            if time.time() - saved["at"] <= _JUST_BEFORE:
                setup = _setup([saved[name] for name in _FIELDS])
                others = dataclasses.asdict(setup)
                sides = self.choose(*(others.pop(name) for name in ("kind", "first", "second")))
                return [gr.Tabs(selected="vote"), *sides, *others.values(), *self._show(setup, known), known]
        except (UserError, KeyError, TypeError):
            pass  # nothing was started here, a LoRA is gone, or an older version has kept it
        return [gr.skip()] * (1 + len(_FIELDS) + SHOWN) + [known]

    def choose(self, kind: str, first: str, second: str) -> list[Any]:
        """Returns the first three fields for a kind of ballot and the names of two LoRAs."""
        choices = self._page.lora_choices()
        sides = zip((first, second), looks(kind), strict=True)
        return [kind, *(gr.Dropdown(choices, value=name, **look) for name, look in sides)]

    def _show(self, setup: Setup, known: list[str]) -> list[Any]:
        pair = self.ballot.next_pair(setup)
        status = f"{counted(self.ballot.count(setup.kind), 'vote')} in {code(str(self.ballot.folder(setup.kind)))}"
        if comparison(pair.matchup) in known:
            status += ". You have seen the names: your votes on these two are kept, but no longer counted as blind."
        return [
            pair.token,
            f"Which is better for **{plain(pair.prompt)}**?",
            *pair.images,
            status,
            gr.Accordion(open=False),
            gr.Column(visible=True),
            gr.Button(visible=setup.kind == COMPARE),
            gr.Column(visible=False),
            {**dataclasses.asdict(setup), "at": time.time(), "known": known},
        ]


def looks(kind: str) -> list[dict[str, Any]]:
    """Returns how the dropdowns of the two sides look."""
    compares = kind == COMPARE
    return [{"label": "First LoRA" if compares else "LoRA"}, {"label": "Second LoRA", "visible": compares}]


def _known(saved: Any) -> list[str]:
    """Returns the comparisons of which a browser remembers that their outcome was shown."""
    known = saved.get("known") if isinstance(saved, dict) else None
    return [name for name in known if isinstance(name, str)] if isinstance(known, list) else []


def _setup(values: Sequence[Any]) -> Setup:
    """Checks what a browser sends; the names of LoRAs are checked where they are read.

    Raises:
      UserError: a field holds what the page does not let anybody choose.
    """
    given = dict(zip(_FIELDS, values, strict=True))
    for name in ("first", "second", "prompts", "voter"):
        if not isinstance(given[name] or "", str):
            raise UserError(f"{name}: expected text")
        given[name] = given[name] or ""
    if given["kind"] not in (COLLECT, COMPARE):
        raise UserError(f"kind: expected {COLLECT} or {COMPARE}")
    for name, number in (("steps", int), ("guidance", float)):  # the studio checks their ranges
        if not isinstance(given[name], int | float) or not math.isfinite(given[name]):
            raise UserError(f"{name}: expected a number")
        given[name] = number(given[name])
    return Setup(**given)
