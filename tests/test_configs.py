"""The config files that the package ships."""

import importlib.util
from pathlib import Path

import pytest

from spo_jax.core.config import to_config
from spo_jax.core.config_flag import find_config, load_config
from spo_jax.methods import read_settings

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("[!_]*.py"))
CONFIGS_BY_NAME = {path.stem: path for path in CONFIGS}


def read(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, module.get_config()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_can_be_read_and_names_its_command(path):
    module, config = read(path)
    assert config.is_locked
    assert f"python -m spo_jax.train --config=configs/{path.name}" in module.__doc__
    settings = read_settings(config)
    assert read_settings(to_config(settings)) == settings


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_found_by_its_name(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert find_config(path.stem).resolve() == path


BUILT_ON_ANOTHER = [path for path in CONFIGS if "load_config(" in path.read_text()]


@pytest.mark.parametrize("path", BUILT_ON_ANOTHER, ids=lambda path: path.stem)
def test_a_config_that_starts_from_another_can_be_copied_to_a_folder_of_one_s_own(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(path.read_text())
    assert load_config("mine.py") == load_config(path.stem)


def differing(first, second):
    """Returns the names of the fields in which two configs differ; a group's field is ``group.field``."""
    flat = [
        {
            f"{name}.{field}" if hasattr(value, "items") else name: inner
            for name, value in read(CONFIGS_BY_NAME[config])[1].items()
            for field, inner in (value.items() if hasattr(value, "items") else [(name, value)])
        }
        for config in (first, second)
    ]
    return {name for name in flat[0] if flat[0][name] != flat[1][name]}


def test_a_taste_changes_what_it_says_of_the_recipes():
    """Their docstrings say that they are the published settings but for the judge, and for the few pairs."""
    assert differing("taste_sd15", "sd15_overnight") == {"spm.model", "spm.tokenizer"}
    fewer = {"batch_size", "chunk", "train_steps", "optimizer.warmup_steps", "eval.batch"}
    data = {"init", "data_dir", "eval_split", "flip", "log.checkpoint_every", "log.eval_every"}
    assert differing("taste_spm_sd15", "spm_sd15") == fewer | data
    own = {"num_epochs", "spm.model", "spo.divert_start_step", "log.eval_every", "log.checkpoint_every"}
    no_guard = {"eval.guard", "eval.guard_rewards"}  # the toy's truth is not that taste
    assert differing("taste_toy", "toy") == own | no_guard
