"""The hacked run of docs/guide.md from beginning to end, by the commands in the docstring of its config."""

import re
import shlex

import pytest

from spo_jax.core.files import read_json
from spo_jax.run.guard.look import looks_of
from spo_jax.run.metrics import read_metrics
from tests.support.commands import ROOT


@pytest.mark.slow  # about four minutes on two quiet cores; what the guard does is tested on runs that are made up
def test_the_guard_stops_a_run_near_its_best(succeed, tmp_path):
    text = (ROOT / "configs" / "toy_hacked.py").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [shlex.split(line)[3:] for line in re.findall(r"^python -m spo_jax\..*$", text, re.MULTILINE)]
    names = [line.split()[2].partition(".")[2] for line in re.findall(r"^python -m spo_jax\..*$", text, re.MULTILINE)]
    assert names == ["prepare", "train", "train"]
    for name, arguments in zip(names, lines, strict=True):
        succeed(name, *(argument.replace("=configs/", f"={ROOT}/configs/") for argument in arguments), cwd=tmp_path)

    guard = read_json(tmp_path / "runs" / "hacked" / "summary.json")["guard"]
    looks = {look.batch: look for look in looks_of(read_metrics(tmp_path / "runs" / "hacked" / "metrics.jsonl"))}
    stopped, exported = guard["stopped_batch"], guard["exported_batch"]
    assert 0 < exported < stopped < 48
    truth = {batch: look.held_out["aesthetic"] for batch, look in looks.items()}
    assert truth[0] + 0.05 < truth[exported] and truth[stopped] < truth[exported] - 0.03
    assert truth[exported] > max(truth.values()) - 0.03, "near the best by the truth"
    judge = {batch: look.trained["spm_score"] for batch, look in looks.items()}
    assert judge[stopped] > judge[exported] > judge[0]
