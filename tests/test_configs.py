"""The config files that the package ships."""

import importlib.util
from pathlib import Path

import pytest

from spo_jax.core.config import to_config
from spo_jax.core.config_flag import find_config
from spo_jax.methods import read_settings

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("[!_]*.py"))


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
