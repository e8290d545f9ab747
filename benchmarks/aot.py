"""Compiles a run's programs for TPUs that are not here, and reports memory, operations and bytes moved.

python -m benchmarks.aot --config=configs/sd15.py --topology=v5e:2x4
python -m benchmarks.aot --config=configs/spm_sd15.py --topology=v5e:2x4
python -m benchmarks.aot --config=configs/sd15_one_chip.py --topology=v5e:1x1
python -m benchmarks.aot --config=configs/sd15_one_chip.py --topology=v5e:1x1 --cycles
python -m benchmarks.aot --config=configs/sd15_one_chip.py --topology=v5e:1x1 --part=decode

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

``--cycles`` adds up the compiler's own estimates of what operations take, by network and by kind of operation
(`benchmarks.cycles`), and ``--part`` does so for single networks of SPO at the run's shapes (`benchmarks.parts`), which
compile in a minute or two each. The four parts together, as often as a rollout and its update repeat them, give an
estimate of a trajectory (`benchmarks.trajectory`), as both programs do. These results have files and a table of their
own, ``cycles-*.json`` and ``cycles.md``.

Compiling takes long: every UNet evaluation of SD 1.5 costs ten processor-minutes, and the two programs contain six.
``--effort=-0.5`` makes the compiler search less for fast code: it takes a fifth of the time, and temporaries are a few
per cent larger, so what fits then fits without it too. Real runs take this setting from jax,
JAX_EXEC_TIME_OPTIMIZATION_EFFORT.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags, logging
from jax.stages import Compiled, Lowered
from ml_collections import config_flags

from benchmarks.cycles import kernel_flops, operations, report, summary
from benchmarks.flops import count
from benchmarks.hlo import parse
from benchmarks.memory import is_out_of_memory
from benchmarks.parts import PARTS, trace_part
from benchmarks.places import RESULTS
from benchmarks.records import EVALUATION, batch_of, record, save, table
from benchmarks.topologies import Chip, chip_of, find_topology
from benchmarks.trajectory import repeats, trajectories_table
from spo_jax.core.cli import run_command
from spo_jax.core.config_flag import define_config
from spo_jax.core.errors import UserError
from spo_jax.core.files import check_writable
from spo_jax.methods import load_method, read_settings
from spo_jax.methods.base import Run
from spo_jax.parallel.compiling import compiler_options
from spo_jax.parallel.device_memory import TPU_USABLE, program_bytes, shard_bytes
from spo_jax.parallel.mesh import check_divides, make_mesh
from spo_jax.run.settings import RunSettings


def measure(
    settings: RunSettings,
    topology: str,
    effort: float = 0.0,
    programs: Sequence[str] = (),
    *,
    parts: Sequence[str] = (),
    cycles: bool = False,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Compiles the programs of a run for a topology, one after the other.

    Args:
      settings: settings of any method.
      topology: as in `benchmarks.topologies.find_topology`.
      effort: how hard the compiler tries to make programs fast, -1 to 1.
      programs: names of the programs to compile; empty for all.
      parts: names in `benchmarks.parts.PARTS`, which are compiled instead of the programs.
      cycles: whether to add ``cycles``, the summary of `benchmarks.cycles`.

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
        idle = 0 if parts else idle_bytes(run)  # a part is no program of the run, so other weights are not beside it
        for name, traced in _traced(run, programs, parts):
            trips = () if parts else loop_trips(run, name)
            flops = count(traced, while_trips=trips) / mesh.size
            logging.info("compiling %s for %d chips %s; up to an hour at full size", name, mesh.size, chip.name)
            program, numbers = _compiled(traced.lower(), chip, idle, effort)
            if cycles and program is not None:
                found = operations(parse(program.as_text()), chip, trips, kernel_flops(traced, chip.lanes))
                numbers |= {"cycles": summary(found, chip, flops), "repeats": repeats(run)}
            yield name, numbers | {"flops_layers": flops, "seconds_at_peak": flops / chip.peak_flops}


def _traced(run: Run, programs: Sequence[str], parts: Sequence[str]) -> Iterator[tuple[str, jax.stages.Traced]]:
    """Yields the parts of a run, or its programs that were asked for."""
    if parts:
        yield from ((part, trace_part(run, part)) for part in parts)
        return
    traced = run.trace(run.state_shapes(), keep_unused=True)
    for name in programs:
        if name not in traced:
            raise UserError(f"--programs={name}: expected one of {', '.join(traced)}")
    yield from ((name, program) for name, program in traced.items() if not programs or name in programs)


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


def _compiled(lowered: Lowered, chip: Chip, idle: int, effort: float) -> tuple[Compiled | None, dict[str, Any]]:
    """Returns the program and its bytes, operations and compile seconds; the compiler's message if it does not fit."""
    begin = time.perf_counter()
    try:
        program = lowered.compile(compiler_options() | ({"exec_time_optimization_effort": effort} if effort else {}))
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        message = str(error).splitlines()[0][:400]
        taken = time.perf_counter() - begin
        return None, {"fits": False, "error": message, "effort": effort, "compile_seconds": taken}
    seconds = time.perf_counter() - begin
    cost = program.cost_analysis()
    sizes = program_bytes(program)
    total = idle + sizes.pop("total")
    return program, {
        "fits": total <= TPU_USABLE * chip.hbm,
        "total_bytes": total,
        "beside_bytes": idle,
        **{f"{part}_bytes": count for part, count in sizes.items()},
        "flops_xla_loops_once": cost["flops"],
        "bytes_moved_loops_once": cost["bytes accessed"],
        "effort": effort,
        "compile_seconds": seconds,
    }


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


_PARTS = ", ".join(PARTS)


def check_parts(parts: Sequence[str], programs: Sequence[str]) -> None:
    """Refuses parts that do not exist, and parts beside whole programs.

    Raises:
      UserError: as said.
    """
    for part in parts:
        if part not in PARTS:
            raise UserError(f"--part={part}: expected one of {_PARTS}")
    if parts and programs:
        raise UserError(
            "--part and --programs: expected one of the two, because parts are compiled instead of programs"
        )


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
    cycles = flags.DEFINE_bool("cycles", False, "Add up the compiler's estimates of what operations take.")
    parts = flags.DEFINE_list(
        "part", [], f"Compile these networks at the run's shapes instead of its programs, with --cycles: {_PARTS}."
    )
    label = flags.DEFINE_string(
        "label", "", "Add this to the name of the results file, to keep another one of the config and the topology."
    )
    out = flags.DEFINE_string("out", RESULTS, "Write the results to this folder.")

    def main(_: Sequence[str]) -> None:
        jax.config.update("jax_platforms", "cpu")  # this machine's accelerators are left alone
        jax.config.update("jax_enable_compilation_cache", False)  # the seconds of compiling are a result
        check_writable(out.value)
        check_parts(parts.value, programs.value)
        settings = read_settings(config.value)
        chips = make_mesh(settings.mesh, find_topology(topology.value)).size
        settings = with_batch_of_chip(settings, chips, {"prompts": prompts.value, "pairs": pairs.value})
        name = Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
        estimated = cycles.value or bool(parts.value)
        found = record(settings, name, topology.value, "cycles" if estimated else "aot")
        compiled = measure(settings, topology.value, effort.value, programs.value, parts=parts.value, cycles=estimated)
        for program, numbers in compiled:
            found["programs"][program] = numbers
            path = save(Path(out.value), found, label.value)
            if "cycles" in numbers:
                print(f"{program}\n{report(numbers['cycles'])}")
        print(table([found]), end="")
        if estimated:
            print(trajectories_table([found], batch_of, about=False), end="")
        print(f"written to {path}")

    run_command(main)


if __name__ == "__main__":
    run()
