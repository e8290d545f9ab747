"""``python -m spo_jax.train``: what a run leaves, and going on with it."""

import dataclasses
import json
import math
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from spo_jax import training
from spo_jax.core.errors import UserError
from spo_jax.run.folder import Resume
from spo_jax.run.metrics import read_metrics
from spo_jax.models.lora import read_lora
from spo_jax.weights.store import read_file

TIMING = ("seconds/", "pairs_per_second")


def rows_of(folder):
    """The curves without what the clock says."""
    rows = read_metrics(folder / "metrics.jsonl")
    return [{name: value for name, value in row.items() if not name.startswith(TIMING)} for row in rows]


def files_in(folder):
    return {path.relative_to(folder): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_the_lora_has_learnt(run_folder):
    lora = read_lora(run_folder / "lora.safetensors")
    assert (lora.rank, lora.alpha) == (4, 4.0)
    assert all(b.any() for _, b in lora.modules().values())


def test_the_summary(run_folder):
    summary = json.loads((run_folder / "summary.json").read_text())
    assert (summary["pictures"], summary["batches"]) == (4, 3)
    assert 0 < summary["compile_seconds"] < summary["wall_seconds"]
    assert {"python", "spo_jax", "jax", "flax", "optax", "numpy", "device"} <= summary["versions"].keys()
    assert {"aesthetic", "accuracy/all", "out_of_range"} <= summary["scores"].keys()
    for score in summary["scores"].values():
        for key in ("before", "before_se", "before_std", "after", "after_se", "change", "change_se"):
            assert math.isfinite(score[key])
        assert score["change"] == pytest.approx(score["after"] - score["before"])


def test_the_curves(run_folder):
    rows = read_metrics(run_folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3]
    for row in rows:
        assert row["valid_pairs"] == 6 and row["train_batches"] == 2
        assert all(math.isfinite(value) for value in row.values())
    wanted = "loss ratio/win ratio/lose clip_fraction/win clip_fraction/lose valid_share grad_norm seconds/rollout"
    wanted += " seconds/update pairs_per_second/rollout pairs_per_second/update spm_score/t0201 spm_score/t0000"
    assert set(wanted.split()) <= rows[0].keys()


def test_grids_and_checkpoints_when_they_are_due(run_folder):
    assert sorted(path.name for path in (run_folder / "samples").iterdir()) == ["000002.png", "000003.png"]
    assert Image.open(run_folder / "samples" / "000003.png").size == (8 * 34 - 2, 32)  # 4 pictures in a row of 8
    assert sorted(path.name for path in (run_folder / "checkpoints").iterdir()) == ["2", "3"]
    assert list((run_folder / "tensorboard").iterdir())


def test_the_report_needs_no_other_file(run_folder):
    report = (run_folder / "report.html").read_text()
    sources = re.findall(r"(?:src|href)=[\"']([^\"']*)", report)
    assert len(sources) > 6 and all(source.startswith("data:") for source in sources)
    for text in ("aesthetic", "spo.beta", "Same prompts, same noise"):
        assert text in report


def test_what_the_user_sees(run_folder):
    shown, log = ((run_folder / name).read_text() for name in ("stdout.txt", "stderr.txt"))
    assert "4 pairs of pictures" in shown and "aesthetic" in shown and f"{run_folder}/report.html" in shown
    assert "3/3" in log and ("batch/s" in log or "s/batch" in log)
    assert "Traceback" not in log and "Warning" not in log


def test_killed_and_resumed_equals_uninterrupted(run_folder, tiny_settings, tmp_path):
    """Bit for bit, in another process: LoRA, curves and scores.

    The run was killed after the row of its last batch, before the checkpoint: the last one is that of batch 2. What
    is looked at (logs, pictures) may differ in the rest.
    """
    out = tmp_path / "run"
    shutil.copytree(run_folder, out, ignore=shutil.ignore_patterns("3", "*.html", "summary.json", "*.safetensors"))
    settings = dataclasses.replace(tiny_settings, log=dataclasses.replace(tiny_settings.log, sample_every=0))
    summary = training.train(settings, out, Resume(required=True))
    assert rows_of(out) == rows_of(run_folder)
    one, other = read_file(out / "lora.safetensors"), read_file(run_folder / "lora.safetensors")
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])
    assert summary["scores"] == json.loads((run_folder / "summary.json").read_text())["scores"]


def test_a_run_is_not_resumed_with_other_settings(run_folder, tiny_settings):
    before = files_in(run_folder)
    changes = {
        "spo": dataclasses.replace(tiny_settings.spo, beta=5.0, num_steps=6),
        "lora": dataclasses.replace(tiny_settings.lora, rank=8),
        "seed": 1,
    }
    with pytest.raises(UserError) as caught:
        training.train(dataclasses.replace(tiny_settings, **changes), run_folder, Resume(required=True))
    message = str(caught.value)
    for part in ("checkpoints/3 has other settings", "spo.num_steps was 5, now 6", "spo.beta was 10.0, now 5.0"):
        assert part in message
    assert "lora.rank was 4, now 8" in message and "seed was 0, now 1" in message
    assert "eval" not in message
    assert files_in(run_folder) == before


def test_a_run_that_has_done_more_than_is_asked_for_is_refused(run_folder, tiny_settings):
    before = files_in(run_folder)
    with pytest.raises(UserError, match="checkpoints/3 is past the 1 batches that are asked for"):
        training.train(dataclasses.replace(tiny_settings, max_batches=1), run_folder, Resume(required=True))
    assert files_in(run_folder) == before


def test_prompts_that_the_judge_does_not_know_are_refused_before_training(tiny_settings, tmp_path):
    (tmp_path / "prompts.txt").write_text("a photograph of a cat")
    evaluation = dataclasses.replace(tiny_settings.eval, prompts=str(tmp_path / "prompts.txt"))
    with pytest.raises(UserError, match="'a photograph of a cat' is outside the toy world"):
        training.train(dataclasses.replace(tiny_settings, eval=evaluation), tmp_path / "run")
    assert not (tmp_path / "run").exists()
