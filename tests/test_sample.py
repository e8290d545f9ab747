"""The function of the command sample, with a list of prompts as a notebook has it; other tests run the command."""

import pytest
from PIL import Image

import spo_jax
from spo_jax.core.errors import UserError


def test_a_list_of_prompts_is_drawn_with_the_toy(tmp_path):
    files = spo_jax.sample(prompts=["a red star", "a blue circle"], out=tmp_path, steps=1)
    assert [Image.open(file).text["prompt"] for file in files] == ["a red star", "a blue circle"]


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "prompts is an empty list"),
        (["a red star", " "], r"prompts\[1\] = ' ': expected a text"),
        (["\ud800"], "expected text that can be written as UTF-8"),
        ("", "give either --prompt=TEXT or --prompts=FILE"),
    ],
)
def test_lists_that_cannot_be_drawn(tmp_path, prompts, message):
    with pytest.raises(UserError, match=message):
        spo_jax.sample(prompts=prompts, out=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_prompt_and_a_list_are_one_too_many(tmp_path):
    with pytest.raises(UserError, match="give either"):
        spo_jax.sample(prompt="a red star", prompts=["a red star"], out=tmp_path)


def test_the_syntax_of_web_uis_for_a_lora_is_named(tmp_path, caplog):
    spo_jax.sample(prompts=["a red star", "(a red star:1.3) <lora:spo:1>"], out=tmp_path, steps=1)
    (hint,) = [line for line in caplog.messages if "web UI" in line]
    assert hint.startswith("'<lora:spo:1>' in a prompt") and "--lora=FILE" in hint and "--lora-scale" in hint
