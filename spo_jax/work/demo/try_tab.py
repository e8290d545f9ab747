"""The tab Try: a prompt drawn without and with a LoRA from the same noise, and what the model predicts on the way."""

import html
import math
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import gradio as gr

from spo_jax import toy
from spo_jax.core.config import SEED_LIMIT
from spo_jax.core.errors import UserError
from spo_jax.core.images import to_uint8
from spo_jax.core.words import counted
from spo_jax.models.drawing import cuts
from spo_jax.toy.tokenizer import hint_at_vocabulary
from spo_jax.work.demo.context import BASE_MODEL, DEVICE, GUIDANCES, STEPS, PageContext, page_errors
from spo_jax.work.demo.looking import Drawing, difference, enlarged, strip
from spo_jax.work.studio import Frame

_EXAMPLES = 6
_BASE = "Base"
_TUNED = "With LoRA"
_DIFFERENCE = "Difference"
_STATUS_CSS = "min-height: 3em; progress { width: 100%; height: 10px; accent-color: var(--primary-500); }"
_STRIP_CSS = """
.strip { overflow-x: auto; padding-bottom: 6px; }
table { border-collapse: collapse; font-size: 12px; font-variant-numeric: tabular-nums; }
th, td { border: 0 !important; padding: 2px; font-weight: normal; text-align: center; vertical-align: top; }
th { white-space: nowrap; }
tr > :first-child { position: sticky; left: 0; padding-right: 8px; text-align: left; }
tr > :first-child { background: var(--body-background-fill); }
img { display: block; width: 64px; max-width: none; height: auto; image-rendering: pixelated; }
"""


class Wish(NamedTuple):
    """What a person asks for, checked.

    Attributes:
      prompt: the prompt.
      how: the other arguments of `spo_jax.work.studio.Studio.frames` that both images share.
      lora: name of the LoRA, as `PageContext.lora` takes it; empty for none.
      strength: its strength.
    """

    prompt: str
    how: dict[str, Any]
    lora: str
    strength: float

    @classmethod
    def of(cls, prompt: Any, lora: Any, strength: Any, seed: Any, steps: Any, guidance: Any) -> "Wish":
        """Reads the fields of the tab; a browser can send anything.

        Raises:
          UserError: a field is empty or holds something else than it should.
        """
        if not isinstance(prompt, str) or not prompt.strip():
            raise UserError("Write a prompt first.")
        numbers = {"strength": strength, "seed": seed, "steps": steps, "guidance": guidance}
        for name, number in numbers.items():
            if not isinstance(number, int | float):
                raise UserError(f"The field for the {name} is empty: expected a number.")
            if not math.isfinite(number):
                raise UserError(f"The field for the {name} holds {number}: expected a finite number.")
        how = {"seed": int(seed), "steps": int(steps), "guidance": float(guidance)}
        return cls(prompt.strip(), how, str(lora or BASE_MODEL), float(strength))


class Drawer:
    """Draws what the tab asks for; `draw` and `stop` are the listeners of its buttons.

    What the model draws without a LoRA is kept, so that only one image is drawn when the strength is changed.

    gradio can cancel events by itself, but shows that as an error, and what is on its way to the page comes after it.

    Args:
      page: what the tabs share.
    """

    def __init__(self, page: PageContext):
        self._page = page
        self._base: tuple[Any, Drawing | None] = (None, None)

    def stop(self, now: int | float, session: dict[str, int | float]) -> None:
        """Ends the drawings that a browser began before ``now``, a time by its own clock, also those that wait."""
        session["stopped"] = now

    def draw(self, *fields: Any) -> Iterator[list[Any]]:
        """Yields the values of the tab's outputs after every denoising step.

        Args:
          *fields: those of `Wish.of`, when the drawing was begun, and the browser's session, as in `stop`.

        Raises:
          gr.Error: a field, the LoRA or memory does not do.
        """
        *fields, begun, session = fields
        try:
            with page_errors():
                for outputs in self._draw(Wish.of(*fields)):
                    yield outputs
                    if session.get("stopped", 0) >= (begun or 0) > 0:
                        yield _outputs(_said("Stopped."))
                        return
        except gr.Error as error:
            yield _outputs(_said(html.escape(error.message)))  # longer than the message over the page is there
            raise

    def _draw(self, wish: Wish) -> Iterator[list[Any]]:
        yield _outputs(_said("Starting. What is new is compiled first."))
        lora = self._page.lora(wish.lora)
        key = (wish.prompt, *wish.how.values())
        drawings = {_BASE: self._base[1]} if self._base[0] == key else {}
        # Both are made before anything is drawn, so that a mistake in a field is found at once.
        wanted = {} if drawings else {_BASE: self._frames(wish, None)}
        wanted |= {} if lora is None else {_TUNED: self._frames(wish, lora)}
        total = wish.how["steps"] * len(wanted)
        done = 0
        for title, frames in wanted.items():
            drawings[title] = Drawing(title)
            for frame in frames:
                drawings[title].add(frame)
                done += 1
                text = f"{title}, step {frame.number} of {frame.count}"
                yield _outputs(_progress(text, done, total), drawings)
            if title == _BASE:
                self._base = (key, drawings[_BASE])
        yield _outputs(_told(wish, drawings, self._unread(wish.prompt)), drawings)

    def _unread(self, prompt: str) -> list[str]:
        """Says which parts of a prompt the model does not read, in the words of `spo_jax.sample`."""
        unknown = hint_at_vocabulary([prompt]) if self._page.model == toy.NAME else ""
        return [*([unknown] if unknown else []), *cuts(self._page.studio.pipeline, [prompt])]

    def _frames(self, wish: Wish, lora: Any) -> Iterator[Frame]:
        return self._in_turn(self._page.studio.frames([wish.prompt], lora=lora, strength=wish.strength, **wish.how))

    def _in_turn(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        """Takes the device for each step alone, so that whoever stops the drawing leaves it free."""
        while True:
            with self._page.device:
                frame = next(frames, None)
            if frame is None:
                return
            yield frame


# What is shown


def _outputs(status: str, drawings: dict[str, Drawing] | None = None) -> list[Any]:
    """Returns the values of the status, the two images, their difference and its legend, and the strip."""
    if drawings is None:
        return [status, *[gr.skip()] * 5]
    base = drawings[_BASE].image
    tuned = drawings[_TUNED].image if _TUNED in drawings else None
    over_time = strip(drawings.values())
    if tuned is None:
        return [status, enlarged(to_uint8(base)), None, None, "", over_time]
    change, factor = difference(base, tuned)
    legend = f"What the LoRA changes: grey is no change. **Amplified {counted(factor, 'time')}.**"
    return [status, enlarged(to_uint8(base)), enlarged(to_uint8(tuned)), enlarged(change), legend, over_time]


def _progress(text: str, done: int, total: int) -> str:
    return f"<div role='status'>{html.escape(text)}</div><progress value='{done}' max='{total}'></progress>"


def _said(text: str) -> str:
    return f"<div role='status'>{text}</div>"


def _told(wish: Wish, drawings: dict[str, Drawing], unread: list[str]) -> str:
    """Says what was drawn, what of the prompt was not read, and what the judge thinks of it."""
    text = f"Drew {counted(len(drawings), 'image')} of <b>{html.escape(wish.prompt)}</b>"
    text += " from the same noise." if len(drawings) > 1 else "; choose a LoRA to see what it changes."
    text += "".join(f"<br>Warning: {html.escape(warning)}." for warning in unread)
    if any(drawing.score is None for drawing in drawings.values()):
        return _said(f"{text} Start the page with <code>--judge</code> to see scores.")
    told = ", ".join(f"{drawing.score:.2f} ({title})" for title, drawing in drawings.items())
    return _said(f"{text}<br>The judge's score of the finished image: {told}.")


# The components


def add_try_tab(page: PageContext) -> None:
    """Adds the content of the tab to the tab in context."""
    drawer = Drawer(page)
    clock = gr.Number(0, visible=False)  # the browser's, when a button is pressed
    session = gr.State({})
    with gr.Row():
        with gr.Column(scale=2, min_width=290):
            fields, draw, stop = _add_fields(page)
        with gr.Column(scale=3, min_width=290):
            status = gr.HTML(elem_id="try-status", css_template=_STATUS_CSS)
            some = bool(page.newest_lora())
            with gr.Row():
                base, tuned = _add_image(_BASE), _add_image(_TUNED, visible=some)
            with gr.Row(visible=some) as compared:
                apart = _add_image(_DIFFERENCE)
                legend = gr.Markdown(min_height=20, elem_id="try-legend")
    fields[1].change(_boxes, fields[1], [tuned, compared], show_progress="hidden", api_visibility="private")
    gr.Markdown(
        "At every step the network predicts the finished image. Under each prediction is the judge's score at that "
        "timestep, as SPO compares candidates there; the last column is the finished image."
    )
    over_time = gr.HTML(elem_id="try-strip", css_template=_STRIP_CSS, apply_default_css=False)
    gr.on(
        [draw.click, fields[0].submit],
        lambda *values: (yield from drawer.draw(*values)),  # a generator even where a type checker wraps methods
        [*fields, clock, session],
        [status, base, tuned, apart, legend, over_time],
        concurrency_id=DEVICE,
        concurrency_limit=1,
        show_progress="minimal",
        show_progress_on=status,
        trigger_mode="once",
        js="(...values) => [...values.slice(0, -2), Date.now(), null]",
        api_name="draw",
    )
    stop.click(
        drawer.stop, [clock, session], None, queue=False, js="() => [Date.now(), null]", api_visibility="private"
    )


def _add_fields(page: PageContext) -> tuple[list[gr.components.Component], gr.Button, gr.Button]:
    """Adds what a person fills in, in the order that `Wish.of` takes it, and the buttons."""
    examples = list(dict.fromkeys(page.prompts))[:_EXAMPLES]
    prompt = gr.Textbox(examples[0] if examples else "", label="Prompt", lines=2, max_lines=4, elem_id="try-prompt")
    lora = gr.Dropdown(
        page.lora_choices(),
        value=page.newest_lora,  # asked whenever the page is loaded
        label="LoRA",
        info=f"of a run in {page.runs}, or the path of one below it",
        allow_custom_value=True,
        elem_id="try-lora",
    )
    lora.focus(lambda: gr.Dropdown(choices=page.lora_choices()), None, lora, api_visibility="private")
    strength = gr.Slider(0, 2, 1, step=0.05, label="Strength of the LoRA", elem_id="try-strength")
    with gr.Row():
        draw = gr.Button("Draw", variant="primary", min_width=100, elem_id="try-draw")
        stop = gr.Button("Stop", min_width=100, elem_id="try-stop")
    with gr.Row(equal_height=True):
        seed = gr.Number(0, label="Seed", precision=0, min_width=120, elem_id="try-seed")
        another = gr.Button("Another seed", size="md", min_width=120, elem_id="try-another")
    another.click(lambda: random.randrange(SEED_LIMIT), None, seed, api_visibility="private")
    with gr.Accordion("Steps and guidance", open=False):
        steps = gr.Slider(*STEPS, 20, step=1, label="Steps", elem_id="try-steps")
        guidance = gr.Slider(*GUIDANCES, 5, step=0.5, label="Guidance", elem_id="try-guidance")
    if len(examples) > 1:
        gr.Examples([[text] for text in examples], prompt, label="Prompts to try")
    return [prompt, lora, strength, seed, steps, guidance], draw, stop


def _boxes(lora: str) -> list[Any]:
    """Shows what only a drawing with a LoRA fills: its image, and the row with the difference."""
    return [gr.Image(visible=bool(lora)), gr.Row(visible=bool(lora))]


def _add_image(title: str, visible: bool = True) -> gr.Image:
    name = f"try-{title.split()[0].lower()}"
    how = {"format": "png", "interactive": False, "buttons": ["fullscreen"], "min_width": 140}
    return gr.Image(label=title, visible=visible, elem_id=name, **how)
