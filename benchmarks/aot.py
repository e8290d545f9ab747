"""Compiles a run's programs for TPUs that are not here, and reports memory, operations and bytes moved.

python -m benchmarks.aot --config=configs/sd15.py --topology=v5e:2x4
python -m benchmarks.aot --config=configs/spm_sd15.py --topology=v5e:2x4
python -m benchmarks.aot --config=configs/sd15_one_chip.py --topology=v5e:1x1

The config may be that of any method. The programs are the run's own (`spo_jax.methods.base.Run.trace`). On several
chips, every chip has a fourth of the config's prompts and pairs, because the published batches are those of 4 devices;
batches of anything else are the config's. A single chip has the config's batches as they are. The run is an abstract
one: no weight is read or made. All numbers are those of one chip. Arguments are all arrays in memory while a program
runs, also weights that only another of the run's programs reads. The total adds the weights that none of them takes
(the text encoders), temporaries, results and the program itself.

SPO has two programs: ``collect`` is a whole rollout with its judgement, and ``update`` loops over training batches,
whose number depends on the valid pairs; its operations are those of ONE training batch, with all of its chunks. The
program ``step`` of a preference model is one optimizer step, from images to weights.

Operations are counted from the layers, and by XLA. XLA counts the body of every loop once, and nothing in kernels that
do not report their operations (the backward pass of flash attention), so its operations and bytes are those of one turn
of each loop. Its forecast of seconds is negative for programs with kernels and is left out. The reported seconds are a
bound: the time that the layers' operations take at the chip's peak, which no program reaches.

Compiling takes long: every UNet evaluation of SD 1.5 costs ten processor-minutes, and the two programs contain six.
``--effort=-0.5`` makes the compiler search less for fast code: it takes a fifth of the time, and temporaries are a few
per cent larger, so what fits then fits without it too. Real runs take this setting from jax,
JAX_EXEC_TIME_OPTIMIZATION_EFFORT.
"""

import dataclasses
import datetime
import importlib.metadata
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags, logging
from jax.stages import Lowered
from ml_collections import config_flags

from benchmarks.flops import count
from benchmarks.memory import is_out_of_memory
from benchmarks.topologies import GIB, Chip, chip_of, find_topology
from spo_jax.core.cli import run_command
from spo_jax.core.config_flag import define_config
from spo_jax.core.errors import UserError
from spo_jax.core.files import check_writable, read_json, write_json, write_text
from spo_jax.core.trees import flatten
from spo_jax.methods import load_method, read_settings
from spo_jax.methods.base import Run
from spo_jax.parallel.device_memory import TPU_USABLE, program_bytes, shard_bytes
from spo_jax.parallel.mesh import check_divides, make_mesh
from spo_jax.parallel.sizes import even_chunk, padded_chunk
from spo_jax.run.settings import RunSettings

RESULTS = "runs/benchmarks"  # benchmarks/results holds the files that the documents quote
EVALUATION = "evaluation"  # the unit in `RunSettings.BATCHES` of batches that no training program takes
# Fields that limit the rows in a device's memory, and how methods cut a batch by them.
_CHUNKS = {"train_chunk": padded_chunk, "chunk": even_chunk}


def measure(
    settings: RunSettings, topology: str, effort: float = 0.0, programs: Sequence[str] = ()
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Compiles the programs of a run for a topology, one after the other.

    Args:
      settings: settings of any method.
      topology: as in `benchmarks.topologies.find_topology`.
      effort: how hard the compiler tries to make programs fast, -1 to 1.
      programs: names of the programs to compile; empty for all.

    Yields:
      The program's name and its numbers for one chip: bytes, operations, seconds; ``error`` if it does not fit.

    Raises:
      UserError: there is no such topology, or no TPU compiler here; a model is not known; the chips do not divide a
        batch; there is no such program.
    """
    devices = find_topology(topology)
    mesh = make_mesh(settings.mesh, devices)
    chip = chip_of(devices[0])
    # The abstract mesh, because nothing can be computed on these devices, not even an array of zeros.
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        run = abstract_run(settings, mesh)
        idle = idle_bytes(run)
        traced_programs = run.trace(run.state_shapes(), keep_unused=True)
        for name in programs:
            if name not in traced_programs:
                raise UserError(f"--programs={name}: expected one of {', '.join(traced_programs)}")
        for name, traced in traced_programs.items():
            if programs and name not in programs:
                continue
            flops = count(traced, while_trips=loop_trips(run, name)) / mesh.size
            logging.info("compiling %s for %d chips %s; up to an hour at full size", name, mesh.size, chip.name)
            numbers = _compiled(traced.lower(), chip, idle, effort)
            yield name, numbers | {"flops_layers": flops, "seconds_at_peak": flops / chip.peak_flops}


def abstract_run(settings: RunSettings, mesh: jax.sharding.Mesh) -> Run:
    """Sets up a run that has shapes instead of weights, on a mesh that is in context.

    Raises:
      UserError: a model is not known, or the devices do not divide a batch.
    """
    sizes = settings.batch_sizes()
    for field in _trained_batches(settings):
        check_divides(field, sizes[field], mesh)
    return load_method(settings.method).setup(settings, mesh)


def _trained_batches(settings: RunSettings) -> dict[str, str]:
    """Returns the units of the batches that training programs take."""
    return {field: unit for field, unit in settings.BATCHES.items() if unit != EVALUATION}


def loop_trips(run: Run, program: str) -> Sequence[float]:
    """Returns how often a program's loops of unknown length run, where the run says so; see `flops.count`."""
    return run.loop_trips(program) if hasattr(run, "loop_trips") else ()


def idle_bytes(run: Run) -> int:
    """Returns the bytes of a chip's weights that no program takes, where the run says which they are."""
    return shard_bytes(run.idle_params()) if hasattr(run, "idle_params") else 0


def _compiled(lowered: Lowered, chip: Chip, idle: int, effort: float) -> dict[str, Any]:
    """Returns bytes, operations and compile seconds, or the compiler's message if the program does not fit."""
    begin = time.perf_counter()
    try:
        program = lowered.compile({"exec_time_optimization_effort": effort} if effort else None)
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        message = str(error).splitlines()[0][:400]
        return {"fits": False, "error": message, "effort": effort, "compile_seconds": time.perf_counter() - begin}
    seconds = time.perf_counter() - begin
    cost = program.cost_analysis()
    sizes = program_bytes(program)
    total = idle + sizes.pop("total")
    return {
        "fits": total <= TPU_USABLE * chip.hbm,
        "total_bytes": total,
        "beside_bytes": idle,
        **{f"{part}_bytes": count for part, count in sizes.items()},
        "flops_xla_loops_once": cost["flops"],
        "bytes_moved_loops_once": cost["bytes accessed"],
        "effort": effort,
        "compile_seconds": seconds,
    }


# Results


def record(settings: RunSettings, config: str, topology: str) -> dict[str, Any]:
    """Returns the content of a results file, before the programs are compiled.

    Args:
      settings: settings of the run.
      config: name of its config.
      topology: as in `measure`.
    """
    devices = find_topology(topology)
    chips = make_mesh(settings.mesh, devices).size
    fields = dataclasses.asdict(settings)
    return {
        "benchmark": "aot",
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
        parts.append(f"{by_name['decode_chunk']} decoded")
    if "dtype" in fields:
        parts.append(fields["dtype"])
    if fields.get("remat"):
        parts.append("remat")
    fsdp = fields["mesh.fsdp"] if fields["mesh.fsdp"] != -1 else chips // fields["mesh.data"]
    if fsdp != 1:
        parts.append(f"fsdp {fsdp}")
    return ", ".join(parts)


def _batch(found: dict[str, Any]) -> str:
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
        start = found["config"], found["topology"], _batch(found)
        rows += [(*start, name, *_cells(program, found["chip"])) for name, program in found["programs"].items()]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


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
    """Writes a record, and the table of all records in the folder as ``aot.md``.

    Args:
      folder: folder of the results.
      found: the record.
      label: what distinguishes its file from another one of its config and topology.
    """
    parts = ("aot", found["config"], found["topology"].replace(":", "-"), *([label] if label else []))
    path = folder / f"{'-'.join(parts)}.json"
    write_json(path, found)
    records = [read_json(file) for file in sorted(folder.glob("aot-*.json"))]
    write_text(folder / "aot.md", f"{_ABOUT}\n{table(records)}")
    return path


_ABOUT = """# Compiled for TPUs, without one

Written by `python -m benchmarks.aot`; its docstring explains the columns. All numbers are those of one chip. Operations
and seconds of `collect` are those of a whole rollout, those of `update` are of one training batch.
"""


# The command


def with_batch_of_chip(settings: RunSettings, chips: int, given: Mapping[str, int | None]) -> RunSettings:
    """Returns the settings with other batches.

    Args:
      settings: settings for 4 devices, as the published ones are, or for a single one.
      chips: number of chips.
      given: size of each chip's batch by unit; None takes a fourth of the batch in the settings, or the whole batch if
        there is a single chip. Batches of other units stay as they are.
    """
    devices = 1 if chips == 1 else 4
    sizes = {}
    for field, size in settings.batch_sizes().items():
        unit = settings.BATCHES[field]
        if unit in given:
            sizes[field] = (given[unit] or -(-size // devices)) * chips
    return settings.with_batch_sizes(sizes)


def run() -> None:
    """Runs the command."""
    config = define_config()
    topology = flags.DEFINE_string(
        "topology", "v5e:2x4", "Compile for this TPU generation and shape: v5e:1x1, v5e:2x4, v6e:2x4, v5p:2x2x1, …"
    )
    a_fourth = "by default a fourth of the config's, and on a single chip all of them"
    prompts = flags.DEFINE_integer(
        "prompts-per-device", None, f"Give every chip this number of prompts per rollout; {a_fourth}.", 1
    )
    pairs = flags.DEFINE_integer(
        "pairs-per-device", None, f"Give every chip this number of pairs per training batch; {a_fourth}.", 1
    )
    effort = flags.DEFINE_float("effort", 0.0, "Set the compiler's effort; less than 0 is quicker.", -1.0, 1.0)
    programs = flags.DEFINE_list("programs", [], "Compile only these programs, such as collect (default: all).")
    label = flags.DEFINE_string(
        "label", "", "Add this to the name of the results file, to keep another one of the config and the topology."
    )
    out = flags.DEFINE_string("out", RESULTS, "Write the results to this folder.")

    def main(_: Sequence[str]) -> None:
        jax.config.update("jax_platforms", "cpu")  # this machine's accelerators are left alone
        jax.config.update("jax_enable_compilation_cache", False)  # the seconds of compiling are a result
        check_writable(out.value)
        settings = read_settings(config.value)
        chips = make_mesh(settings.mesh, find_topology(topology.value)).size
        settings = with_batch_of_chip(settings, chips, {"prompts": prompts.value, "pairs": pairs.value})
        name = Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
        found = record(settings, name, topology.value)
        for program, numbers in measure(settings, topology.value, effort.value, programs.value):
            found["programs"][program] = numbers
            path = save(Path(out.value), found, label.value)
        print(table([found]), end="")
        print(f"written to {path}")

    run_command(main)


if __name__ == "__main__":
    run()
