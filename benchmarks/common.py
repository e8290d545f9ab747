"""What the scripts share: timing, memory, results and flags."""

import contextlib
import dataclasses
import datetime
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags
from tqdm import tqdm

from benchmarks.blueprints import SIZES
from benchmarks.flops import peak_flops
from benchmarks.memory import is_out_of_memory, process_peak
from benchmarks.subjects import DECODERS, Subject, build, read_settings
from spo_jax.core.cli import run_command
from spo_jax.core.errors import UserError
from spo_jax.core.files import check_writable, write_json
from spo_jax.methods.common.before_after import versions
from spo_jax.methods.spo.settings import TrainSettings
from spo_jax.parallel.mesh import make_mesh, replicated

RESULTS = "benchmarks/results"
# (subject, runs before the clock starts, runs on it) to results
Measure = Callable[[Subject, int, int], dict[str, Any]]


def timed(call: Callable[[], Any], warmup: int, repeats: int, title: str) -> list[float]:
    """Seconds of ``repeats`` calls after ``warmup`` others; a call ends when its results are there."""
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
    """Median, fastest and slowest, and all of them in order."""
    return {
        "median": statistics.median(seconds), "min": min(seconds), "max": max(seconds), "all": list(seconds),
    }  # fmt: skip


def compiled(function: Callable, *args: Any, donate: tuple[int, ...] = ()) -> tuple[Any, float]:
    """The program of ``function`` for arguments like these, and the seconds that compiling took.

    As `spo_jax.methods.spo.programs.compile_programs` does it: what comes back is whole on every device.
    """
    begin = time.perf_counter()
    everywhere = replicated(jax.sharding.get_mesh())
    program = jax.jit(function, donate_argnums=donate, out_shardings=everywhere).lower(*args).compile()
    return program, time.perf_counter() - begin


def peak_memory() -> dict[str, Any]:
    """The most memory in use so far: of the fullest device where devices tell, else of this process, in bytes."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    if all(stats):
        return {"peak_memory_bytes": max(row["peak_bytes_in_use"] for row in stats), "peak_memory_of": "device"}
    return {"peak_memory_bytes": process_peak(), "peak_memory_of": "process"}


def utilisation(flops: float, seconds: float, dtype: str) -> dict[str, Any]:
    """Operations per second, and their share of what the devices could do (MFU), where that is known.

    Peaks are of 16-bit floats, so float32 has no share here.
    """
    peak = peak_flops(jax.devices()[0]) if dtype == "bfloat16" else None
    share = None if peak is None else flops / seconds / (peak * jax.sharding.get_mesh().size)
    return {"flops_per_second": flops / seconds, "mfu": share}


@contextlib.contextmanager
def memory_explained() -> Iterator[None]:
    """Turns an accelerator's "out of memory" into one line that says what to change."""
    try:
        yield
    except Exception as error:  # jax's and torch's have no common class
        if not is_out_of_memory(error):
            raise
        device = jax.devices()[0].device_kind
        raise UserError(
            f"does not fit in the memory of {device}: fewer prompts (--set=prompts_per_batch=N), fewer pictures at a "
            "time (--set=spo.decode_chunk=N), fewer pairs at a time (--set=spo.train_chunk=N) or --set=remat=True; it "
            f"said: {str(error).splitlines()[0][:200]}"
        ) from error


def record(name: str, settings: TrainSettings, size: str, decoder: str, results: Any, **more: Any) -> dict[str, Any]:
    """What a results file holds, of the devices of the mesh in context; ``more`` are further entries of the head."""
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
    """The devices of the mesh in context, and the host's processor."""
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
    """``rollout-sd15-nvidia-h200.json``, with ``-tiny-decoder`` where that was used."""
    kind = re.sub(r"[^a-z0-9]+", "-", found["device"]["kind"].lower()).strip("-")
    decoder = "" if found["decoder"] == "vae" else f"-{found['decoder']}-decoder"
    return Path(folder) / f"{found['benchmark']}-{found['size']}{decoder}-{kind}.json"


def define_flags(repeats: int) -> dict[str, flags.FlagHolder]:
    """The flags of every script."""
    return {
        "size": flags.DEFINE_string("size", "tiny", f"What is measured: {', '.join(SIZES)}."),
        "decoder": flags.DEFINE_string("decoder", "vae", f"Of the rollout's pictures: {', '.join(DECODERS)}."),
        "set": flags.DEFINE_multi_string("set", [], "Another setting, as FIELD=VALUE of TrainSettings; may repeat."),
        "warmup": flags.DEFINE_integer("warmup", 1, "Runs before the clock starts.", lower_bound=0),
        "repeats": flags.DEFINE_integer("repeats", repeats, "Runs on the clock; medians are reported.", lower_bound=1),
        "out": flags.DEFINE_string("out", RESULTS, "Folder of the results."),
    }


def command(name: str, measure: Measure, repeats: int = 5) -> None:
    """A script: flags, `measure`, a JSON file and the main numbers on the screen."""
    values = define_flags(repeats)

    def main(_: Sequence[str]) -> None:
        value = {key: flag.value for key, flag in values.items()}
        check_writable(value["out"])
        settings = read_settings(value["size"], value["set"], jax.device_count())
        with memory_explained(), jax.set_mesh(make_mesh(settings.mesh)):
            subject = build(value["size"], settings, value["decoder"])
            results = measure(subject, value["warmup"], value["repeats"])
            found = record(name, settings, value["size"], value["decoder"], results)
        save(value["out"], found)

    run_command(main)


def save(folder: str | os.PathLike, found: dict[str, Any], tell: bool = True) -> Path:
    """Writes a results file and, if asked to ``tell``, prints its numbers."""
    path = result_path(folder, found)
    write_json(path, found)
    if tell:
        print(f"{found['benchmark']} --size={found['size']} on {found['versions']['device']}")
        for key, value in found["results"].items():
            print(f"  {key:32s} {told(key, value)}")
    print(f"written to {path}")
    return path


def told(key: str, value: Any) -> str:
    """A number as people read it."""
    if isinstance(value, dict):
        inner = {name: item for name, item in value.items() if not isinstance(item, list)}
        return ", ".join(f"{name} {told(f'{key}.{name}', item)}" for name, item in inner.items())
    if not isinstance(value, int | float):
        return str(value)
    if key.endswith("bytes"):
        return f"{value / 2**30:.2f} GiB"
    if "flops" in key:
        return f"{value / 1e12:.4g} T"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
