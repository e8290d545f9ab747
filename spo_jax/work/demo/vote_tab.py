"""The tab Vote: two images, and which of them is better."""

import dataclasses
import functools
import math
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gradio as gr

from spo_jax.core.config import MAX_GUIDANCE, MAX_STEPS
from spo_jax.core.errors import UserError
from spo_jax.core.words import counted
from spo_jax.work.demo.ballot import COLLECT, COMPARE, Ballot, Setup, result
from spo_jax.work.demo.context import BASE_MODEL, PageContext, page_errors

# Keys press the buttons. No vote are a key that is typed into a field, a second press for the same images, which would
# be a vote on images that nobody has seen, and a bounce of the key.
KEYS_SCRIPT = """
<script>
let answered = {images: "", time: 0};
document.addEventListener("keydown", (event) => {
  const ids = {"1": "vote-left", "2": "vote-right", "0": "vote-tie", " ": "vote-skip"};
  const button = document.getElementById(ids[event.key]);
  if (!button || button.offsetParent === null || button.disabled) return;
  if (event.repeat || event.ctrlKey || event.altKey || event.metaKey) return;
  const target = event.target;
  const typed = target.matches("textarea, select, [contenteditable], input:not([type=radio]):not([type=range])");
  if (typed || (event.key === " " && target.matches("button:not([id^=vote-]), input, summary"))) return;
  event.preventDefault();
  const shown = [...document.querySelectorAll(".pair img")];
  const images = shown.map((image) => image.src).join();
  const waited = Date.now() - answered.time;
  if (!shown.every((image) => image.complete) || waited < 200 || (images === answered.images && waited < 3000)) return;
  answered = {images, time: Date.now()};
  button.click();
});
// Firefox presses a focused button when the space key comes up.
document.addEventListener("keyup", (event) => {
  if (event.key === " " && event.target.matches("button[id^=vote-]")) event.preventDefault();
});
</script>
"""
CSS = """
.pair { flex-wrap: nowrap !important; gap: 8px !important; }
.pair .image-frame, .pair .image-container { width: 100% !important; }
.pair img { width: 100% !important; height: auto !important; max-height: 65vh; object-fit: contain; }
.pair img { image-rendering: pixelated; }
.choices { gap: 8px !important; }
.choices button { min-width: 60px !important; }
"""
_KINDS = [("Images of one model, to collect what I like", COLLECT), ("Two LoRAs, without their names", COMPARE)]
# After a click the keys belong to the buttons of the pair.
_LEAVE_FIELD = "() => { document.activeElement?.blur(); return []; }"
_JUST_BEFORE = 1800  # seconds
_FIELDS = tuple(field.name for field in dataclasses.fields(Setup))


class VoteTab(NamedTuple):
    """Parts of the tab that others use.

    Attributes:
      ballot: where pairs come from and votes go.
      fields: the components of a `Setup`, in the order of its fields.
      choose: fills the first three fields from the kind of ballot and the names of two LoRAs.
      starting: starts voting with what the fields say; an event listener's ``fn``, ``inputs`` and ``outputs``.
    """

    ballot: Ballot
    fields: list[gr.components.Component]
    choose: Callable[[str, str, str], list[Any]]
    starting: dict[str, Any]


def remembering() -> gr.BrowserState:
    """Returns what a browser remembers of the voting; it has to be outside of tabs, which exist only once opened."""
    return gr.BrowserState(None, storage_key="spo_jax_vote", secret="votes")


def add_vote_tab(page: PageContext, tabs: gr.Tabs, chosen: gr.BrowserState) -> VoteTab:
    """Adds the content of the tab to the tab in context.

    Args:
      page: what the tabs share.
      tabs: the tabs, of which this one has the id ``vote``.
      chosen: what the browser remembers of it.
    """
    ballot = Ballot(page)
    token = gr.Textbox(visible=False)
    with gr.Accordion("What to vote on") as choices:
        fields = _add_fields(page)
        begin = _begin(busy=False)
    kind, first, second = fields[:3]
    with gr.Column(visible=False) as booth:
        prompt = gr.Markdown(elem_id="vote-prompt")
        with gr.Row(elem_classes="pair"):
            left, right = (_add_image(side) for side in ("left", "right"))
        with gr.Row(elem_classes="choices"):
            buttons = {
                "left": gr.Button("Left (1)", elem_id="vote-left", variant="primary"),
                "tie": gr.Button("Tie (0)", elem_id="vote-tie"),
                "right": gr.Button("Right (2)", elem_id="vote-right", variant="primary"),
                "skip": gr.Button("Skip (space)", elem_id="vote-skip"),
            }
        status = gr.Markdown(elem_id="vote-status")
        reveal = gr.Button("End, and show the names", elem_id="vote-end", visible=False)
        outcome = gr.Markdown(elem_id="vote-outcome")
    shown = [token, prompt, left, right, status, choices, booth, reveal, outcome, chosen]
    nothing = [gr.skip()] * (1 + len(fields) + len(shown))

    def show(setup: Setup) -> list[Any]:
        pair = ballot.next_pair(setup)
        return [
            pair.token,
            f"Which is better for **{_escaped(pair.prompt)}**?",
            *pair.images,
            _status(ballot, setup),
            gr.Accordion(open=False),
            gr.Column(visible=True),
            gr.Button(visible=setup.kind == COMPARE),
            "",
            {**dataclasses.asdict(setup), "at": time.time()},
        ]

    def start(*values: Any) -> list[Any]:
        with page_errors():
            return show(_setup(values))

    def vote(choice: str, seen: str, *values: Any) -> list[Any]:
        with page_errors():
            setup = _setup(values)
            if not ballot.vote(seen, choice, setup.voter):
                gr.Info("That pair was voted on already, or the page was started again. Here is a new one.")
            return show(setup)

    def end(*values: Any) -> str:
        with page_errors():
            matchup = ballot.matchup(_setup(values))
            return result(matchup.loras, ballot.tally(matchup))

    def restore(saved: Any) -> list[Any]:
        """Shows a new pair to whoever was voting just before the page was loaded again."""
        try:
            if time.time() - saved["at"] > _JUST_BEFORE:
                return nothing
            setup = _setup([saved[name] for name in _FIELDS])
            return [gr.Tabs(selected="vote"), *_restored(page, setup), *show(setup)]
        except (UserError, KeyError, TypeError):  # nothing was started here; a LoRA is gone; an older version kept it
            return nothing

    kind.change(_named_sides, kind, [first, second], show_progress="hidden", api_visibility="private")
    for dropdown in (first, second):
        dropdown.focus(lambda: gr.Dropdown(choices=page.lora_choices()), None, dropdown, api_visibility="private")
    starting = {"fn": start, "inputs": fields, "outputs": shown}
    waits = begin.click(lambda: _begin(busy=True), None, begin, js=_LEAVE_FIELD, queue=False, api_visibility="private")
    started = waits.then(**starting, api_name="start_voting")
    started.then(lambda: _begin(busy=False), None, begin, queue=False, api_visibility="private")
    for choice, button in buttons.items():
        button.click(
            functools.partial(vote, choice), [token, *fields], shown, api_name=f"vote_{choice}", show_progress="hidden"
        )
    reveal.click(end, fields, outcome, api_name="end_voting")
    gr.context.Context.root_block.load(
        restore, chosen, [tabs, *fields, *shown], show_progress="hidden", api_visibility="private"
    )
    return VoteTab(ballot, fields, functools.partial(_chosen, page), starting)


def _add_fields(page: PageContext) -> list[gr.components.Component]:
    """Adds the choices of a `Setup`, in the order of its fields."""
    choices = page.lora_choices()
    usual = Setup()
    kind = gr.Radio(_KINDS, value=usual.kind, label="Vote on", elem_id="vote-kind")
    with gr.Row():
        # Custom values, because runs that ended after the page was built are choices as well.
        how = {"choices": choices, "value": BASE_MODEL, "allow_custom_value": True}
        first, second = (
            gr.Dropdown(**how, **look, elem_id=f"vote-{name}")
            for name, look in zip(("first", "second"), _looks(usual.kind), strict=True)
        )
    with gr.Accordion("Prompts and settings", open=False):
        prompts = gr.Textbox(
            label="Prompts, one per line",
            lines=4,
            max_lines=12,
            placeholder="\n".join([*page.prompts[:3], "…"]),
            info=f"Empty: the {counted(len(page.prompts), 'prompt')} that the page was started with.",
        )
        with gr.Row():
            steps = gr.Slider(1, min(100, MAX_STEPS), value=usual.steps, step=1, label="Steps")
            guidance = gr.Slider(1, min(20, MAX_GUIDANCE), value=usual.guidance, step=0.5, label="Guidance")
        voter = gr.Textbox(label="Your name", max_length=100, info="Kept with each vote; may stay empty.")
    return [kind, first, second, prompts, steps, guidance, voter]


def _begin(busy: bool) -> gr.Button:
    """Returns the button that starts, whose first press waits for the compiler."""
    text = "Drawing the first images, which takes longest …" if busy else "Start voting"
    return gr.Button(text, interactive=not busy, variant="primary", elem_id="start-voting")


def _add_image(side: str) -> gr.Image:
    return gr.Image(
        show_label=False,
        format="png",
        interactive=False,
        buttons=[],
        min_width=100,
        elem_id=f"image-{side}",
        alt_text=f"the image on the {side}",
    )


def _named_sides(kind: str) -> list[gr.Dropdown]:
    return [gr.Dropdown(**look) for look in _looks(kind)]


def _looks(kind: str) -> list[dict[str, Any]]:
    """Returns how the dropdowns of the two sides look."""
    compares = kind == COMPARE
    return [{"label": "First LoRA" if compares else "LoRA"}, {"label": "Second LoRA", "visible": compares}]


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


def _restored(page: PageContext, setup: Setup) -> list[Any]:
    """Returns the fields with what was chosen before; a dropdown has to know its choice."""
    others = dataclasses.asdict(setup)
    return [*_chosen(page, *(others.pop(name) for name in ("kind", "first", "second"))), *others.values()]


def _chosen(page: PageContext, kind: str, first: str, second: str) -> list[Any]:
    choices = page.lora_choices()
    sides = zip((first, second), _looks(kind), strict=True)
    return [kind, *(gr.Dropdown(choices, value=name, **look) for name, look in sides)]


def _status(ballot: Ballot, setup: Setup) -> str:
    count = ballot.count(setup.kind)
    return f"{counted(count, 'vote')} in `{ballot.folder(setup.kind)}`"


def _escaped(text: str) -> str:
    """Returns a prompt as Markdown that shows it and does nothing else."""
    return re.sub(r"([\\`*_{}\[\]()#+.!|<>~$-])", r"\\\1", " ".join(text.split()))
