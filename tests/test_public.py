"""The package's Python face, used as in a notebook; `tests/outside` trains, samples and exports with it as well."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import spo_jax
from tests.commands import ROOT


def test_all_public_names_can_be_used():
    assert set(spo_jax.__all__) <= set(dir(spo_jax))
    for name in spo_jax.__all__:
        assert callable(getattr(spo_jax, name)) or name == "__version__"
    with pytest.raises(AttributeError, match="module 'spo_jax' has no attribute 'trian'"):
        spo_jax.trian  # noqa: B018


def test_importing_the_package_imports_nothing_heavy():
    line = (
        "import sys, spo_jax; sys.exit(sorted({'jax', 'flax', 'transformers', 'matplotlib'} & set(sys.modules)) != [])"
    )
    assert subprocess.run([sys.executable, "-c", line], cwd=ROOT).returncode == 0


def test_a_command_is_a_module_that_can_be_called():
    from spo_jax import export, sample, train

    assert train is spo_jax.train and train.__name__ == "spo_jax.train"
    assert sample.__doc__ and export.__doc__
    assert train.train is not train


@pytest.mark.slow
def test_the_python_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(block.splitlines()) <= 12
    monkeypatch.chdir(tmp_path)
    namespace = {}
    exec(compile(block, "README.md", "exec"), namespace)
    assert "'change'" in capsys.readouterr().out
    assert namespace["summary"]["batches"] == 4
    assert Path("spo.safetensors").is_file() and Path("runs/notebook/report.html").is_file()
    assert [Image.open(file).size for file in Path("samples").glob("*.png")] == [(16, 16)]
    assert namespace["pipeline"].image_size == (16, 16)
