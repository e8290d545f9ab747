"""Configs are found by path and by name, in a checkout and in an installed package."""

import types
from pathlib import Path

import pytest

from spo_jax.core.config_flag import find_config, load_config
from spo_jax.core.errors import UserError
from tests.support.commands import ROOT


def test_a_config_is_a_path_or_a_name(monkeypatch, tmp_path):
    """A file of the current folder comes first; names are found from anywhere."""
    monkeypatch.chdir(tmp_path)
    assert find_config("toy").resolve() == ROOT / "configs" / "toy.py"
    (tmp_path / "toy").write_text("")
    assert find_config("toy") == Path("toy")
    (tmp_path / "mine.py").write_text("")
    assert find_config("mine.py") == Path("mine.py")
    with pytest.raises(UserError, match="--config=mine: no such file; expected a file, or a name: .*toy"):
        find_config("mine")


def test_a_config_in_the_installed_package_is_found_too(monkeypatch, tmp_path):
    """A wheel holds the configs inside of the package; a checkout has them beside it.

    The path that they have in a checkout is a name as well, except where there is another folder ``configs``.
    """
    package = tmp_path / "spo_jax"
    (package / "configs").mkdir(parents=True)
    (package / "configs" / "installed.py").write_text("")
    spec = types.SimpleNamespace(origin=str(package / "__init__.py"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    monkeypatch.chdir(tmp_path)
    for name in ("installed", "configs/installed.py", "./configs/installed.py"):
        assert find_config(name) == package / "configs" / "installed.py"
    (tmp_path / "configs").mkdir()
    with pytest.raises(UserError, match="--config=configs/installed.py: no such file; expected a file, or a name"):
        find_config("configs/installed.py")


def test_a_config_is_loaded_from_python(tmp_path):
    """Unlocked, so that a notebook can change fields; a mistake in the file is named with its line."""
    config = load_config("toy")
    config.max_batches = 3
    config.spo.beta = 5.0
    assert (load_config("toy").max_batches, load_config(str(ROOT / "configs" / "toy.py")).spo.threshold) == (0, 0.3)
    for text, message in (
        ("def get_config():\n    return 1 / 0\n", "config .*mine.py: line 2: ZeroDivisionError: division by zero"),
        ("def get_config():\n    return {}\n", r"get_config\(\) returned a dict, expected a ConfigDict"),
        ("x = 1\n", "KeyError: 'get_config'"),
    ):
        (tmp_path / "mine.py").write_text(text)
        with pytest.raises(UserError, match=message):
            load_config(str(tmp_path / "mine.py"))
