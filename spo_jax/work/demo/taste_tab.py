"""The tab My taste: from votes to a LoRA of one's own, a button and the command behind it for each step."""

import functools
import re
from typing import Any

import gradio as gr
import jax

from spo_jax.core.errors import UserError
from spo_jax.core.markdown import code, plain
from spo_jax.core.words import counted, listed
from spo_jax.work.demo.ballot import COLLECT, COMPARE, Ballot
from spo_jax.work.demo.context import BASE_MODEL, PageContext, page_errors
from spo_jax.work.demo.jobs import Jobs, last_lines
from spo_jax.work.demo.rounds import ENOUGH_VOTES, Round, State, Step, latest
from spo_jax.work.demo.vote_tab import VoteTab
from spo_jax.work.doctor.extras import EXTRAS, pip_line

CSS = """
.taste-step { align-items: center; border-top: 1px solid var(--border-color-primary); padding-top: 14px; }
.taste-command, .taste-command .cm-editor { border: none !important; outline: none !important; }
"""
_QUIET = {"show_progress": "hidden", "api_visibility": "private"}
_EVERY = 1.5  # seconds between two looks at what a command prints
_INTRODUCTION = f"""
Vote on {ENOUGH_VOTES} pairs or more, and let the model learn from it. A button starts the command that is shown
with it, which you can as well copy into a terminal. Everything is kept on disk: a step that was stopped goes
on where it was, also after the page was closed.
"""
_ON_TPU = """
**This page holds the TPU, which only one program at a time can use.** Vote here, end the page with Ctrl-C, run the
commands in a terminal, and open the page again to compare.
"""
_PRESS = {
    State.WAITING: "Run",
    State.READY: "Run",
    State.RUNNING: "Running …",
    State.ELSEWHERE: "Running …",
    State.STOPPED: "Continue",
    State.STOPPED_EARLY: "Run",
    State.FAILED: "Run again",
    State.DONE: "Done",
}
_NOT_LEARNED = (
    "<br>**The judge shows no sign of learning, so that a LoRA would learn little of your taste from it.** Vote on "
    "more pairs, and begin the next round."
)
_GOES_ON = (State.RUNNING, State.ELSEWHERE)
_CAN_START = (State.READY, State.STOPPED, State.STOPPED_EARLY, State.FAILED)


class TasteTab:
    """The listeners of the tab; what they show is read from the disk and of the command that runs.

    Args:
      page: what the tabs share.
      jobs: what runs the commands.
      ballot: where votes are counted.
    """

    def __init__(self, page: PageContext, jobs: Jobs, ballot: Ballot):
        self._page = page
        self._jobs = jobs
        self._ballot = ballot
        self._on_tpu = jax.default_backend() == "tpu"
        self.introduction = _ON_TPU if self._on_tpu else _INTRODUCTION

    def show(self, chosen: str) -> list[Any]:
        """Returns what there is to say of a round: all outputs of the tab."""
        with page_errors():
            round_ = self.round(chosen)
            votes = self._ballot.count(COLLECT)
        running = self._jobs.running
        states = round_.states(running, votes)
        parts = []
        before = None
        for place, (step, state) in enumerate(zip(round_.steps(), states, strict=True), 2):
            warning = _NOT_LEARNED if before and not before.anything and state is not State.DONE else ""
            parts += _step_parts(place, step, state, warning, enabled=not (running or self._on_tpu))
            before = step.learned
        current = _current(round_.steps(), states)
        text = "\n".join(last_lines(current.output)) if current else ""
        counts = counted(votes, "vote") if votes >= ENOUGH_VOTES else f"{votes} of {ENOUGH_VOTES} votes"
        return [
            f"{_title(1, 'Vote', f'{counts} so far.')}{_missing()}",
            *parts,
            gr.Button(interactive=states[-1] is State.DONE),
            gr.Button(visible=bool(running)),
            gr.Textbox(text, label=f"Output of {current.name!r}" if current else None, visible=bool(text)),
            gr.Timer(active=bool(running) or State.ELSEWHERE in states),
        ]

    def start(self, place: int, chosen: str) -> list[Any]:
        """Starts the command of a step."""
        with page_errors():
            round_ = self.round(chosen)
            step = round_.steps()[place]
            state = round_.states(self._jobs.running, self._ballot.count(COLLECT))[place]
            if self._on_tpu or state not in _CAN_START:
                raise UserError(f"{step.name!r} cannot be started now: {state.value}")
            self._jobs.start(step.job, step.arguments, step.output)
        return self.show(chosen)

    def stop(self, chosen: str) -> list[Any]:
        """Asks the command that runs to end."""
        if self._jobs.stop():
            gr.Info("The command finishes its batch, saves and ends; before the first batch there is nothing to save.")
        return self.show(chosen)

    def look(self) -> list[Any]:
        """Returns the rounds, and what `show` says of the latest."""
        rounds = _rounds(self._page)
        return [gr.Dropdown(**rounds), *self.show(rounds["value"])]

    def round(self, chosen: str) -> Round:
        """Returns the round of this number.

        Raises:
          UserError: it is no number of a round.
        """
        if not re.fullmatch(r"[1-9][0-9]{0,3}", str(chosen)):
            raise UserError(f"there is no round {str(chosen)[:20]!r}: expected a number from 1 to 9999")
        return Round(self._page, int(chosen))


def add_taste_tab(page: PageContext, jobs: Jobs, vote: VoteTab, tabs: gr.Tabs, tab: gr.Tab) -> None:
    """Adds the content of the tab to the tab in context.

    Args:
      page: what the tabs share.
      jobs: what runs the commands.
      vote: the tab for voting, which this one opens.
      tabs: the tabs, of which the one for voting has the id ``vote``.
      tab: this tab.
    """
    taste = TasteTab(page, jobs, vote.booth.ballot)
    gr.Markdown(taste.introduction)
    number = gr.Dropdown(label="Round", allow_custom_value=True, elem_id="taste-round", **_rounds(page))
    with gr.Row(elem_classes="taste-step"):
        votes = gr.Markdown(elem_id="taste-votes")
        collect = _button("Vote", "taste-collect")
    rows = [_add_step(place, step) for place, step in enumerate(Round(page, 1).steps(), 2)]
    with gr.Row(elem_classes="taste-step"):
        gr.Markdown(_title(5, "Compare", "Vote blind on images with your LoRA and without."))
        compare = _button("Compare", "taste-compare")
    stop = gr.Button("Stop the command, which saves first", variant="stop", visible=False, elem_id="taste-stop")
    output = gr.Textbox(label="Output", lines=8, max_lines=14, interactive=False, visible=False, elem_id="taste-output")
    timer = gr.Timer(_EVERY, active=False)
    shown = [votes, *(part for row in rows for part in row), compare, stop, output, timer]

    gr.context.Context.root_block.load(taste.look, None, [number, *shown], **_QUIET)
    gr.on([tab.select, number.change], taste.show, number, shown, **_QUIET)
    timer.tick(taste.show, number, shown, api_name="taste_look", show_progress="hidden")
    number.focus(lambda: gr.Dropdown(choices=_rounds(page)["choices"]), None, number, **_QUIET)
    for place, (*_, button) in enumerate(rows):
        starting = functools.partial(taste.start, place)
        button.click(starting, number, shown, api_name=f"taste_{place + 1}", show_progress="hidden")
    stop.click(taste.stop, number, shown, api_name="taste_stop", show_progress="hidden")

    def to_vote(kind: str, chosen: str) -> list[Any]:
        second = taste.round(chosen).lora if kind == COMPARE else BASE_MODEL
        return [gr.Tabs(selected="vote"), *vote.booth.choose(kind, BASE_MODEL, second)]

    for kind, button in ((COLLECT, collect), (COMPARE, compare)):
        opened = button.click(functools.partial(to_vote, kind), number, [tabs, *vote.fields[:3]], **_QUIET)
        opened.then(**vote.starting, **_QUIET)


def _rounds(page: PageContext) -> dict[str, Any]:
    """Returns the rounds to choose from, and the latest."""
    last = latest(page)
    choices = [str(number) for number in range(1, last + 1)]
    begun = Round(page, last).data.exists()
    return {"choices": [*choices, *([(f"{last + 1} (new)", str(last + 1))] if begun else [])], "value": str(last)}


def _title(place: int, name: str, meaning: str) -> str:
    return f"**{place}. {name}.** {meaning}"


def _add_step(place: int, step: Step) -> list[gr.components.Component]:
    """Adds a step; returns its title, its command and its button."""
    with gr.Row(elem_classes="taste-step"):
        title = gr.Markdown(_title(place, step.name, step.meaning))
        button = _button("Run", f"taste-step-{place}", interactive=False)  # until its state is known
    command = gr.Code(
        step.command,
        language=None,
        interactive=False,
        show_label=False,
        show_line_numbers=False,
        wrap_lines=True,
        lines=1,
        buttons=["copy"],
        elem_classes="taste-command",
    )
    return [title, command, button]


def _button(text: str, name: str, interactive: bool = True) -> gr.Button:
    return gr.Button(text, elem_id=name, scale=0, min_width=140, interactive=interactive)


def _missing() -> str:
    """Says what the steps after the votes need and is not installed."""
    extra = EXTRAS["data"]
    if not extra.missing:
        return ""
    return f"<br>**The steps after it need {listed(extra.missing)}: install with `{pip_line('data')}`.**"


def _step_parts(place: int, step: Step, state: State, warning: str, enabled: bool) -> list[Any]:
    startable = state in _CAN_START
    title = f"{_title(place, step.name, step.meaning)} *{state.value[0].upper()}{state.value[1:]}.*"
    if step.learned:
        title += f" {plain(step.learned.verdict)}"
    title += warning
    if state in _GOES_ON:
        title += f"<br>{code(''.join(last_lines(step.output, 1)) or 'starting')}"
    return [
        title,
        step.command,
        gr.Button(
            _PRESS[state],
            interactive=startable and enabled,
            variant="primary" if startable else "secondary",
        ),
    ]


def _current(steps: tuple[Step, ...], states: list[State]) -> Step | None:
    """Returns the step whose output is shown: the one that runs, or the last that has run."""
    running = [step for step, state in zip(steps, states, strict=True) if state in _GOES_ON]
    seen = [step for step in steps if step.output.exists()]
    return (running or seen[-1:] or [None])[0]
