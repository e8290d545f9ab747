"""The comparison with torch: its sums by hand, and both sides as they run, in this process."""

import jax
import pytest

from benchmarks import against_torch, contender
from benchmarks.against_torch import Contender, results
from benchmarks.torch_table import read_results, table
from spo_jax.core.errors import UserError
from spo_jax.core.files import read_json, write_json


def row(rollout, update, pairs, memory):
    return {
        "seconds_rollout": rollout,
        "seconds_update": update,
        "valid_pairs": pairs,
        "loss": 0.5,
        "peak_memory_bytes": memory,
    }


def test_ratios():
    """A ratio above 1 is better for ours; speeds are those of the median batch, and pairs are summed."""
    ours = [row(1.0, 1.0, 10, 100), row(1.0, 1.0, 10, 120), row(9.0, 1.0, 10, 110)]
    theirs = [row(4.0, 2.0, 12, 300), row(4.0, 2.0, 12, 240), row(4.0, 2.0, 12, 240)]
    found = results({"ours": ours, "theirs": theirs}, prompts=4)
    assert found["ours"]["trajectories_per_second"] == 2.0
    assert found["theirs"]["pairs_per_second"] == 2.0
    assert found["ratios"] == {
        "trajectories_per_second": pytest.approx(3.0),
        "pairs_per_second": pytest.approx(30 / 14 / 2.0),
        "rollout_speed": 4.0,
        "update_speed_per_pair": pytest.approx(10.0 / 6.0),
        "peak_memory": 300 / 120,
    }


def test_the_table_compares_what_was_measured_together(tmp_path):
    """LPO beside SPO on one day; another size that was measured alone has nothing to be compared with."""

    def write(size, decoder, seconds, memory, **more):
        sides = {"ours": [row(seconds, 1.0, 8, memory)], "theirs": [row(4.0, 4.0, 8, 2 * 2**30)]}
        versions = {"versions": {"jax": "1", "torch": "2"}, "sides": {"theirs": {"versions": {"torch": "2"}}}}
        about = {"size": size, "decoder": decoder, "device": {"kind": "cpu"}, "date": "2026-11-26", "threads": 2}
        found = {**about, **versions, **more, "results": results(sides, prompts=4)}
        write_json(tmp_path / f"against_torch-{size}-{decoder}-cpu.json", found)

    write("small", "vae", 3.0, 2**31)
    write("toy", "none", 1.0, 2**29, measured_beside=["vae", "none"])
    write("toy", "vae", 3.0, 2**30, measured_beside=["vae", "none"])
    rows = [line.split(" | ") for line in table(read_results(tmp_path)).splitlines()[-3:]]
    assert [(cells[0], cells[1], cells[4], *cells[9:13]) for cells in rows] == [
        ("| small", "SPO, autoencoder", "2.00", "–", "–", "–", "8"),
        ("| toy", "SPO, autoencoder", "2.00", "1.00", "1.00", "100%", "8"),
        ("| toy", "LPO, nothing decoded", "4.00", "2.00", "3.00", "50%", "8"),
    ]


@pytest.mark.slow
def test_both_sides(tmp_path, one_device, micro_settings):
    """Our side writes the files that theirs reads; both train on every pair of a rollout, the peer also in bfloat16."""
    with jax.set_mesh(one_device):
        ours = contender.ours("micro", micro_settings, "vae", tmp_path)
        rows = [ours.batch()]
    theirs = contender.theirs(tmp_path, "cpu", threads=1, checkpointing=False)
    write_json(tmp_path / "settings.json", {**read_json(tmp_path / "settings.json"), "dtype": "bfloat16"})
    half = contender.theirs(tmp_path, "cpu", threads=1, checkpointing=True)
    rows += [theirs.batch(), half.batch()]
    for found in rows:
        assert found["valid_pairs"] == 2 * 3
        assert found["seconds_rollout"] > 0 and found["seconds_update"] > 0
        assert found["loss"] == pytest.approx(0.693, abs=0.02)  # log 2 at the start
    assert theirs.about["versions"].keys() == {"torch", "diffusers", "transformers", "peft"}
    assert ours.about["compile_seconds"] > 0


def test_a_mistake_in_the_other_process_is_reported_here(tmp_path):
    """A recipe that the peer does not implement is one line of the command."""
    other_recipe = {"num_inner_step": 3, "branch_at_last_step": True}
    write_json(tmp_path / "settings.json", {"spo": other_recipe, "optimizer": {"gradient_accumulation_steps": 1}})
    arguments = {"folder": str(tmp_path), "device": "cpu", "threads": 1, "checkpointing": False}
    message = "theirs: --set=spo.num_inner_step=3: the peer in PyTorch implements only the recipe of SD 1.5: expected 0"
    with pytest.raises(UserError, match=message):
        Contender("theirs", arguments, threads=1)


def test_prompts_of_a_batch_follow_the_settings():
    assert against_torch.prompts_of("micro", ["prompts_per_batch=6"]) == 6
