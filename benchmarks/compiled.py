"""What `benchmarks.aot` compiled, beside the formula of memory."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spo_jax.core.config_flag import load_config
from spo_jax.core.files import read_json
from spo_jax.methods import read_settings
from spo_jax.methods.spo.memory import GIB, SD15, SDXL, Sizes, estimate
from spo_jax.methods.spo.settings import SPOTrainSettings

RESULTS = Path(__file__).parent / "results"


def records(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """Reads the programs of SPO that `benchmarks.aot` compiled."""
    found = [read_json(file) for file in sorted(folder.glob("aot-*.json"))]
    return [record for record in found if "spo" in record["settings"]]


def settings_of_record(record: dict[str, Any]) -> SPOTrainSettings:
    """Reads the settings of a record; in older ones the optimizer's fields have no group of their own."""
    fields = record["settings"]
    defaults = SPOTrainSettings()
    groups = {"spo": fields["spo"], "lora": fields["lora"], "mesh": fields["mesh"]}
    groups["optimizer"] = fields.get("optimizer", fields)
    parts = {name: _replaced(getattr(defaults, name), values) for name, values in groups.items()}
    plain = ("dtype", "remat", "remat_keeps", "prompts_per_batch")
    return dataclasses.replace(defaults, **parts, **{name: fields[name] for name in plain if name in fields})


def _replaced(settings: Any, values: dict[str, Any]) -> Any:
    known = {field.name for field in dataclasses.fields(settings)}
    return dataclasses.replace(settings, **{name: value for name, value in values.items() if name in known})


def sizes_of_record(record: dict[str, Any]) -> Sizes:
    """Returns the sizes of the model that a record is of."""
    return SDXL if "sdxl" in record["config"] else SD15


def is_of(record: dict[str, Any], config: str) -> bool:
    """Whether a record is of the same model as a config, and judges the same: images, or noisy latents."""
    settings = read_settings(load_config(config))
    same_judge = settings_of_record(record).spo.judged == settings.spo.judged
    return same_judge and ("sdxl" in record["config"]) == ("sdxl" in config)


def compiled_bytes(record: dict[str, Any], program: str) -> int:
    """Returns a chip's memory while a compiled program runs.

    A rollout's program takes the adapter alone, so the optimizer's moments are added, which are in memory as well.
    """
    total = record["programs"][program]["total_bytes"]
    if program == "update":
        return total
    settings = settings_of_record(record)
    state = estimate(settings, sizes_of_record(record), record["chips"]).state
    return total + state - 4 * sizes_of_record(record).adapter * settings.lora.rank


def errors(found: Sequence[dict[str, Any]]) -> list[tuple[str, str, str, float, float]]:
    """Compares the formula with what was compiled.

    Returns:
      Config, topology, program, GiB compiled and GiB by the formula.
    """
    rows = []
    for record in found:
        memory = estimate(settings_of_record(record), sizes_of_record(record), record["chips"])
        for name, program in record["programs"].items():
            if "total_bytes" in program:
                formula = memory.of_rollout if name == "collect" else memory.of_update
                start = record["config"], record["topology"], name
                rows.append((*start, compiled_bytes(record, name) / GIB, formula / GIB))
    return rows
