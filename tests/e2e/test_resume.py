"""``python -m spo_jax.train --resume``: a run that was killed ends as one that was not; other runs are refused."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from spo_jax.core.errors import UserError
from spo_jax.run.folder import Resume
from spo_jax.run.metrics import read_metrics
from spo_jax.train import train
from spo_jax.weights.store import read_file

TIMING = ("seconds/", "pairs_per_second")


def rows_of(folder):
    """The batches' curves without timings and without evaluations, which depend on when they are due."""
    rows = read_metrics(folder / "metrics.jsonl")[1:]  # the first is that before training
    return [{name: value for name, value in row.items() if not name.startswith((*TIMING, "eval_"))} for row in rows]


def files_in(folder):
    return {path.relative_to(folder): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_killed_and_resumed_equals_uninterrupted(micro_run, micro_settings, tmp_path):
    """LoRA, curves and scores are equal bit for bit, in another process.

    The run was killed after it had written the row of its last batch, before the checkpoint: the last one is that of
    batch 2. Everything else may differ in what is looked at (logs, images).
    """
    out = tmp_path / "run"
    shutil.copytree(micro_run, out, ignore=shutil.ignore_patterns("3", "*.html", "summary.json", "*.safetensors"))
    settings = dataclasses.replace(micro_settings, log=dataclasses.replace(micro_settings.log, eval_every=0))
    summary = train(settings, out, Resume(required=True))
    assert [row["train_batches"] for row in rows_of(out)] == [2] * 3
    assert rows_of(out) == rows_of(micro_run)
    found = read_file(out / "lora.safetensors")
    expected = read_file(micro_run / "lora.safetensors")
    assert found.keys() == expected.keys()
    for name in found:
        np.testing.assert_array_equal(found[name], expected[name])
    assert summary["scores"] == json.loads((micro_run / "summary.json").read_text())["scores"]


def test_a_run_is_not_resumed_with_other_settings(micro_run, micro_settings):
    before = files_in(micro_run)
    changes = {
        "spo": dataclasses.replace(micro_settings.spo, beta=5.0, num_steps=6),
        "lora": dataclasses.replace(micro_settings.lora, rank=8),
        "seed": 1,
    }
    with pytest.raises(UserError) as caught:
        train(dataclasses.replace(micro_settings, **changes), micro_run, Resume(required=True))
    message = str(caught.value)
    for part in ("checkpoints/3 has other settings", "spo.num_steps was 3, now 6", "spo.beta was 10.0, now 5.0"):
        assert part in message
    assert "lora.rank was 4, now 8" in message and "seed was 0, now 1" in message
    assert "eval" not in message
    assert files_in(micro_run) == before


@pytest.mark.slow  # tests/run/test_checkpoint.py looks at the refusal itself
def test_a_run_that_is_beyond_the_requested_batches_is_refused(micro_run, micro_settings):
    before = files_in(micro_run)
    with pytest.raises(UserError, match="checkpoints/3 is beyond the requested 1 batch"):
        train(dataclasses.replace(micro_settings, max_batches=1), micro_run, Resume(required=True))
    assert files_in(micro_run) == before
