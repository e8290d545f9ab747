"""Will it fit? Compiles a run's programs for a TPU topology that is not here: memory, operations, bytes moved.

python -m benchmarks.aot --config=configs/sd15.py --topology=v5e:2x4
python -m benchmarks.aot --config=configs/spm_sd15.py --topology=v5e:2x4

The programs are the run's own, at the published batch for every device; their arguments are shapes, so no weight is
read or made. Everything is of one chip. Arguments are all that lies there while a program runs: also weights that only
the other one uses; the total adds those that neither does (the text encoder), temporaries, results and the program.

``collect`` is a whole rollout with its judgement; ``update`` has a loop over training batches, as many as there are
valid pairs for, and its operations are those of ONE of them, all its chunks. ``step`` is an optimiser step of a
preference model, from its pictures on.

Operations are counted from the layers, and by XLA: the body of every loop once, and nothing in kernels that do not
tell (the backward pass of flash attention). So XLA's operations and bytes are of one turn of each loop. Its forecast
of seconds comes out negative for programs with kernels and is left out. The seconds here are a bound: what the layers'
operations take at the chip's peak, which no program reaches.

Compiling takes long: a UNet evaluation of SD 1.5 ten processor-minutes, and the two programs have six.
``--effort=-0.5`` has the compiler look less far for fast code: a fifth of the time, and a few per cent more
temporaries, so what fits then fits. Real runs take jax's setting of it, JAX_EXEC_TIME_OPTIMIZATION_EFFORT.
"""

import dataclasses
import datetime
import importlib.metadata
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags, logging
from jax.stages import Lowered
from ml_collections import config_flags

from benchmarks.flops import count
from benchmarks.memory import is_out_of_memory
from benchmarks.shapes import RunShapes, run_shapes
from benchmarks.spm_shapes import SPMRunShapes, spm_run_shapes
from benchmarks.subjects import chunks_of
from benchmarks.topologies import GIB, Chip, chip_of, find_topology
from spo_jax.core.cli import define_config, run_command
from spo_jax.core.config import from_config
from spo_jax.core.files import check_writable, read_json, write_json, write_text
from spo_jax.methods.spm.programs import lower as lower_step
from spo_jax.methods.spm.programs import step_arguments
from spo_jax.methods.spm.settings import SPMTrainSettings
from spo_jax.methods.spm.update import chunk_size
from spo_jax.methods.spo.settings import TrainSettings
from spo_jax.methods.spo.update import UpdateConfig
from spo_jax.parallel.mesh import make_mesh, replicated

RESULTS = "benchmarks/results"
_USABLE = 0.98  # of the memory: the compiler finds 15.75 of a v5e's 16 GiB


Settings = TrainSettings | SPMTrainSettings


def measure(settings: Settings, topology: str, effort: float = 0.0) -> Iterator[tuple[str, dict[str, Any]]]:
    """Compiles the programs of a run for ``topology``, one after the other.

    Args:
      effort: how hard the compiler tries to make programs fast, -1 to 1.

    Yields:
      (program, its numbers for one chip): bytes, operations, seconds; ``error`` if the compiler finds no room.

    Raises:
      UserError: no such topology, or no TPU compiler here; a model that is not known; batches that do not divide.
    """
    devices = find_topology(topology)
    mesh, chip = make_mesh(settings.mesh, devices), chip_of(devices[0])
    train_spm = isinstance(settings, SPMTrainSettings)
    run = spm_run_shapes(settings, mesh) if train_spm else run_shapes(settings, mesh)
    beside = 0 if train_spm else _beside(run)
    with jax.set_mesh(mesh):
        programs = lower_spm(run) if train_spm else lower(run)
        for name, (lowered, flops) in programs.items():
            logging.info("compiling %s for %d chips %s; up to an hour at full size", name, mesh.size, chip.name)
            counted = {"flops_layers": flops / mesh.size, "seconds_at_peak": flops / mesh.size / chip.peak_flops}
            yield name, _compiled(lowered, chip, beside, effort) | counted


def lower(run: RunShapes) -> dict[str, tuple[Lowered, float]]:
    """Both programs as `spo_jax.methods.spo.programs.compile_programs` lowers them, with the operations of their layers.

    But for ``keep_unused``: arguments that a program does not read lie in memory as well.
    """
    networks, everywhere = run.networks, replicated(run.networks.mesh)
    place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere)  # noqa: E731
    key = place(jax.eval_shape(lambda: jax.random.key(0)))
    collect = jax.jit(networks.collect, out_shardings=everywhere, keep_unused=True)
    update = jax.jit(networks.update, donate_argnums=0, out_shardings=everywhere, keep_unused=True)
    arguments = (run.state.lora, run.frozen, run.inputs, key)
    lowered = collect.lower(*arguments)
    more = (run.state, run.frozen, run.inputs, jax.tree.map(place, lowered.out_info[0]), key)
    trips = (1, chunks_of(networks.settings, networks.settings.train_batch_size))
    return {
        "collect": (lowered, count(collect, *arguments)),
        "update": (update.lower(*more), count(update, *more, while_trips=trips)),
    }


def lower_spm(run: SPMRunShapes) -> dict[str, tuple[Lowered, float]]:
    """The training step of a preference model, as its run lowers it but for ``keep_unused``."""
    networks, *given = run
    arguments = step_arguments(networks, *given)
    return {"step": (lower_step(networks, arguments, keep_unused=True), count(networks.step, *arguments))}


def _beside(run: RunShapes) -> int:
    """Bytes of the weights on a chip that are no argument of the programs."""
    taken = {id(x) for x in jax.tree.leaves(run.frozen)}
    leaves = [x for x in jax.tree.leaves(run.networks.pipeline.params) if id(x) not in taken]
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


def _compiled(lowered: Lowered, chip: Chip, beside: int, effort: float) -> dict[str, Any]:
    """Bytes, operations and compile seconds; or what the compiler says when it finds no room."""
    begin = time.perf_counter()
    try:
        program = lowered.compile({"exec_time_optimization_effort": effort} if effort else None)
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        message = str(error).splitlines()[0][:400]
        return {"fits": False, "error": message, "effort": effort, "compile_seconds": time.perf_counter() - begin}
    seconds, memory, cost = time.perf_counter() - begin, program.memory_analysis(), program.cost_analysis()
    parts = ("argument", "temp", "output", "alias", "generated_code")
    sizes = {f"{part}_bytes": getattr(memory, f"{part}_size_in_bytes") for part in parts}
    # What is donated is argument and output in one place.
    total = beside + sum(sizes.values()) - 2 * sizes["alias_bytes"]
    return {
        "fits": total <= _USABLE * chip.hbm,
        "total_bytes": total,
        "beside_bytes": beside,
        **sizes,
        "flops_xla_loops_once": cost["flops"],
        "bytes_moved_loops_once": cost["bytes accessed"],
        "effort": effort,
        "compile_seconds": seconds,
    }


def record(settings: Settings, config: str, topology: str) -> dict[str, Any]:
    """What a results file holds, before its programs are compiled."""
    devices = find_topology(topology)
    return {
        "benchmark": "aot",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "config": config,
        "topology": topology,
        "chip": dataclasses.asdict(chip_of(devices[0])),
        "chips": make_mesh(settings.mesh, devices).size,
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "libtpu")},
        "settings": dataclasses.asdict(settings),
        "programs": {},
    }


def table(records: Sequence[dict[str, Any]]) -> str:
    """Records as a Markdown table, a row per program."""
    head = (
        "config", "topology", "batch of a chip", "program", "arguments", "temporaries", "total of HBM", "TFLOP",
        "seconds at peak", "GB moved, loops once", "compile seconds", "effort",
    )  # fmt: skip
    rows = [head, ("---",) * len(head)]
    for found in records:
        start = found["config"], found["topology"], _batch(found)
        rows += [(*start, name, *_cells(program, found["chip"])) for name, program in found["programs"].items()]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _batch(found: dict[str, Any]) -> str:
    """What decides the memory: 10 prompts, 10 pairs by 5, 4 decoded, bfloat16, remat."""
    settings, chips = found["settings"], found["chips"]
    if "spo" not in settings:
        return _spm_batch(settings, chips)
    spo = settings["spo"]
    update = {field.name: spo[field.name] for field in dataclasses.fields(UpdateConfig)}
    parts = (
        f"{settings['prompts_per_batch'] // chips} prompts",
        f"{spo['train_batch_size'] // chips} pairs by {UpdateConfig(**update).chunk(chips) // chips}",
        f"{spo['decode_chunk']} decoded",
        settings["dtype"],
        *(["remat"] if settings["remat"] else []),
        *_fsdp(settings["mesh"], chips),
    )
    return ", ".join(parts)


def _fsdp(mesh: dict[str, int], chips: int) -> list[str]:
    over = chips // mesh["data"] if mesh["fsdp"] == -1 else mesh["fsdp"]
    return [] if over == 1 else [f"fsdp {over}"]


def _spm_batch(settings: dict[str, Any], chips: int) -> str:
    """Likewise: 8 pairs by 4, bfloat16, remat."""
    pairs = settings["batch_size"] // chips
    parts = (
        f"{pairs} pairs by {chunk_size(pairs, settings['chunk'], 1)}",
        settings["dtype"],
        *(["remat"] if settings["remat"] else []),
        *_fsdp(settings["mesh"], chips),
    )
    return ", ".join(parts)


def _cells(program: dict[str, Any], chip: dict[str, Any]) -> tuple[str, ...]:
    room = f"of {chip['hbm'] / GIB:.0f} GiB"
    memory, moved = ("-", "-", f"does not fit {room[3:]}"), "-"
    if "error" not in program:
        gib = {part: f"{program[f'{part}_bytes'] / GIB:.2f}" for part in ("argument", "temp", "total")}
        share = f"{program['total_bytes'] / chip['hbm']:.0%}"
        memory = (f"{gib['argument']} GiB", f"{gib['temp']} GiB", f"{gib['total']} {room} ({share})")
        moved = f"{program['bytes_moved_loops_once'] / 1e9:.3g}"
    work = f"{program['flops_layers'] / 1e12:.4g}", f"{program['seconds_at_peak']:.3g}"
    return *memory, *work, moved, f"{program['compile_seconds']:.0f}", f"{program['effort']:g}"


def save(folder: Path, found: dict[str, Any]) -> Path:
    """Writes a record, and all records of the folder as ``aot.md``."""
    path = folder / f"aot-{found['config']}-{found['topology'].replace(':', '-')}.json"
    write_json(path, found)
    records = [read_json(file) for file in sorted(folder.glob("aot-*.json"))]
    write_text(folder / "aot.md", f"{_ABOUT}\n{table(records)}")
    return path


_ABOUT = """# Compiled for TPUs, without one

Written by `python -m benchmarks.aot`; its docstring says what the columns are. All of one chip; operations and seconds
of `collect` are of a whole rollout, of `update` of one training batch.
"""


def _with_batch(settings: Settings, chips: int, prompts: int | None, pairs: int | None) -> Settings:
    """So much for each chip; by default a fourth of what the settings have, for recipes are those of 4 devices."""
    of_each = lambda given, whole: (given or -(-whole // 4)) * chips  # noqa: E731
    if isinstance(settings, SPMTrainSettings):
        return dataclasses.replace(settings, batch_size=of_each(pairs, settings.batch_size))
    spo = dataclasses.replace(settings.spo, train_batch_size=of_each(pairs, settings.spo.train_batch_size))
    return dataclasses.replace(settings, prompts_per_batch=of_each(prompts, settings.prompts_per_batch), spo=spo)


def run() -> None:
    """The command."""
    config = define_config()
    topology = flags.DEFINE_string("topology", "v5e:2x4", "TPU generation and shape: v5e:2x4, v6e:2x4, v5p:2x2x1, …")
    a_fourth = "by default a fourth of the config's"
    prompts = flags.DEFINE_integer("prompts-per-device", None, f"Prompts of a rollout, per chip; {a_fourth}.", 1)
    pairs = flags.DEFINE_integer("pairs-per-device", None, f"Pairs of a training batch, per chip; {a_fourth}.", 1)
    effort = flags.DEFINE_float("effort", 0.0, "Of the compiler: less than 0 is quicker.", -1.0, 1.0)
    out = flags.DEFINE_string("out", RESULTS, "Folder of the results.")

    def main(_: Sequence[str]) -> None:
        jax.config.update("jax_platforms", "cpu")  # no accelerator of this machine is asked for anything
        jax.config.update("jax_enable_compilation_cache", False)  # seconds of compiling are a result
        check_writable(out.value)
        settings = from_config(SPMTrainSettings if "init" in config.value else TrainSettings, config.value)
        chips = make_mesh(settings.mesh, find_topology(topology.value)).size
        settings = _with_batch(settings, chips, prompts.value, pairs.value)
        name = Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
        found = record(settings, name, topology.value)
        for program, numbers in measure(settings, topology.value, effort.value):
            found["programs"][program] = numbers
            path = save(Path(out.value), found)
        print(table([found]), end="")
        print(f"written to {path}")

    run_command(main)


if __name__ == "__main__":
    run()
