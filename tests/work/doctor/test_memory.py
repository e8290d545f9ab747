"""Estimates of memory, against the programs that were compiled for TPUs (benchmarks/results)."""

import json

import pytest

import spo_jax
from spo_jax.work.doctor.memory import GIB, Need, Subject, estimate
from tests.commands import ROOT

# Numbers of all weights: of the pipelines, and of the judge, CLIP ViT-H/14 with the timestep as an input.
SD15, SDXL, SDXL_VAE, JUDGE = 1_066_235_307, 3_469_000_000, 83_653_863, 1_307_000_000
SUBJECTS = {
    "sd15": Subject((SD15 + JUDGE) * 2, "bfloat16", 3 * 4 * 797_184, (64, 64, 4), 1.0, 512 * 512 * 2),
    # Its autoencoder is float32, and its LoRA has rank 64.
    "sdxl": Subject((SDXL + SDXL_VAE + JUDGE) * 2, "bfloat16", 3 * 4 * 92_900_000, (128, 128, 4), 1.0, 1024 * 1024 * 4),
}
COMPILED = sorted((ROOT / "benchmarks" / "results").glob("aot-sd[1x]*.json"))


@pytest.mark.parametrize("file", COMPILED, ids=lambda file: file.stem)
def test_estimates_hold_what_was_compiled(file):
    """Of every result for SPO: the larger program of a chip lies in the range."""
    result = json.loads(file.read_text())
    settings = spo_jax.read_settings(spo_jax.load_config(result["config"]))
    config = spo_jax.load_config(result["config"])
    with config.unlocked():
        config.prompts_per_batch = result["settings"]["prompts_per_batch"]
        for field in ("train_batch_size", "train_chunk", "decode_chunk"):
            config.spo[field] = result["settings"]["spo"][field]
        config.mesh.fsdp = result["settings"]["mesh"]["fsdp"]
        config.spo.decoder = result["settings"]["spo"]["decoder"]
    settings = spo_jax.read_settings(config)
    programs = {name: program["total_bytes"] for name, program in result["programs"].items() if program.get("fits")}
    if set(programs) != {"collect", "update"}:
        pytest.skip("not all of its programs were compiled")
    need = estimate(settings, SUBJECTS[result["config"].partition("_")[0]], result["chips"])
    assert need.least <= max(programs.values()) <= need.most


def test_smaller_chunks_and_bfloat16_take_less():
    def most(**fields):
        config = spo_jax.load_config("sd15_one_chip")
        with config.unlocked():
            config.update(fields)
        return estimate(spo_jax.read_settings(config), SUBJECTS["sd15"], 1).most

    assert most(spo={"train_chunk": 10}) > most() > most(prompts_per_batch=5)
    assert most(dtype="float32") > 1.8 * most()  # pairs are float32 in any case
    assert most(remat=False) > most()


@pytest.mark.parametrize(("memory", "fits"), [(16, True), (12, None), (9, False)])
def test_what_is_not_certain_is_not_said_to_fit(memory, fits):
    assert Need(10 * GIB, 14 * GIB, 4 * GIB).fits(memory * GIB) is fits
