"""The tab Try: what its buttons do, with a real studio of the smallest networks."""

import dataclasses
import html
import os

import gradio as gr
import jax
import numpy as np
import pytest

from spo_jax.models.lora import write_lora
from spo_jax.rewards.common.spm_reward import SPMReward
from spo_jax.weights.lora import LoRA
from spo_jax.work.demo.context import PageContext
from spo_jax.work.demo.try_tab import Drawer, add_try_tab
from spo_jax.work.studio import Studio
from tests.models.helpers import RANK, random_adapter
from tests.support.networks import small_pipeline, small_spm

STEPS = 3
STATUS, BASE, TUNED, APART, LEGEND, STRIP = range(6)


def fields(prompt="a red star", lora="one", strength=1.0, seed=0, steps=STEPS, guidance=5.0, begun=100.0, session=None):
    return prompt, lora, strength, seed, steps, guidance, begun, {} if session is None else session


def small_page(folder):
    """A page with the smallest networks, their judge, and a LoRA called ``one``."""
    studio = Studio(small_pipeline(), SPMReward(small_spm()))
    tree = jax.tree.map(np.asarray, random_adapter(studio.pipeline.params["unet"]))
    (folder / "runs" / "one").mkdir(parents=True)
    write_lora(folder / "runs" / "one" / "lora.safetensors", LoRA(tree, RANK, RANK))
    return PageContext("small", studio, folder / "runs", folder / "out", prompts=("a red star", "a blue moon"))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return small_page(tmp_path_factory.mktemp("page"))


def test_both_images_are_drawn_step_by_step_and_differ_by_the_lora(page):
    shown = list(Drawer(page).draw(*fields()))
    texts = [values[STATUS] for values in shown]
    assert len(shown) == 1 + 2 * STEPS + 1
    assert "Base, step 1 of 3" in texts[1] and "value='1' max='6'" in texts[1]
    assert "With LoRA, step 3 of 3" in texts[-2] and "value='6' max='6'" in texts[-2]
    last = shown[-1]
    assert "Drew 2 images of <b>a red star</b> from the same noise" in last[STATUS]
    assert "judge's score of the finished image" in last[STATUS]
    assert np.abs(last[BASE].astype(int) - last[TUNED]).max() > 10
    assert np.ptp(last[APART]) > 10 and "Amplified" in last[LEGEND]
    assert last[STRIP].count("<img") == 2 * (STEPS + 1)


def test_another_strength_draws_only_one_image_and_zero_is_the_base_model(page):
    drawer = Drawer(page)
    list(drawer.draw(*fields(steps=1)))
    shown = list(drawer.draw(*fields(steps=1, strength=0)))
    assert len(shown) == 1 + 1 + 1 and "value='1' max='1'" in shown[1][STATUS]
    np.testing.assert_allclose(shown[-1][BASE], shown[-1][TUNED], atol=1)
    assert len(list(drawer.draw(*fields(steps=1, seed=1)))) == 1 + 2 + 1  # other noise: both again


def test_without_a_lora_there_is_one_image(page):
    *_, last = Drawer(page).draw(*fields(lora="", prompt="<b>"))
    assert "Drew 1 image of <b>&lt;b&gt;</b>; choose a LoRA" in last[STATUS]
    assert last[TUNED] is None and last[APART] is None and last[LEGEND] == ""


def test_stop_ends_the_drawings_that_its_browser_began_before_it_and_leaves_the_device_free(page):
    drawer = Drawer(page)
    ann, bob = {}, {}  # their sessions
    mine, yours = drawer.draw(*fields(session=ann)), drawer.draw(*fields(session=bob))
    next(mine), next(mine), next(yours)
    drawer.stop(150.0, ann)
    assert next(mine)[STATUS] == "<div role='status'>Stopped.</div>"
    assert list(mine) == []
    assert "Drew" in list(yours)[-1][STATUS]
    assert "Drew" in list(drawer.draw(*fields(begun=200.0, session=ann)))[-1][STATUS]
    left = drawer.draw(*fields(seed=4, begun=300.0))
    next(left), next(left)  # nobody goes on, as when a browser is closed
    with page.device:
        pass


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": "  "}, "Write a prompt first."),
        ({"seed": None}, "The field for the seed is empty: expected a number."),
        ({"steps": "ten"}, "The field for the steps is empty: expected a number."),
        ({"seed": -1}, "--seed=-1: expected a number from 0 to"),
        ({"strength": float("inf")}, "The field for the strength holds inf: expected a finite number."),
        ({"seed": float("nan")}, "The field for the seed holds nan: expected a finite number."),
        ({"lora": "/etc/passwd"}, "no LoRA '/etc/passwd'"),
    ],
)
def test_a_mistake_is_a_message_and_stays_on_the_page(page, monkeypatch, change, message):
    monkeypatch.setattr(page.studio, "_step", None)  # nothing is drawn before a mistake is found
    shown = []
    with pytest.raises(gr.Error) as error:
        for outputs in Drawer(page).draw(*fields(**change)):
            shown.append(outputs[STATUS])
    assert message in error.value.message and not error.value.print_exception
    assert html.escape(message) in shown[-1]


def test_what_is_not_read_of_a_prompt_is_said_with_the_image(page):
    toy = dataclasses.replace(page, model="toy")
    *_, last = Drawer(toy).draw(*fields(lora="", steps=1, prompt=" ".join(["a red zebra"] * 40)))
    assert "it does not know: zebra." in last[STATUS] and "cut off: " in last[STATUS]
    *_, last = Drawer(toy).draw(*fields(lora="", steps=1))
    assert "Warning" not in last[STATUS]


def test_the_newest_lora_is_the_first_choice(page, tmp_path):
    assert dataclasses.replace(page, runs=tmp_path).newest_lora() == ""
    for time, name in ((3, "b"), (9, "c/d"), (5, "z")):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "lora.safetensors").write_bytes(b"")
        os.utime(tmp_path / name / "lora.safetensors", (time, time))
    assert dataclasses.replace(page, runs=tmp_path).newest_lora() == "c/d"
    assert dataclasses.replace(page, runs=tmp_path, named_loras={"mine": tmp_path}).newest_lora() == "mine"


def test_the_tab_offers_the_loras_of_runs_and_a_few_prompts(page):
    with gr.Blocks() as blocks, gr.Tab("Try"):
        add_try_tab(page)
    by_id = {block.elem_id: block for block in blocks.blocks.values() if getattr(block, "elem_id", None)}
    assert by_id["try-lora"].choices == [("no LoRA", ""), ("one", "one")]
    assert by_id["try-lora"].value == "one"
    assert by_id["try-prompt"].value == "a red star"
    draw = next(fn for fn in blocks.fns.values() if fn.api_name == "draw")
    assert draw.concurrency_id == "device" and draw.concurrency_limit == 1
