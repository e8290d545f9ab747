"""Modules found by name: ours by their names, a user's own by a dotted path."""

import sys

import pytest

from spo_jax.core.errors import UserError
from spo_jax.core.lookup import find_module, module_names


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Writes modules of a user's own into the current folder; they are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(name, text):
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    yield write
    for name in [name for name in sys.modules if name.split(".")[0] == "my_package"]:
        del sys.modules[name]


def test_names_are_those_of_the_modules_except_what_they_share():
    names = module_names("spo_jax.rewards")
    assert {"spm", "toy"} <= set(names) and not {"base", "common"} & set(names)
    assert {"spo", "spm"} <= set(module_names("spo_jax.methods"))


def test_a_module_of_ours(own):
    assert find_module("spo_jax.rewards", "spm", "--reward").__name__ == "spo_jax.rewards.spm"


def test_a_module_of_the_user_s_own_in_the_current_folder(own):
    """Commands that pip installs do not have the current folder on their path."""
    own("my_package/my_reward", "NAME = 'mine'\n")
    sys.path[:] = [path for path in sys.path if path]
    assert find_module("spo_jax.rewards", "my_package.my_reward", "--reward").NAME == "mine"


def test_a_dotted_path_into_the_package_itself():
    assert find_module("spo_jax.rewards", "spo_jax.rewards.spm", "--reward").__name__ == "spo_jax.rewards.spm"


@pytest.mark.parametrize("name", ["smp", "", "base", "common"])
def test_an_unknown_name_lists_ours(name):
    with pytest.raises(UserError, match=f"^config field method = '{name}': .*expected .*'spm', 'spo', or the dotted "):
        find_module("spo_jax.methods", name, "config field method")


@pytest.mark.parametrize(
    "name", ["absent_package.reward", "my_package.absent", "my_package.reward.absent", ".reward", "./reward.py", "spm."]
)
def test_a_dotted_path_that_leads_nowhere(own, tmp_path, name):
    own("my_package/reward", "")
    with pytest.raises(UserError) as caught:
        find_module("spo_jax.rewards", name, "--reward")
    expected = f"--reward = {name!r}: no module of that name can be imported from {tmp_path}"
    assert str(caught.value) == expected


def test_a_fault_inside_the_user_s_module_keeps_its_traceback(own):
    """It is not the path that is wrong."""
    own("my_package/faulty", "import absent_library\n")
    with pytest.raises(ModuleNotFoundError, match="absent_library"):
        find_module("spo_jax.rewards", "my_package.faulty", "--reward")
    own("my_package/broken", "1 / 0\n")
    with pytest.raises(ZeroDivisionError):
        find_module("spo_jax.rewards", "my_package.broken", "--reward")


def test_a_misspelled_name_of_ours_is_guessed():
    with pytest.raises(UserError, match="--rewards = 'toi': did you mean 'toy'\\? expected 'aesthetic', "):
        find_module("spo_jax.rewards", "toi", "--rewards")
    with pytest.raises(UserError, match="--rewards = 'qqqqq': expected 'aesthetic', "):
        find_module("spo_jax.rewards", "qqqqq", "--rewards")
