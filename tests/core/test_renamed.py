"""Names of earlier versions, and that each of the new ones exists."""

import importlib
import importlib.util

import pytest

from spo_jax.core import renamed
from spo_jax.core.config import describe
from spo_jax.core.config_flag import find_config
from spo_jax.core.renamed import renamed_value
from spo_jax.methods import load_method
from spo_jax.methods.common.settings import OptimizerSettings

FIELDS = {name for method in ("spo", "spm") for name, *_ in describe(load_method(method).Settings())}


@pytest.mark.parametrize(
    ("field", "value", "new"),
    [
        ("model", "embedded", "toy"),
        ("prompts", "embedded:train", "toy:train"),
        ("eval.rewards", "scenes", "toy"),
        ("model", "toy", None),
        ("model", "embedded_too", None),
        ("model", "folder/embedded", None),
        ("model", "", None),
        ("log.wandb_name", "embedded", None),  # a name of the user's own
    ],
)
def test_values(field, value, new):
    assert renamed_value(field, value) == new


def test_a_file_of_the_user_s_is_not_renamed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "embedded").mkdir()
    assert renamed_value("model", "embedded") is None


@pytest.mark.parametrize(("old", "new"), renamed.FIELDS.items())
def test_fields(old, new):
    """The new name is a field; the old one is not, in at least one method (preference models kept some)."""
    assert new in FIELDS
    assert any(old not in {name for name, *_ in describe(load_method(m).Settings())} for m in ("spo", "spm"))


def test_every_field_of_the_optimizer_s_first_version_is_known():
    added_since = {"schedule", "name"}
    names = {name for name, *_ in describe(OptimizerSettings())} - added_since
    assert {f"spo.{name}" for name in names} | names <= renamed.FIELDS.keys()


@pytest.mark.parametrize(("old", "new"), renamed.COMMANDS.items())
def test_commands(old, new):
    assert hasattr(importlib.import_module(f"spo_jax.{new}"), "run")
    assert importlib.util.find_spec(f"spo_jax.{old.partition('.')[0]}") is not None


@pytest.mark.parametrize("new", renamed.CONFIG_FILES.values())
def test_config_files(new):
    assert find_config(new).is_file()
