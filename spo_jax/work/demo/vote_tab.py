"""The tab Vote: two images, and which of them is better."""

import functools
from typing import Any, NamedTuple

import gradio as gr

from spo_jax.core.words import counted
from spo_jax.work.demo.ballot import COLLECT, COMPARE, Setup
from spo_jax.work.demo.booth import Booth, looks
from spo_jax.work.demo.context import BASE_MODEL, GUIDANCES, STEPS, PageContext

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
_QUIET = {"show_progress": "hidden", "api_visibility": "private"}
# After a click the keys belong to the buttons of the pair.
_LEAVE_FIELD = "() => { document.activeElement?.blur(); return []; }"


class VoteTab(NamedTuple):
    """Parts of the tab that others use.

    Attributes:
      booth: what the tab does.
      fields: the components of a `Setup`, in the order of its fields.
      starting: starts voting with what the fields say; an event listener's ``fn``, ``inputs`` and ``outputs``.
    """

    booth: Booth
    fields: list[gr.components.Component]
    starting: dict[str, Any]


def remembering() -> gr.BrowserState:
    """Returns what a browser remembers of the voting; it has to be outside of tabs, which exist only once opened."""
    return gr.BrowserState(None, storage_key="spo_jax_vote", secret="votes")


def add_vote_tab(page: PageContext, tabs: gr.Tabs, remembered: gr.BrowserState) -> VoteTab:
    """Adds the content of the tab to the tab in context.

    Args:
      page: what the tabs share.
      tabs: the tabs, of which this one has the id ``vote``.
      remembered: what the browser remembers of it.
    """
    booth = Booth(page)
    with gr.Accordion("What to vote on") as choices:
        fields = _add_fields(page)
        begin = _begin(busy=False)
    with gr.Column(visible=False) as column:
        token = gr.Textbox(visible=False)
        prompt = gr.Markdown(elem_id="vote-prompt")
        with gr.Row(elem_classes="pair"):
            images = [_add_image(side) for side in ("left", "right")]
        with gr.Row(elem_classes="choices"):
            buttons = _add_buttons()
        status = gr.Markdown(elem_id="vote-status")
        reveal = gr.Button("End, and show the names", elem_id="vote-end", visible=False)
    with gr.Column(visible=False) as ended:
        outcome = gr.Markdown(elem_id="vote-outcome")
        go_on = gr.Button("Go on voting, no longer blind", elem_id="vote-go-on")
    known = gr.State([])
    shown = [token, prompt, *images, status, choices, column, reveal, ended, remembered]

    starting = {"fn": booth.start, "inputs": [*fields, known], "outputs": shown}
    waits = begin.click(lambda: _begin(busy=True), None, begin, js=_LEAVE_FIELD, queue=False, **_QUIET)
    started = waits.then(**starting, api_name="start_voting")
    for finished in (started.success, started.failure):  # `then` does not run after an error
        finished(lambda: _begin(busy=False), None, begin, queue=False, **_QUIET)
    for choice, button in buttons.items():
        voting = functools.partial(booth.vote, choice)
        button.click(voting, [token, *fields, known], shown, api_name=f"vote_{choice}", show_progress="hidden")
    closed = [outcome, ended, column, choices, remembered, known]
    reveal.click(booth.end, [*fields, known], closed, api_name="end_voting")
    go_on.click(**starting, **_QUIET)
    gr.context.Context.root_block.load(booth.restore, remembered, [tabs, *fields, *shown, known], **_QUIET)
    return VoteTab(booth, fields, starting)


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
            for name, look in zip(("first", "second"), looks(usual.kind), strict=True)
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
            steps = gr.Slider(*STEPS, value=usual.steps, step=1, label="Steps")
            guidance = gr.Slider(*GUIDANCES, value=usual.guidance, step=0.5, label="Guidance")
        voter = gr.Textbox(label="Your name", max_length=100, info="Kept with each vote; may stay empty.")
    kind.change(functools.partial(_sides, page), [kind, first, second], [first, second], **_QUIET)
    for dropdown in (first, second):
        dropdown.focus(lambda: gr.Dropdown(choices=page.lora_choices()), None, dropdown, **_QUIET)
    return [kind, first, second, prompts, steps, guidance, voter]


def _sides(page: PageContext, kind: str, first: str, second: str) -> list[gr.Dropdown]:
    """Returns the two LoRAs for a kind of ballot; the newest is the second if both sides would be the same."""
    sides = [gr.Dropdown(**look) for look in looks(kind)]
    newest = page.newest_lora()
    if kind == COMPARE and first == second != newest:
        sides[1] = gr.Dropdown(choices=page.lora_choices(), value=newest, **looks(kind)[1])
    return sides


def _begin(busy: bool) -> gr.Button:
    """Returns the button that starts, whose first press waits for the compiler."""
    text = "Drawing the first images, which takes longest …" if busy else "Start voting"
    return gr.Button(text, interactive=not busy, variant="primary", elem_id="start-voting")


def _add_buttons() -> dict[str, gr.Button]:
    """Adds the buttons of the choices, whose names the script of the keys knows."""
    best = {"variant": "primary"}
    return {
        "left": gr.Button("Left (1)", elem_id="vote-left", **best),
        "tie": gr.Button("Tie (0)", elem_id="vote-tie"),
        "right": gr.Button("Right (2)", elem_id="vote-right", **best),
        "skip": gr.Button("Skip (space)", elem_id="vote-skip"),
    }


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
