"""The cell that installs: what it asks pip for on the machines of Colab and Kaggle, and what it says.

pip itself is replaced here; it was run by hand, in an environment with the versions of Colab.
"""

import importlib.metadata
import importlib.util
import os
import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support.commands import ROOT

CELL = ROOT / "notebooks" / "install.py"
SUITS = {"jax": "0.10.1", "jaxlib": "0.10.1", "libtpu": "0.0.40", "numpy": "2.0.2", "torch": "2.11.0+cu128"}
TOO_OLD = SUITS | {"jax": "0.7.2", "jaxlib": "0.7.2", "libtpu": "0.0.21"}  # as Colab had it in the middle of 2026
SOURCE = "git+https://github.com/spo-jax/spo_jax"


class Machine:
    """Stands in for a machine without the package: what is installed there, its device files, and its pip."""

    def __init__(self, monkeypatch, found, files=(), folder="/content", status=0, brings=None):
        self.packages = dict(found)
        self.asked = None
        self.status = status
        self.brings = brings or {}
        # What the test itself has loaded is not what that machine has.
        for name in ("jax", "numpy", "PIL", "filelock", "flax"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        for name in ("SPO_JAX_SOURCE", "KAGGLE_KERNEL_RUN_TYPE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        monkeypatch.setattr(importlib.metadata, "distributions", self.distributions)
        monkeypatch.setattr("glob.glob", lambda pattern: [file for file in files if Path(file).match(pattern)])
        monkeypatch.setattr(os.path, "exists", lambda path: path in files)
        monkeypatch.setattr(os.path, "isdir", lambda path: path == folder)
        monkeypatch.setattr("subprocess.run", self.pip)

    def distributions(self):
        return [SimpleNamespace(metadata={"Name": name}, version=text) for name, text in self.packages.items()]

    def pip(self, command):
        assert command[1:4] == ["-m", "pip", "install"]
        constraints = Path(command[command.index("-c") + 1]).read_text().split()
        self.asked = (command[-1], sorted(constraints))
        self.packages |= {"spo_jax": "0.1.0"} | self.brings
        return SimpleNamespace(returncode=self.status)


def test_it_does_nothing_where_the_package_is(monkeypatch):
    monkeypatch.setattr("subprocess.run", lambda *_, **__: pytest.fail("pip was called"))
    runpy.run_path(str(CELL))


def test_a_jax_that_suits_stays_as_it_is(monkeypatch, capsys):
    machine = Machine(monkeypatch, SUITS, files=["/dev/accel0"])
    runpy.run_path(str(CELL))
    assert machine.asked == (f"spo_jax @ {SOURCE}", sorted(f"{name}=={text}" for name, text in SUITS.items()))
    assert capsys.readouterr().out == "installed spo_jax 0.1.0\n"


@pytest.mark.parametrize(
    "files, extra, where",
    [(["/dev/accel0"], "[tpu]", "tpu"), (["/dev/vfio/0"], "[tpu]", "tpu"), (["/dev/nvidia0"], "[gpu]", "gpu")]
    + [([], "", "the CPU")],
)
def test_a_jax_that_does_not_suit_is_replaced_for_the_device(monkeypatch, capsys, files, extra, where):
    machine = Machine(monkeypatch, TOO_OLD, files=files)
    runpy.run_path(str(CELL))
    assert machine.asked == (f"spo_jax{extra} @ {SOURCE}", ["numpy==2.0.2", "torch==2.11.0+cu128"])
    assert f"jax 0.7.2: installing one that spo_jax can use, for {where}\n" in capsys.readouterr().out


def test_a_jax_that_was_loaded_already_needs_a_restart(monkeypatch):
    Machine(monkeypatch, TOO_OLD, brings={"jax": "0.10.2"})
    monkeypatch.setitem(sys.modules, "jax", SimpleNamespace())
    with pytest.raises(SystemExit, match="restart the runtime: other versions were loaded of jax$"):
        runpy.run_path(str(CELL))


def test_it_says_what_pip_could_not_install(monkeypatch):
    Machine(monkeypatch, SUITS, status=1)
    with pytest.raises(SystemExit, match="pip could not install spo_jax @ git.*: the lines above say why"):
        runpy.run_path(str(CELL))


def test_nothing_is_installed_on_a_machine_of_one_s_own(monkeypatch):
    machine = Machine(monkeypatch, SUITS, folder="/home/me")
    with pytest.raises(SystemExit, match="install the package first: pip install -e"):
        runpy.run_path(str(CELL))
    assert machine.asked is None
    monkeypatch.setenv("SPO_JAX_SOURCE", "file:///home/me/spo_jax")
    runpy.run_path(str(CELL))
    assert machine.asked[0] == "spo_jax @ file:///home/me/spo_jax"


def test_its_address_and_its_range_of_jax_are_those_of_the_package():
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    cell = CELL.read_text(encoding="utf-8")
    assert f'git+{re.search(r"url=.(.+?).,", setup)[1]}"' in cell
    (least, most) = re.findall(r"\((\d+), (\d+)\)", re.search(r"JAX_FROM, JAX_BELOW = .*", cell)[0])
    bounds = f">={'.'.join(least)},<{'.'.join(most)}"
    assert set(re.findall(r'"jax(?:\[\w+\])?(>=[^"]+)"', setup)) == {bounds}
