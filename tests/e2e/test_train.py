"""``python -m spo_jax.train``: what a run leaves behind; here on micro models, whose programs other tests use too."""

import dataclasses
import html
import json
import math
import re

import pytest
from PIL import Image

from spo_jax.core.errors import UserError
from spo_jax.models.lora import read_lora
from spo_jax.run.metrics import read_metrics
from spo_jax.run.verdict import verdict
from spo_jax.train import train


@pytest.fixture(scope="module")
def run_folder(commands, micro_settings, write_config, tmp_path_factory):
    """The folder of a finished run of three batches, started in a Python of its own; tests only read it."""
    return started(commands, micro_settings, write_config, tmp_path_factory.mktemp("runs") / "run")


def started(commands, settings, write_config, out):
    """The folder of a finished run with four images before and after, with what it printed."""
    settings = dataclasses.replace(settings, eval=dataclasses.replace(settings.eval, images=4, grid_images=4))
    process = commands.start("train", f"--config={write_config(settings)}", f"--out={out}")
    assert process.returncode == 0, process.stderr[-4000:]
    (out / "stdout.txt").write_text(process.stdout)
    (out / "stderr.txt").write_text(process.stderr)
    return out


@pytest.mark.slow  # tests/methods/spo/test_inspect.py draws and judges with the shipped networks
def test_the_shipped_pipeline(commands, toy_settings, write_config, tmp_path):
    out = started(commands, toy_settings, write_config, tmp_path / "run")
    summary = json.loads((out / "summary.json").read_text())
    assert {"aesthetic", "accuracy/all", "out_of_range"} <= summary["scores"].keys()
    rows = read_metrics(out / "metrics.jsonl")
    assert all(row["valid_pairs"] == 6 and math.isfinite(row["loss"]) for row in rows[1:])
    assert {"judge_score/t0201", "judge_score/t0000"} <= rows[1].keys()
    assert Image.open(out / "samples" / "000003.png").size == (8 * 34 - 2, 32)  # 4 images in a row of 8


def test_the_lora_has_learned(run_folder):
    lora = read_lora(run_folder / "lora.safetensors")
    assert (lora.rank, lora.alpha) == (4, 4.0)
    assert all(b.any() for _, b in lora.modules().values())


def test_the_summary(run_folder):
    summary = json.loads((run_folder / "summary.json").read_text())
    assert (summary["images"], summary["batches"], summary["method"]) == (4, 3, "spo")
    assert 0 < summary["compile_seconds"] < summary["wall_seconds"]
    assert {"python", "spo_jax", "jax", "flax", "optax", "numpy", "device"} <= summary["versions"].keys()
    assert summary["scores"].keys() == {"spm_score"}
    for score in summary["scores"].values():
        for key in ("before", "before_se", "before_std", "after", "after_se", "change", "change_se"):
            assert math.isfinite(score[key])
        assert score["change"] == pytest.approx(score["after"] - score["before"])


def test_the_curves(run_folder):
    rows = read_metrics(run_folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2, 3]  # 0: before training
    assert ["eval_spm_score" in row for row in rows] == [True, False, True, True]
    for row in rows[1:]:
        assert row["valid_pairs"] == 4 and row["train_batches"] == 2
        assert all(math.isfinite(value) for value in row.values())
    wanted = (
        "loss margin ratio/win ratio/lose clip_fraction/win clip_fraction/lose valid_share grad_norm seconds/rollout"
    )
    wanted += " seconds/update pairs_per_second/rollout pairs_per_second/update judge_score/t0001 judge_score/t0000"
    assert set(wanted.split()) <= rows[1].keys()


def test_grids_and_checkpoints_are_written_when_they_are_due(run_folder):
    assert sorted(path.name for path in (run_folder / "samples").iterdir()) == ["000002.png", "000003.png"]
    assert Image.open(run_folder / "samples" / "000003.png").size == (8 * 18 - 2, 16)  # 4 images in a row of 8
    assert sorted(path.name for path in (run_folder / "checkpoints").iterdir()) == ["2", "3"]
    assert list((run_folder / "tensorboard").iterdir())


def test_the_report_needs_no_other_file(run_folder):
    report = (run_folder / "report.html").read_text()
    sources = re.findall(r"(?:src|href)=[\"']([^\"']*)", report)
    assert len(sources) > 6 and all(source.startswith(("data:", "#")) for source in sources)
    texts = ("Spm score of 4 evaluation images", "spo.beta", "Same prompt and same noise")
    for text in (*texts, "--config.max_batches=6", "Load it in diffusers"):
        assert text in report


def test_the_verdict_is_the_same_everywhere(run_folder):
    summary = json.loads((run_folder / "summary.json").read_text())
    assert summary["verdict"] == verdict(summary["scores"])
    *_, told, last = (run_folder / "stdout.txt").read_text().splitlines()
    assert told == summary["verdict"] and "see" in last
    assert html.escape(summary["verdict"]) in (run_folder / "report.html").read_text()


def test_the_user_sees_progress_and_scores(run_folder):
    shown = (run_folder / "stdout.txt").read_text()
    log = (run_folder / "stderr.txt").read_text()
    assert "4 pairs of images" in shown and "spm_score" in shown and f"{run_folder}/report.html" in shown
    assert "3/3" in log and ("batch/s" in log or "s/batch" in log)
    assert "Traceback" not in log and "Warning" not in log


def test_prompts_that_the_reward_does_not_know_are_refused_before_training(toy_settings, tmp_path):
    (tmp_path / "prompts.txt").write_text("a photograph of a cat")
    evaluation = dataclasses.replace(toy_settings.eval, prompts=str(tmp_path / "prompts.txt"))
    with pytest.raises(UserError, match="'a photograph of a cat' is outside the toy world"):
        train(dataclasses.replace(toy_settings, eval=evaluation), tmp_path / "run")
    assert not (tmp_path / "run").exists()
