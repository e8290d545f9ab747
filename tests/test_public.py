"""The package's Python face, used as in a notebook; `tests/outside` trains, samples and exports with it as well."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import spo_jax
from spo_jax.core.errors import Interrupted, Preempted
from tests.support.commands import ROOT


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


def test_the_package_imports_without_modules_that_windows_lacks():
    """Every module, in a Python in which importing them fails; libraries have to do without them as well."""
    code = """
import importlib, pkgutil, sys
sys.modules.update(dict.fromkeys(["fcntl", "grp", "pwd", "resource", "termios"]))
import spo_jax
for module in pkgutil.walk_packages(spo_jax.__path__, "spo_jax."):
    if module.name in ("spo_jax.embedded", "spo_jax.train_spm"):  # these only say what to use now
        continue
    if not module.name.startswith("spo_jax.work.demo"):  # gradio asks the system's name, and not for the modules
        importlib.import_module(module.name)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


def test_what_a_run_loads_leaves_torch_alone_where_it_is_installed(tmp_path):
    """tensorboardX imports it, and transformers would as soon as it needed more than its tokenizers."""
    lines = f"""
import importlib.util, sys
import spo_jax
from tests.support.commands import imported_modules
for name in imported_modules():
    importlib.import_module(name)
spo_jax.train, spo_jax.sample, spo_jax.export
pipeline = spo_jax.open_pipeline("toy")
from spo_jax.run.metrics import MetricsWriter
with MetricsWriter({str(tmp_path)!r}) as writer:
    writer.write(1, {{"loss": 0.5}})
found = sorted({{"torch", "tensorflow", "diffusers", "peft"}} & set(sys.modules))
print(found, bool(importlib.util.find_spec("torch")))
"""
    done = subprocess.run([sys.executable, "-c", lines], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[] True\n", done.stderr[-2000:]  # True: torch is installed, as for all parity tests


def test_a_command_is_a_module_that_can_be_called():
    from spo_jax import export, sample, train

    assert train is spo_jax.train and train.__name__ == "spo_jax.train"
    assert sample.__doc__ and export.__doc__
    assert train.train is not train


@pytest.mark.slow
def test_the_python_of_the_readme_runs(tmp_path):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(import spo_jax\n.*?)```", readme, re.DOTALL)
    assert len(block.splitlines()) <= 12
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1", "XLA_FLAGS": ""}
    line = [sys.executable, "-c", f"{block}\nprint(pipeline.image_size)"]
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "'change'" in done.stdout and done.stdout.endswith("(32, 32)\n")
    for name in ("exports/notebook.safetensors", "runs/notebook/report.html"):
        assert (tmp_path / name).is_file()
    assert [Image.open(file).size for file in (tmp_path / "samples").glob("*.png")] == [(32, 32)]


@pytest.mark.parametrize("kind", [Interrupted, Preempted])
def test_a_run_that_was_stopped_in_a_notebook_says_how_it_goes_on(monkeypatch, kind):
    def stop(*_):
        raise kind("saved after batch 3 of 9")

    monkeypatch.setattr("spo_jax.train._train", stop)
    settings = spo_jax.read_settings(spo_jax.load_config("toy"))
    with pytest.raises(kind) as stopped:
        spo_jax.train(settings, Path("runs/toy"))
    again = "to continue: spo_jax.train(settings, 'runs/toy', spo_jax.Resume(required=True))"
    assert str(stopped.value) == f"saved after batch 3 of 9; {again}"


# What a person may type in Python, and what they should be told.
_MISTAKES = {
    "spo_jax.train(toy_config, 'runs/never')": "settings are a ConfigDict: pass spo_jax.read_settings(config)",
    "spo_jax.inspect_rollout(toy_config, ['a'])": "settings are a ConfigDict: pass spo_jax.read_settings(config)",
    "spo_jax.evaluate_spm(toy_config, 'toy', 'runs/never')": "settings are a ConfigDict: pass spo_jax.read_settings",
    "spo_jax.evaluate_spm(toy, 'toy', 'runs/never')": "--config: expected one of method 'spm', such as configs/spm_toy",
    "spo_jax.train(toy, 'runs/never', True)": "resume is True: expected spo_jax.Resume(required=True), spo_jax.Resume(",
    "spo_jax.read_settings(None)": "the config is None: expected one such as spo_jax.load_config('toy')",
    "spo_jax.read_settings('toy')": "the config is 'toy': expected one such as spo_jax.load_config('toy')",
    "spo_jax.load_config(None)": "the config to load is None: expected a file, or a name: d3po_sd15, ",
    "spo_jax.keep_copy('a', 'b', every='1').__enter__()": "every='1': expected seconds between two looks at the run",
    "spo_jax.inspect_rollout(toy, ['a'], seed=-1)": "--seed=-1: expected a number from 0 to",
    "spo_jax.inspect_rollout(toy, [None])": "--prompt=None: expected a text",
    "spo_jax.compare_strengths('runs/no', '0.5,x', 'x')": "--scales=0.5,x: expected numbers separated by commas",
    "spo_jax.compare_strengths('runs/no', '0.5,1', 'x')": "--run=runs/no: no run here",
    "spo_jax.compare_strengths('runs/no', 0.5, 'x')": "--scales=0.5: expected a list of strengths, such as [0.5,",
    "spo_jax.compare_strengths('runs/no', ['1'], 'x')": "--scales='1': expected a strength other than 0",
    "spo_jax.export_card('runs/no', 'x', scale='0.5')": "--scale='0.5': expected a strength other than 0",
    "spo_jax.sample(prompt='a', steps=2.5)": "--steps=2.5: expected a whole number from 1 to 1000",
    "studio.draw(['a'], steps=2.5)": "--steps=2.5: expected a whole number from 1 to 1000",
    "studio.draw(['a'], seed='1')": "--seed='1': expected a number from 0 to",
    "studio.draw(['a'], size=32)": "size=32: expected (height, width) in pixels, or None for the model's own",
    "studio.draw(['a'], lora=3)": "lora is 3: expected a run's folder, a file, or what studio.lora returned",
    "studio.draw(['a'], lora='runs/no')": "no such file or folder: runs/no",
    "studio.draw([None])": "--prompt=None: expected a text",
}
_MAKE_THEM = """
import sys
from pathlib import Path
import spo_jax
from spo_jax.core.errors import UserError
from spo_jax.work.studio import Studio
toy_config = spo_jax.load_config("toy")
toy = spo_jax.read_settings(toy_config)
studio = Studio.__new__(Studio)  # it has no model, because nothing may be computed
for line in sys.argv[1:]:
    try:
        eval(line)
        print("it is accepted")
    except UserError as error:
        print(error)
    except Exception as error:
        print(repr(error))
"""


def test_mistakes_in_python_are_told_in_words(tmp_path):
    """In a Python of its own, because the type checks of a test run would come first."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-c", _MAKE_THEM, *_MISTAKES]
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    told = done.stdout.splitlines()
    assert len(told) == len(_MISTAKES)
    wrong = {line: found for (line, said), found in zip(_MISTAKES.items(), told, strict=True) if said not in found}
    assert not wrong
    assert not list(tmp_path.iterdir())
