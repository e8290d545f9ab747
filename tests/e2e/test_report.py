"""What the report of a run says to do next is true: its commands and its Python run as they are printed."""

import html
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from PIL import Image

from spo_jax.core.files import read_json
from tests.support.commands import ROOT


@pytest.fixture
def advice(micro_run, tmp_path):
    """A copy of a run's folder, and what its report says about it: code by heading."""
    run = shutil.copytree(micro_run, tmp_path / "run")
    page = (run / "report.html").read_text()
    steps = re.findall(r"<h3>([^<]*)</h3>\s*(?:<p>[^<]*</p>\s*)?<pre[^>]*><code>([^<]*)</code>", page)
    return run, {title: html.unescape(code).replace(str(micro_run), str(run)) for title, code in steps}


def arguments(code):
    """Name of the command and its arguments, as a shell reads them."""
    python, module, name, *rest = shlex.split(code.replace("\\\n", ""))
    assert (python, module) == ("python", "-m")
    return name.removeprefix("spo_jax."), *rest


def test_the_commands_are_for_this_run(advice, succeed):
    run, steps = advice
    assert list(steps) == [
        "Draw with it", "Load it in diffusers", "Export it for the web UIs", "Publish it", "Merge it into the model",
        "Train longer",
    ]  # fmt: skip
    assert all(str(run) in code for code in steps.values())
    succeed(*arguments(steps["Export it for the web UIs"]))
    assert (run / "kohya.safetensors").is_file()


@pytest.mark.slow
def test_everything_that_the_report_says_works(advice, succeed):
    run, steps = advice
    succeed(*arguments(steps["Draw with it"]))
    assert len(list((run / "drawn").glob("0*.png"))) == 8
    succeed(*arguments(steps["Publish it"]))
    assert (run / "card" / "README.md").is_file()
    succeed(*arguments(steps["Merge it into the model"]))
    assert (run / "merged" / "model_index.json").is_file()
    succeed(*arguments(steps["Train longer"]))
    assert read_json(run / "summary.json")["batches"] == 6
    image = run / "image.png"
    code = f"{steps['Load it in diffusers']}\nimage.save({str(image)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert Image.open(image).size == (16, 16)
