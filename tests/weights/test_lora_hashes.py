"""The hashes in a LoRA file for the web UIs are those of kohya's trainer, and equal content gives equal bytes."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from spo_jax.core.trees import unflatten
from spo_jax.models.lora import write_lora
from spo_jax.weights.lora import LoRA
from spo_jax.weights.store import read_file, read_metadata

MODULE = "down_blocks_0/attentions_0/transformer_blocks_0/attn1/to_q"
METADATA = {"ss_output_name": "stars", "ss_seed": "0", "modelspec.sai_model_spec": "1.0.1", "note": 'ä " \\ \n'}


def a_lora(width: int) -> LoRA:
    """A LoRA of one module, whose file is above a mebibyte from a width of 40,000 on."""
    halves = np.random.default_rng(0).normal(size=(2, width, 4)).astype(np.float32)
    return LoRA(unflatten({f"{MODULE}/lora_A": halves[0], f"{MODULE}/lora_B": halves[1].T}), 4, 4)


@pytest.mark.parametrize("width", [8, 60_000])
def test_hashes_are_those_of_kohyas_trainer(tmp_path: Path, width: int) -> None:
    """Its trainer serialises the tensors with torch and with the ss_ entries alone, and hashes that."""
    file = tmp_path / "lora.safetensors"
    write_lora(file, a_lora(width), "kohya", METADATA)
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in read_file(file).items()}
    theirs = safetensors.torch.save(tensors, {key: text for key, text in METADATA.items() if key.startswith("ss_")})
    metadata = read_metadata(file)
    assert metadata["sshs_legacy_hash"] == hashlib.sha256(theirs[0x100000:0x110000]).hexdigest()[:8]
    assert (len(theirs) > 0x100000) == (width > 8)
    whole = file.read_bytes()
    digest = hashlib.sha256(whole[8 + int.from_bytes(whole[:8], "little") :]).hexdigest()
    assert metadata["sshs_model_hash"] == digest and metadata["modelspec.hash_sha256"] == f"0x{digest}"
    assert {key: metadata[key] for key in METADATA} == METADATA


def test_equal_content_is_equal_bytes(tmp_path: Path) -> None:
    """Python and safetensors order hash tables anew in every process, so another process writes the same again."""
    metadata = METADATA | {f"ss_{number}": str(number) for number in range(20)}
    mine, other = tmp_path / "mine.safetensors", tmp_path / "other.safetensors"
    write_lora(mine, a_lora(8), "kohya", metadata)
    rewrite = (
        "import sys; from spo_jax.weights import store; "
        "store.write_state(sys.argv[2], store.read_file(sys.argv[1]), store.read_metadata(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", rewrite, mine, other], check=True, cwd=Path(__file__).parents[2])
    assert mine.read_bytes() == other.read_bytes()
    assert read_metadata(mine)["note"] == METADATA["note"]


def test_a_file_for_diffusers_has_no_hashes(tmp_path: Path) -> None:
    write_lora(tmp_path / "lora.safetensors", a_lora(8), "diffusers", {"ss_seed": "0"})
    assert not any(key.startswith(("sshs_", "modelspec")) for key in read_metadata(tmp_path / "lora.safetensors"))
