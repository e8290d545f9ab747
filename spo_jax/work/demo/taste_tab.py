"""The tab My taste: from votes to a LoRA of one's own, a button and the command behind it for each step."""

import functools
from typing import Any

import gradio as gr
import jax

from spo_jax.core.words import counted
from spo_jax.work.demo.ballot import COLLECT, COMPARE
from spo_jax.work.demo.context import BASE_MODEL, PageContext, page_errors
from spo_jax.work.demo.jobs import Jobs, last_lines
from spo_jax.work.demo.rounds import ENOUGH_VOTES, Round, State, Step, latest
from spo_jax.work.demo.vote_tab import VoteTab

CSS = """
.taste-step { align-items: center; border-top: 1px solid var(--border-color-primary); padding-top: 14px; }
.taste-command, .taste-command .cm-editor { border: none !important; outline: none !important; }
"""
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
    State.STOPPED: "Continue",
    State.FAILED: "Run again",
    State.DONE: "Done",
}
_CAN_START = (State.READY, State.STOPPED, State.FAILED)


def add_taste_tab(page: PageContext, jobs: Jobs, vote: VoteTab, tabs: gr.Tabs) -> None:
    """Adds the content of the tab to the tab in context.

    Args:
      page: what the tabs share.
      jobs: what runs the commands.
      vote: the tab for voting, which this one opens.
      tabs: the tabs, of which the one for voting has the id ``vote``.
    """
    on_tpu = jax.default_backend() == "tpu"
    gr.Markdown(_ON_TPU if on_tpu else _INTRODUCTION)
    number = gr.Dropdown(label="Round", elem_id="taste-round", **_rounds(page))
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

    def show(chosen: str) -> list[Any]:
        """Returns what the disk and the running command say of a round."""
        round_ = Round(page, int(chosen))
        count = vote.ballot.count(COLLECT)
        states = round_.states(jobs.running, count)
        parts = [
            part
            for place, (step, state) in enumerate(zip(round_.steps(), states, strict=True), 2)
            for part in _step_parts(place, step, state, enabled=not (jobs.running or on_tpu))
        ]
        output_of = _current(round_.steps(), states)
        text = "\n".join(last_lines(output_of.output)) if output_of else ""
        enough = "" if count >= ENOUGH_VOTES else f" of {ENOUGH_VOTES}"
        return [
            _title(1, "Vote", f"{counted(count, 'vote') if not enough else f'{count}{enough} votes'} so far."),
            *parts,
            gr.Button(interactive=states[-1] is State.DONE),
            gr.Button(visible=bool(jobs.running)),
            gr.Textbox(text, label=f"Output of {output_of.name!r}" if output_of else None, visible=bool(text)),
            gr.Timer(active=bool(jobs.running)),
        ]

    def start(place: int, chosen: str) -> list[Any]:
        with page_errors():
            round_ = Round(page, int(chosen))
            step = round_.steps()[place]
            if on_tpu or round_.states(jobs.running, vote.ballot.count(COLLECT))[place] not in _CAN_START:
                raise gr.Error(f"{step.name!r} cannot be started now.", print_exception=False)
            jobs.start(step.name, step.arguments, step.output)
            return show(chosen)

    def interrupt(chosen: str) -> list[Any]:
        if jobs.stop():
            gr.Info("The command finishes its batch, saves and ends.")
        return show(chosen)

    def look() -> list[Any]:
        """Returns the rounds and the latest of them, as the page was loaded anew."""
        rounds = _rounds(page)
        return [gr.Dropdown(**rounds), *show(rounds["value"])]

    quiet = {"show_progress": "hidden", "api_visibility": "private"}
    seen = {"show_progress": "hidden"}
    gr.context.Context.root_block.load(look, None, [number, *shown], **quiet)
    timer.tick(show, number, shown, api_name="taste_look", **seen)
    number.change(show, number, shown, **quiet)
    number.focus(lambda: gr.Dropdown(choices=_rounds(page)["choices"]), None, number, **quiet)
    for place, row in enumerate(rows):
        row[-1].click(functools.partial(start, place), number, shown, api_name=f"taste_{place + 1}", **seen)
    stop.click(interrupt, number, shown, api_name="taste_stop", **seen)

    def collecting() -> list[Any]:
        return [gr.Tabs(selected="vote"), *vote.choose(COLLECT, BASE_MODEL, BASE_MODEL)]

    def comparing(chosen: str) -> list[Any]:
        return [gr.Tabs(selected="vote"), *vote.choose(COMPARE, BASE_MODEL, Round(page, int(chosen)).lora)]

    sides = [tabs, *vote.fields[:3]]
    for button, choose, inputs in ((collect, collecting, None), (compare, comparing, number)):
        button.click(choose, inputs, sides, **quiet).then(**vote.starting, **quiet)


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
        button = _button("Run", f"taste-step-{place}")
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


def _button(text: str, name: str) -> gr.Button:
    return gr.Button(text, elem_id=name, scale=0, min_width=140)


def _step_parts(place: int, step: Step, state: State, enabled: bool) -> list[Any]:
    startable = state in _CAN_START
    return [
        f"{_title(place, step.name, step.meaning)} *{state.value.capitalize()}.*",
        step.command,
        gr.Button(
            _PRESS[state],
            interactive=startable and enabled,
            variant="primary" if startable else "secondary",
        ),
    ]


def _current(steps: tuple[Step, ...], states: list[State]) -> Step | None:
    """Returns the step whose output is shown: the one that runs, or the last that has run."""
    running = [step for step, state in zip(steps, states, strict=True) if state is State.RUNNING]
    seen = [step for step in steps if step.output.exists()]
    return (running or seen[-1:] or [None])[0]
