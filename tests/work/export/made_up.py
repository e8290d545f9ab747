"""A LoRA, a run and its images, made up for tests of what is said about them."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from spo_jax.core.trees import unflatten
from spo_jax.methods import read_settings
from spo_jax.run.report.images import ImagePair
from spo_jax.weights.lora import LoRA
from spo_jax.work.export.source import RunRecord

SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
SUMMARY = {"batches": 3, "started": "2026-11-26T01:00:00+00:00", "finished": "2026-11-26T02:00:00+00:00"}


def a_lora(text_width: int = 768) -> LoRA:
    """A LoRA of one cross-attention of Stable Diffusion."""
    block = "down_blocks_0/attentions_0/transformer_blocks_0/attn2"
    widths = {"to_q": 320, "to_k": text_width}
    halves = {f"{block}/{name}/lora_A": np.ones((width, 2), np.float32) for name, width in widths.items()}
    halves |= {f"{block}/{name}/lora_B": np.ones((2, 320), np.float32) for name in widths}
    return LoRA(unflatten(halves), 2, 2)


def a_record(folder: Path, **changes: Any) -> RunRecord:
    """A run of three batches with 2, 0 and 3 updates."""
    rows = [{"step": 0}, *({"step": step, "train_batches": count} for step, count in ((1, 2), (2, 0), (3, 3), (4, 9)))]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return RunRecord(folder, 3, read_settings({"method": "spo", "model": SD15, **changes}), SUMMARY)


def images(count: int, side: int = 40) -> list[ImagePair]:
    grey = np.full((side, side, 3), 128, np.uint8)
    return [ImagePair(f"prompt {index}", grey, grey * 0 + index) for index in range(count)]
