"""Every evaluation that a document tells the reader to start has flags, contestants, rewards and a protocol that exist.

Nothing is fetched and nothing is drawn.
"""

import shlex
from collections.abc import Sequence

import pytest

from spo_jax.data.protocol import load_protocol, protocol_names
from spo_jax.rewards import check_reward
from spo_jax.rewards.common.protocol import Context
from spo_jax.work.evaluate.entries import read_entries
from tests.support.commands import ROOT
from tests.support.documented import commands_in, defined_flags

_OWN = ("ours.json",)  # files that the reader writes
_OWN_REWARDS = ("my_rewards.",)


def _commands(name: str) -> list[tuple[str, ...]]:
    """Returns the words of all commands of a module in the documents that do something, flags with their values."""
    texts = [file.read_text(encoding="utf-8") for file in sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])]
    found = [command for text in texts for command in commands_in(text) if command.module == f"spo_jax.{name}"]
    return [command.words for command in found if command.words]


def _flags(words: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs flags with values, which follow an equals sign or stand in the next word."""
    pairs: list[tuple[str, str]] = []
    for word in words:
        if word.startswith("--"):
            flag, _, value = word.removeprefix("--").partition("=")
            pairs.append((flag, value))
        else:
            flag, value = pairs.pop()
            assert value == "", f"{word} belongs to no flag"
            pairs.append((flag, word))
    return pairs


@pytest.mark.parametrize("words", _commands("evaluate"), ids=lambda words: shlex.join(words)[:100])
def test_an_evaluation_in_a_document_can_be_started(words: tuple[str, ...]) -> None:
    given = _flags(words)
    assert [flag for flag, _ in given if flag not in defined_flags("spo_jax.evaluate")] == []
    assert all(value for _, value in given) and "out" in dict(given)
    values = {flag: [value for name, value in given if name == flag] for flag, _ in given}
    entries = read_entries(*(values.get(flag, []) for flag in ("lora", "merged", "images")))
    assert len(entries) >= 1
    for protocol in values.get("protocol", []):
        assert protocol in (*protocol_names(), *_OWN)
    for reward in ",".join(values.get("rewards", [])).split(","):
        if reward and not reward.startswith(_OWN_REWARDS):
            check_reward(reward, Context(field="--rewards"))


def test_there_are_commands_for_both_models_and_every_released_checkpoint() -> None:
    texts = [shlex.join(words) for words in _commands("evaluate")]
    for model in ("stable-diffusion-v1-5/stable-diffusion-v1-5", "stabilityai/stable-diffusion-xl-base-1.0"):
        (all_of_them,) = [text for text in texts if f"--model={model}" in text and text.count("--merged=") > 3]
        methods = ("spo", "gradspo", "dpo", "inpo", "smpo", "lpo", "mapo" if "xl" in model else "kto")
        assert [name for name in methods if f"={name}=" not in all_of_them] == []


def test_protocols_whose_prompts_are_to_be_fetched_have_some() -> None:
    named = [dict(_flags(words)).get("protocol") for words in _commands("prepare")]
    assert {name for name in named if name} and all(load_protocol(name).fetch for name in named if name)


def test_the_document_describes_every_protocol() -> None:
    text = (ROOT / "docs" / "protocols.md").read_text(encoding="utf-8")
    assert [name for name in protocol_names() if f"| `{name}` |" not in text] == []
    for name in protocol_names():
        prompts = load_protocol(name).count
        assert prompts == 0 or f"{prompts:,}" in text or name == "toy"
