"""What the processes of a run compare: every setting, versions, and the content of everything that they read."""

import dataclasses

import pytest

import spo_jax
from spo_jax.methods.common.prompts import PromptData
from spo_jax.methods.spo.settings import SPOSettings, SPOTrainSettings
from spo_jax.run import facts
from spo_jax.run.facts import facts_of

SETTINGS = SPOTrainSettings(prompts="train.txt")
DATA = PromptData(["a red star", "a blue ring"], ["a green disc"])


def differing(settings=SETTINGS, data=DATA):
    """The facts that differ from those of `SETTINGS` and `DATA`, with their values."""
    found, usual = facts_of(settings, data), facts_of(SETTINGS, DATA)
    return {name: (usual.get(name), found.get(name)) for name in usual | found if usual.get(name) != found.get(name)}


def test_equal_runs_have_equal_facts():
    assert differing() == {}
    assert facts_of(SETTINGS, DATA)["the version of spo_jax"] == spo_jax.__version__


def test_every_setting_is_a_fact():
    other = dataclasses.replace(SETTINGS, seed=1, spo=SPOSettings(beta=5.0))
    assert differing(other) == {"config.seed": ("0", "1"), "config.spo.beta": ("10.0", "5.0")}


@pytest.mark.parametrize(
    ("data", "field"),
    [(PromptData(DATA.prompts, ["another"]), "eval.prompts"), (PromptData(["another"], DATA.eval_prompts), "prompts")],
)
def test_the_content_of_files_is_a_fact_and_named_by_its_field(data, field):
    found = differing(data=data)
    assert set(found) == {f"the content of config.{field}"} | ({"the training data"} if field == "prompts" else set())
    if field == "prompts":
        before, after = found["the content of config.prompts"]
        assert before.startswith("'train.txt' (2 entries, digest ") and after.startswith(
            "'train.txt' (1 entry, digest "
        )


def test_the_package_s_own_files_are_a_fact(monkeypatch):
    read = facts._text
    monkeypatch.setattr(facts, "_text", lambda file: read(file) + "# changed" * (file.name == "loop.py"))
    before = facts_of(SETTINGS, DATA)
    monkeypatch.undo()
    assert [name for name in before if before[name] != facts_of(SETTINGS, DATA)[name]] == ["the code of spo_jax"]
