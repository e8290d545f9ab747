"""Timing, memory, results and flags, which the scripts share."""

import contextlib
import dataclasses
import datetime
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from tqdm import tqdm

from benchmarks.blueprints import SIZES
from benchmarks.flops import peak_flops
from benchmarks.memory import is_out_of_memory, process_peak
from benchmarks.places import RESULTS
from benchmarks.subjects import DECODERS, Subject, build, read_settings
from spo_jax.core.cli import run_command
from spo_jax.core.errors import UserError
from spo_jax.core.files import check_writable, write_json
from spo_jax.methods.spo.settings import SPOTrainSettings
from spo_jax.parallel.compiling import compile_program
from spo_jax.parallel.mesh import make_mesh
from spo_jax.run.versions import versions

flags.disclaim_key_flags()  # --help of a script lists the flags that are defined here as its own

_PRODUCT = 1024
# (subject, warm-up runs, timed runs) to results
Measure = Callable[[Subject, int, int], dict[str, Any]]


def timed(call: Callable[[], Any], warmup: int, repeats: int, title: str) -> list[float]:
    """Measures the seconds of ``repeats`` calls after ``warmup`` others; a call ends when its results are ready."""
    seconds = []
    with tqdm(total=warmup + repeats, desc=title, unit="run", leave=False) as bar:
        for number in range(warmup + repeats):
            begin = time.perf_counter()
            jax.block_until_ready(call())
            if number >= warmup:
                seconds.append(time.perf_counter() - begin)
            bar.update()
    return seconds


def spread_of(seconds: Sequence[float]) -> dict[str, Any]:
    """Returns the median, the smallest and the largest value, and all values in order."""
    return {
        "median": statistics.median(seconds),
        "min": min(seconds),
        "max": max(seconds),
        "all": list(seconds),
    }


def compiled(traced: jax.stages.Traced) -> tuple[jax.stages.Compiled, float]:
    """Compiles a program; returns it with the seconds that lowering and compiling took."""
    begin = time.perf_counter()
    program = compile_program(traced)
    return program, time.perf_counter() - begin


def compiled_all(traced: Mapping[str, jax.stages.Traced]) -> tuple[dict[str, jax.stages.Compiled], float]:
    """Compiles several programs; returns them by name with the seconds that they took together."""
    programs = {}
    total = 0.0
    for name, program in traced.items():
        programs[name], seconds = compiled(program)
        total += seconds
    return programs, total


def peak_memory() -> dict[str, Any]:
    """Returns the peak of memory in bytes: that of the fullest device if the devices report it, else this process's."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    if all(stats):
        return {"peak_memory_bytes": max(row["peak_bytes_in_use"] for row in stats), "peak_memory_of": "device"}
    return {"peak_memory_bytes": process_peak(), "peak_memory_of": "process"}


def utilisation(flops: float, seconds: float, dtype: str) -> dict[str, Any]:
    """Returns operations per second, and their share of the devices' peak (MFU) where that is known.

    The peaks are those of 16-bit floats, so there is no share for float32.
    """
    peak = peak_flops(jax.devices()[0]) if dtype == "bfloat16" else None
    share = None if peak is None else flops / seconds / (peak * jax.sharding.get_mesh().size)
    return {"flops_per_second": flops / seconds, "mfu": share}


def product_rate(dtype: str) -> float:
    """Measures the operations per second of a matrix product of 1,024 on the first device of the mesh in context.

    Where no peak is known, as for CPUs, it is what a network's rate can be compared with.
    """
    device = jax.sharding.get_mesh().devices.flat[0]
    with jax.set_mesh(make_mesh(devices=[device])):
        x = jax.device_put(np.ones((_PRODUCT, _PRODUCT), jnp.dtype(dtype)), device)
        program = jax.jit(jnp.matmul).lower(x, x).compile()
        seconds = timed(lambda: program(x, x), 5, 20, "product")
    return 2 * _PRODUCT**3 / statistics.median(seconds)


@contextlib.contextmanager
def memory_explained() -> Iterator[None]:
    """Turns an accelerator's "out of memory" into a `UserError` that names the settings to change."""
    try:
        yield
    except Exception as error:  # the errors of jax and torch have no common class
        if not is_out_of_memory(error):
            raise
        device = jax.devices()[0].device_kind
        raise UserError(
            f"the programs do not fit in the memory of {device}: use fewer prompts (--set=prompts_per_batch=N), fewer "
            "images at a time (--set=spo.decode_chunk=N), fewer pairs at a time (--set=spo.train_chunk=N) or "
            f"--set=remat=True; the error was: {str(error).splitlines()[0][:200]}"
        ) from error


def record(name: str, settings: SPOTrainSettings, size: str, decoder: str, results: Any, **more: Any) -> dict[str, Any]:
    """Returns the content of a results file, with the devices of the mesh in context.

    Args:
      name: name of the benchmark.
      settings: settings of the run that was measured.
      size: size of its models.
      decoder: decoder of its images.
      results: what was measured.
      **more: further entries before the results.
    """
    return {
        "benchmark": name,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "size": size,
        "decoder": decoder,
        "device": device_info(),
        "versions": versions(jax.sharding.get_mesh()),
        "settings": dataclasses.asdict(settings),
        **more,
        "results": results,
    }


def device_info() -> dict[str, Any]:
    """Describes the devices of the mesh in context and the host's processor."""
    mesh = jax.sharding.get_mesh()
    device = mesh.devices.flat[0]
    return {
        "platform": device.platform,
        "kind": device.device_kind,
        "count": mesh.size,
        "mesh": dict(mesh.shape),
        "host": _processor(),
        "host_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    match = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.is_file() else None
    return match[1] if match else platform.processor() or platform.machine()


def result_path(folder: str | os.PathLike, found: dict[str, Any]) -> Path:
    """Returns a path such as ``rollout-sd15-nvidia-h200.json``, with ``-tiny-decoder`` where that decoder was used."""
    kind = re.sub(r"[^a-z0-9]+", "-", found["device"]["kind"].lower()).strip("-")
    decoder = "" if found["decoder"] == "vae" else f"-{found['decoder']}-decoder"
    return Path(folder) / f"{found['benchmark']}-{found['size']}{decoder}-{kind}.json"


def define_flags(repeats: int) -> dict[str, flags.FlagHolder]:
    """Defines the flags that every script has.

    Args:
      repeats: default of ``--repeats``.
    """
    return {
        "size": flags.DEFINE_string("size", "toy", f"Measure models of this size: {', '.join(SIZES)}."),
        "decoder": flags.DEFINE_string("decoder", "vae", f"Decode images with this decoder: {', '.join(DECODERS)}."),
        "set": flags.DEFINE_multi_string("set", [], "Change a setting of SPO, given as FIELD=VALUE."),
        "warmup": flags.DEFINE_integer("warmup", 1, "Do this number of runs before the timed ones.", lower_bound=0),
        "repeats": flags.DEFINE_integer(
            "repeats", repeats, "Time this number of runs; medians are reported.", lower_bound=1
        ),
        "out": flags.DEFINE_string("out", RESULTS, "Write the results to this folder."),
    }


def command(name: str, measure: Measure, repeats: int = 5) -> None:
    """Runs a script: reads flags, measures, writes a JSON file and prints the main numbers.

    Args:
      name: name of the benchmark.
      measure: measures a subject.
      repeats: default of ``--repeats``.
    """
    values = define_flags(repeats)

    def main(_: Sequence[str]) -> None:
        value = {key: flag.value for key, flag in values.items()}
        check_writable(value["out"])
        settings = read_settings(value["size"], value["set"], jax.device_count(), value["decoder"])
        with memory_explained(), jax.set_mesh(make_mesh(settings.mesh)):
            subject = build(value["size"], settings, value["decoder"])
            results = measure(subject, value["warmup"], value["repeats"])
            found = record(name, settings, value["size"], value["decoder"], results)
        save(value["out"], found)

    run_command(main)


def save(folder: str | os.PathLike, found: dict[str, Any], show: bool = True) -> Path:
    """Writes a results file, and prints its numbers if ``show`` is set."""
    path = result_path(folder, found)
    write_json(path, found)
    if show:
        print(f"{found['benchmark']} --size={found['size']} on {found['versions']['device']}")
        for key, value in found["results"].items():
            print(f"  {key:32s} {readable(key, value)}")
    print(f"written to {path}")
    return path


def readable(key: str, value: Any) -> str:
    """Formats a number for humans, in the unit that its name asks for."""
    if isinstance(value, dict):
        inner = {name: item for name, item in value.items() if not isinstance(item, list)}
        return ", ".join(f"{name} {readable(f'{key}.{name}', item)}" for name, item in inner.items())
    if not isinstance(value, int | float):
        return str(value)
    if key.endswith("bytes"):
        return f"{value / 2**30:.2f} GiB"
    if "flops" in key:
        return f"{value / 1e12:.4g} T"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
