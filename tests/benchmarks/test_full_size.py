"""The tables of the claim at full size: the documents hold them, and they are what the configs give."""

import re
from pathlib import Path

import pytest

from benchmarks import full_size
from benchmarks.costs import PARTS
from benchmarks.full_size import ENTRIES, Entry
from spo_jax.core.config_flag import shipped_configs
from spo_jax.core.files import read_json

ROOT = Path(__file__).resolve().parents[2]
HOUR = 312e12 * 3600 * 0.4  # operations of an A100 in an hour at 40 % of its peak


def run_of(**parts):
    return dict.fromkeys(PARTS, 0.0) | parts


FOUND = {
    "pairs": {
        "method": "diffusion_dpo", "batches": 100, "batch": {"batch_size": 32}, "train_batches": 1,
        "run": run_of(training=HOUR), "run_without_training_batches": run_of(training=HOUR), "unet_forward": HOUR / 1e6,
    },
    "prompts": {
        "method": "spo", "batches": 1000, "batch": {"prompts_per_batch": 40, "spo.train_batch_size": 40},
        "train_batches": 16, "run": run_of(sampling=10 * HOUR, training=20 * HOUR),
        "run_without_training_batches": run_of(sampling=10 * HOUR), "unet_forward": HOUR / 1e6,
    },
}  # fmt: skip


@pytest.fixture
def entries(monkeypatch):
    """Two configs; that of pairs also at a published length, eight times its own."""
    entries = (
        Entry("prompts", "SD 1.5", "Online", 4000, "48", "its paper"),
        Entry("pairs", "SD 1.5", "Offline"),
        Entry("pairs", "SD 1.5", "Offline, published length", 0, "240; 1,000", "a table", 200, 128),
        Entry("other", "SDXL", "Not counted yet"),
    )
    monkeypatch.setattr(full_size, "ENTRIES", entries)
    monkeypatch.setattr(full_size, "EVENING", {"SD 1.5": ("prompts", "pairs")})
    return entries


def test_a_longer_recipe_is_as_many_times_the_work(entries):
    row = full_size.row_of(entries[2], FOUND)
    assert row["run"]["training"] == 8 * HOUR and row["batch"] == {"batch_size": 128} and row["batches"] == 200
    assert full_size.row_of(entries[1], FOUND) == FOUND["pairs"]  # and it is not changed


def test_the_tables(entries):
    text = full_size.report(FOUND)
    assert "| Online | `prompts` | 1,000 of 40 | 4,493 | – | – | – | 8,986 | 13,478 | 30 M |" in text
    assert "| Offline, published length | `pairs` | 200 of 128 | – | – | – | – | 3,594 | 3,594 | 8 M |" in text
    hours = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if "TPU" not in line}
    assert "30–60 h" in hours["Online"] and hours["Online"].endswith("| 48 | its paper | 25% |")  # 30 of 48 h at 40 %
    assert "10–20 h" in hours["Online, no pair valid"] and hours["Online, no pair valid"].endswith("| 8.3% |")
    assert "60–120 min" in hours["Offline"] and hours["Offline"].endswith("| – | – |  |")
    assert hours["Offline, published length"].endswith("| 240; 1,000 | a table | 1.3%; 0.3% |")
    assert "Not counted yet" not in text and "SDXL" not in text
    assert text.endswith(
        "2 runs of SD 1.5 take 1.3–2.6 h one after the other; the longest, `prompts`, takes 1.3–2.5 h.\n"
    )


def test_configs_are_shipped():
    assert {entry.config for entry in ENTRIES} <= set(shipped_configs())


def test_results_and_documents_hold_what_the_command_writes():
    """If this fails, run `python -m benchmarks.full_size` and copy the tables."""
    kept = read_json(ROOT / "benchmarks/results/full_size.json")["runs"]
    assert list(kept) == list(dict.fromkeys(entry.config for entry in ENTRIES))
    text = full_size.report(kept)
    assert (ROOT / "benchmarks/results/full_size.md").read_text() == full_size._ABOUT + text
    document = (ROOT / "docs/results.md").read_text()
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert len(tables) == 4
    for table in tables:
        assert table in document
    sentences = [line for line in text.splitlines() if line.startswith("On 8 chips")]
    assert len(sentences) == 2
    for sentence in sentences:
        assert sentence in document.replace("\n", " ")
    commands = re.findall(r"^for config in (.*); do$", document, re.MULTILINE)
    assert commands == [" ".join(configs) for configs in full_size.EVENING.values()]


@pytest.mark.slow
@pytest.mark.parametrize("config", ["smpo_sd15", "d3po_sd15"])
def test_the_results_are_counted_from_the_configs(config):
    prompts = {entry.config: entry.prompts for entry in ENTRIES}
    kept = read_json(ROOT / "benchmarks/results/full_size.json")["runs"][config]
    found = full_size.count(config, prompts[config])
    assert found["run"] == pytest.approx(kept["run"], rel=1e-6) and found["batches"] == kept["batches"]
