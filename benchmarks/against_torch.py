"""Measures ours against a plain loop in PyTorch and diffusers: ``python -m benchmarks.against_torch --size=toy``.

``--decoder=vae,tiny,none`` measures several ways to judge in one run: SPO with the autoencoder, SPO with a distilled
decoder, and LPO, which decodes nothing. Each is beside the loop in PyTorch that computes the same.

Both sides train whole batches from the same weights, with the same settings, dtype, shapes of randomness and number of
threads, each in a process of its own. Both are warmed up, and then their batches alternate, so that other programs on
the machine slow down both. `benchmarks.torch_peer` describes the peer.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from tqdm import tqdm

from benchmarks.contender import MOST_BATCHES
from benchmarks.torch_table import read_results, table
from spo_jax.core.cli import run_command
from spo_jax.core.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
SIDES = ("ours", "theirs")


class Contender:
    """A side in a process of its own.

    Args:
      side: one of `SIDES`.
      arguments: arguments of the function of that name in ``module``.
      threads: number of cores that the process may use.
      module: module that runs as the process, with the manners of `benchmarks.contender`.

    Attributes:
      about: description of the side, for the results.
    """

    def __init__(self, side: str, arguments: dict[str, Any], threads: int, module: str = "benchmarks.contender"):
        line = [sys.executable, "-m", module, json.dumps({"side": side, **arguments})]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "OMP_WAIT_POLICY": "PASSIVE",  # while one side runs, the other must sleep and not spin
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # two processes share one accelerator
        }
        self._side = side
        with _only_on(threads):
            self._process = subprocess.Popen(
                line, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        self.about = self._answer()["ready"]

    def batch(self) -> dict[str, float]:
        """Runs one batch and returns its row."""
        print(file=self._process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        """Ends the process by closing its input."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._side} ended with status {self._process.wait()}; see above")
        answer = json.loads(line)
        if "error" in answer:
            raise UserError(f"{self._side}: {answer['error']}")
        return answer


@contextlib.contextmanager
def _only_on(threads: int) -> Iterator[None]:
    """Keeps processes that are started here on the first cores, because XLA and torch make a thread for every core."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(allowed)[:threads])
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


@contextlib.contextmanager
def _contenders(arguments: dict[str, dict[str, Any]], threads: int) -> Iterator[dict[str, Contender]]:
    """Starts both sides, ours first, because it writes the weights that the other one reads."""
    sides: dict[str, Contender] = {}
    try:
        for side in SIDES:
            sides[side] = Contender(side, arguments[side], threads)
        yield sides
    finally:
        for side in sides.values():
            side.close()


def compare(
    size: str,
    overrides: Sequence[str] = (),
    decoders: Sequence[str] = ("vae",),
    device: str = "cpu",
    threads: int = 1,
    checkpointing: bool = False,
    warmup: int = 1,
    repeats: int = 5,
) -> dict[str, dict[str, Any]]:
    """Runs both sides of every way to judge in turn, batch by batch.

    Args:
      size: size of the models.
      overrides: changes of the settings.
      decoders: how candidates are judged, some of `benchmarks.subjects.DECODERS`.
      device: ``cpu`` or ``cuda`` for torch; ours takes jax's own choice.
      threads: cores that each side may use.
      checkpointing: whether the peer uses gradient checkpointing.
      warmup: batches before the timed ones.
      repeats: timed batches.

    Returns:
      For every decoder ``about``, a description of each side, and ``results``.

    Raises:
      UserError: on any side, a setting does not work or there is too little memory.
    """
    rows: dict[str, dict[str, list[dict[str, float]]]] = {decoder: {side: [] for side in SIDES} for decoder in decoders}
    with contextlib.ExitStack() as stack:
        running = {}
        for decoder in decoders:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            arguments = {
                "ours": {"size": size, "overrides": list(overrides), "decoder": decoder, "folder": folder},
                "theirs": {"folder": folder, "device": device, "threads": threads, "checkpointing": checkpointing},
            }
            running[decoder] = stack.enter_context(_contenders(arguments, threads))
        for number in tqdm(range(warmup + repeats), desc="batches of all", unit="round"):
            for decoder, sides in running.items():
                for side, contender in sides.items():
                    row = contender.batch()
                    if number >= warmup:
                        rows[decoder][side].append(row)
        about = {decoder: {side: sides[side].about for side in SIDES} for decoder, sides in running.items()}
    return {
        decoder: {"about": about[decoder], "results": results(rows[decoder], prompts_of(size, overrides, decoder))}
        for decoder in decoders
    }


def prompts_of(size: str, overrides: Sequence[str], decoder: str = "vae") -> int:
    """Returns the number of prompts of a batch."""
    from benchmarks.subjects import read_settings

    return read_settings(size, overrides, decoder=decoder).prompts_per_batch


def results(rows: dict[str, list[dict[str, float]]], prompts: int) -> dict[str, Any]:
    """Computes speeds and memory of both sides, and their ratios, where more than 1 is better for ours.

    Speeds are those of the median batch; pairs, whose number differs from batch to batch, are summed.

    Args:
      rows: the batches of each side.
      prompts: prompts of a batch.
    """
    sides = {side: _side(rows[side], prompts) for side in SIDES}
    ours, theirs = (sides[side] for side in SIDES)

    def ratio(name: str) -> float | None:
        return ours[name] / theirs[name] if theirs[name] else None

    ratios = {
        "trajectories_per_second": ratio("trajectories_per_second"),
        "pairs_per_second": ratio("pairs_per_second"),
        "rollout_speed": theirs["seconds_rollout"] / ours["seconds_rollout"],
        "update_speed_per_pair": ratio("update_pairs_per_second"),
        "peak_memory": theirs["peak_memory_bytes"] / ours["peak_memory_bytes"],
    }
    return {**sides, "ratios": ratios}


def _side(rows: list[dict[str, float]], prompts: int) -> dict[str, Any]:
    def column(name: str) -> list[float]:
        return [row[name] for row in rows]

    rollout = column("seconds_rollout")
    update = column("seconds_update")
    pairs = column("valid_pairs")
    whole = [a + b for a, b in zip(rollout, update, strict=True)]
    return {
        "seconds": statistics.median(whole),
        "seconds_rollout": statistics.median(rollout),
        "seconds_update": statistics.median(update),
        "seconds_all": whole,
        "valid_pairs": statistics.mean(pairs),
        "trajectories_per_second": prompts / statistics.median(whole),
        "pairs_per_second": sum(pairs) / sum(whole),
        "update_pairs_per_second": sum(pairs) / sum(update),
        "loss": statistics.mean(column("loss")),
        "peak_memory_bytes": max(column("peak_memory_bytes")),
    }


def run() -> None:
    """Runs the command."""
    from benchmarks.common import define_flags

    values = define_flags(repeats=5)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = flags.DEFINE_integer("threads", cores, "Let each side use this number of cores.", lower_bound=1)
    checkpointing = flags.DEFINE_bool(
        "peer_checkpointing", False, "Use gradient checkpointing in the peer, where it does not fit in memory without."
    )

    def main(_: Sequence[str]) -> None:
        import jax

        from benchmarks.common import record, save
        from benchmarks.subjects import read_settings
        from spo_jax.core.files import check_writable, write_text
        from spo_jax.parallel.mesh import make_mesh

        value = {key: flag.value for key, flag in values.items()}
        decoders = list(dict.fromkeys(value["decoder"].split(",")))
        check_writable(value["out"])
        if value["warmup"] + value["repeats"] > MOST_BATCHES:
            raise UserError(
                f"--warmup={value['warmup']} --repeats={value['repeats']}: expected at most {MOST_BATCHES} in all"
            )
        settings = {name: read_settings(value["size"], value["set"], decoder=name) for name in decoders}
        device = "cpu" if os.environ.get("JAX_PLATFORMS", "cpu") == "cpu" else "cuda"
        common = {name: value[name] for name in ("size", "warmup", "repeats")} | {"threads": threads.value}
        options = {"overrides": value["set"], "decoders": decoders, "checkpointing": checkpointing.value}
        compared = compare(device=device, **options, **common)
        with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):
            for name, found in compared.items():
                head = {"threads": threads.value, "sides": found["about"], "measured_beside": decoders}
                models = (value["size"], name)
                save(value["out"], record("against_torch", settings[name], *models, found["results"], **head))
        path = Path(value["out"]) / "against_torch.md"
        write_text(path, table(read_results(path.parent)))
        print(path.read_text(encoding="utf-8"), end="")

    run_command(main)


if __name__ == "__main__":
    run()
