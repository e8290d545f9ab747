"""Results of compiling for TPUs: a JSON file for each config and topology, and a table of all files of a kind."""

import dataclasses
import datetime
import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.topologies import GIB, chip_of, find_topology
from benchmarks.trajectory import trajectories_table
from spo_jax.core.files import read_json, write_json, write_text
from spo_jax.core.trees import flatten
from spo_jax.methods import load_method
from spo_jax.methods.common.decoding import ELSEWHERE, ON_TPU
from spo_jax.parallel.mesh import make_mesh
from spo_jax.parallel.sizes import even_chunk, padded_chunk
from spo_jax.run.settings import RunSettings

EVALUATION = "evaluation"  # the unit in `RunSettings.BATCHES` of batches that no training program takes
# Fields that limit the rows in a device's memory, and how methods cut a batch by them.
_CHUNKS = {"train_chunk": padded_chunk, "chunk": even_chunk}


def record(settings: RunSettings, config: str, topology: str, benchmark: str = "aot") -> dict[str, Any]:
    """Returns the content of a results file, before the programs are compiled.

    Args:
      settings: settings of the run.
      config: name of its config.
      topology: as in `benchmarks.topologies.find_topology`.
      benchmark: ``aot``, or ``cycles`` for results with estimated cycles.
    """
    devices = find_topology(topology)
    chips = make_mesh(settings.mesh, devices).size
    fields = dataclasses.asdict(settings)
    return {
        "benchmark": benchmark,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "config": config,
        "topology": topology,
        "chip": dataclasses.asdict(chip_of(devices[0])),
        "chips": chips,
        "batch": describe_batch(fields, settings.BATCHES, chips),
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "libtpu")},
        "settings": fields,
        "programs": {},
    }


def describe_batch(settings: Mapping[str, Any], batches: Mapping[str, str], chips: int) -> str:
    """Describes what decides a chip's memory: ``10 prompts, 10 pairs by 5, 4 decoded, bfloat16, remat``.

    Args:
      settings: fields of the settings.
      batches: `RunSettings.BATCHES` of the method.
      chips: number of chips.
    """
    fields = flatten(settings, ".")
    by_name = {field.rpartition(".")[2]: value for field, value in fields.items()}
    parts = []
    for field, unit in batches.items():
        if unit == EVALUATION:
            continue
        part = f"{fields[field] // chips} {unit}"
        for name, cut in _CHUNKS.items() if unit != "prompts" else ():
            if name in by_name:
                part += f" by {cut(fields[field], by_name[name], chips) // chips}"
        parts.append(part)
    if "decode_chunk" in by_name:
        shown = "judged" if by_name.get("judged") == "noisy" else "decoded"
        chosen = ELSEWHERE if "xl" in settings["model"] else ON_TPU  # see `images_at_a_time`: SDXL has 1,024 px
        parts.append(f"{by_name['decode_chunk'] or chosen} {shown}")
    if "dtype" in fields:
        parts.append(fields["dtype"])
    if fields.get("remat"):
        kept = fields.get("remat_keeps", "inputs")
        parts.append("remat" if kept == "inputs" else f"remat ({kept} kept)")
    fsdp = fields["mesh.fsdp"] if fields["mesh.fsdp"] != -1 else chips // fields["mesh.data"]
    if fsdp != 1:
        parts.append(f"fsdp {fsdp}")
    return ", ".join(parts)


def batch_of(found: dict[str, Any]) -> str:
    """Returns the description of a record's batch; records that were written before it was kept name no method."""
    if "batch" in found:
        return found["batch"]
    settings = found["settings"]
    method = "spo" if "spo" in settings else "spm"
    return describe_batch(settings, load_method(method).Settings.BATCHES, found["chips"])


def table(records: Sequence[dict[str, Any]]) -> str:
    """Formats records as a Markdown table with a row for every program."""
    head = (
        "config", "topology", "batch of a chip", "program", "arguments", "temporaries", "total of HBM", "TFLOP",
        "seconds at peak", "GB moved, loops once", "compile seconds", "effort",
    )  # fmt: skip
    rows = [head, ("---",) * len(head)]
    for found in records:
        start = found["config"], found["topology"], batch_of(found)
        rows += [(*start, name, *_cells(program, found["chip"])) for name, program in found["programs"].items()]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _programs_of_same(before: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Returns the programs of an earlier record if it is of the same settings and versions; otherwise none."""
    same = all(before[key] == found[key] for key in ("settings", "batch", "versions", "chips"))
    return before["programs"] if same else {}


def _cells(program: dict[str, Any], chip: dict[str, Any]) -> tuple[str, ...]:
    room = f"{chip['hbm'] / GIB:.0f} GiB"
    memory = ("-", "-", f"does not fit {room}")
    moved = "-"
    if "error" not in program:
        gib = {part: f"{program[f'{part}_bytes'] / GIB:.2f}" for part in ("argument", "temp", "total")}
        share = f"{program['total_bytes'] / chip['hbm']:.0%}"
        memory = (f"{gib['argument']} GiB", f"{gib['temp']} GiB", f"{gib['total']} of {room} ({share})")
        moved = f"{program['bytes_moved_loops_once'] / 1e9:.3g}"
    work = (f"{program['flops_layers'] / 1e12:.4g}", f"{program['seconds_at_peak']:.3g}")
    return *memory, *work, moved, f"{program['compile_seconds']:.0f}", f"{program['effort']:g}"


def save(folder: Path, found: dict[str, Any], label: str = "") -> Path:
    """Writes a record, and the table of all records of its kind in the folder, as ``aot.md`` or ``cycles.md``.

    Estimated cycles of the same settings are added to those in the file, so that parts may be compiled one by one.

    Args:
      folder: folder of the results.
      found: the record; its ``benchmark`` is ``aot`` or ``cycles``.
      label: what distinguishes its file from another one of its config and topology.
    """
    kind = found["benchmark"]
    parts = (kind, found["config"], found["topology"].replace(":", "-"), *([label] if label else []))
    path = folder / f"{'-'.join(parts)}.json"
    if kind == "cycles" and path.exists():
        found = found | {"programs": _programs_of_same(read_json(path), found) | found["programs"]}
    write_json(path, found)
    records = [read_json(file) for file in sorted(folder.glob(f"{kind}-*.json"))]
    text = f"{_ABOUT}\n{table(records)}" if kind == "aot" else trajectories_table(records, batch_of)
    write_text(folder / f"{kind}.md", text)
    return path


_ABOUT = """# Compiled for TPUs, without one

Written by `python -m benchmarks.aot`; its docstring explains the columns. All numbers are those of one chip. Operations
and seconds of `collect` are those of a whole rollout, those of `update` are of one training batch.
"""
