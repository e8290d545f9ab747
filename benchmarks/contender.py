"""One side of `benchmarks.against_torch`, in a process of its own so that its peak of memory is its own.

Talks over its standard streams: answers ``{"ready": ...}``, then a row for every line that it is sent. What libraries
print goes to standard error.
"""

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.memory import is_out_of_memory, process_peak, reset_process_peak
from spo_jax.core.errors import UserError

MOST_BATCHES = 1000
# Seconds of both halves, and what was trained on: of one batch.
Row = dict[str, float]


class Side(NamedTuple):
    """A side that is ready to run.

    Attributes:
      about: for the results. batch: runs one. device_peak: bytes, or None where the process's memory is what counts.
    """

    about: dict[str, Any]
    batch: Callable[[], Row]
    device_peak: Callable[[], int | None]


def ours(size: str, overrides: list[str], decoder: str, folder: Path) -> Side:
    """Builds our side on the mesh in context, leaves its weights in ``folder`` for the other, and compiles."""
    import jax

    from benchmarks.subjects import build, read_settings
    from spo_jax.methods.spo.batch import run_batch
    from spo_jax.methods.spo.programs import compile_programs

    subject = build(size, read_settings(size, overrides), decoder)
    write_models(subject, folder)
    state, keys = subject.fresh_state(), iter(subject.keys(MOST_BATCHES))
    programs = compile_programs(subject.networks, state, subject.frozen, subject.inputs)

    def batch() -> Row:
        nonlocal state
        arguments = (programs, subject.frozen, subject.inputs, subject.judged_timesteps)
        state, row = run_batch(*arguments, state, next(keys))
        return _row(row["seconds/rollout"], row["seconds/update"], row["valid_pairs"], row["loss"])

    about = {"device": jax.devices()[0].device_kind, "compile_seconds": programs.compile_seconds}
    return Side(about, batch, lambda: (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use"))


def theirs(folder: Path, device: str, threads: int, checkpointing: bool) -> Side:
    """Builds the peer in torch from what is in ``folder``; without jax, whose memory is not its."""
    import diffusers
    import peft
    import torch
    import transformers

    from benchmarks.torch_peer import Peer

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("torch finds no CUDA device: install its CUDA build, or run with JAX_PLATFORMS=cpu")
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = True  # shapes are fixed but for the last training batch
    torch.set_float32_matmul_precision("high")
    peer, generator = Peer(folder, device, checkpointing), torch.Generator(device).manual_seed(0)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None

    def batch() -> Row:
        begin = time.perf_counter()
        pairs, _, _ = peer.sample(peer.draw(generator))
        wait()
        middle = time.perf_counter()
        order = torch.randperm(len(pairs.t), generator=generator, device=device)
        losses = peer.train(pairs, order)
        loss = float(torch.stack(losses).mean()) if losses else 0.0
        return _row(middle - begin, time.perf_counter() - middle, len(pairs.t), loss)

    modules = (torch, diffusers, transformers, peft)
    name = torch.cuda.get_device_name() if device == "cuda" else device
    about = {"device": name, "versions": {module.__name__: module.__version__ for module in modules}}
    return Side(about, batch, torch.cuda.max_memory_allocated if device == "cuda" else lambda: None)


def _row(rollout: float, update: float, pairs: float, loss: float) -> Row:
    return {"seconds_rollout": rollout, "seconds_update": update, "valid_pairs": pairs, "loss": loss}


def write_models(subject: Any, folder: Path, lora: Any = None) -> None:
    """The subject's weights, schedule, tokens and settings and an adapter (a fresh one if none is given), for
    `benchmarks.torch_peer.Peer`."""
    import jax

    from spo_jax.core.files import write_json
    from spo_jax.weights.components import text_state, write_component
    from spo_jax.weights.lora import LoRA
    from spo_jax.models.lora import write_lora
    from spo_jax.weights.rules import to_state

    pipeline, configs, settings = subject.networks.pipeline, subject.configs, subject.settings
    vae = configs.vae if subject.networks.decoder is pipeline.vae else configs.tiny_vae
    write_component(folder / "unet", configs.unet, to_state(pipeline.params["unet"]))
    write_component(folder / "vae", vae, to_state(subject.networks.decoder_params))
    text = text_state(pipeline.params["text_encoder"])
    write_component(folder / "text_encoder", configs.text_encoder, text, kind="transformers")
    write_component(folder / "spm", configs.spm, to_state(subject.networks.spm.params), kind="transformers")
    write_json(folder / "scheduler" / "scheduler_config.json", configs.scheduler)
    lora = jax.device_get(subject.fresh_state().lora if lora is None else lora)
    rank, alpha = settings.lora.rank, settings.lora.rank * settings.lora.scale
    write_lora(folder / "lora.safetensors", LoRA(lora, alpha, rank))
    write_json(folder / "settings.json", {**dataclasses.asdict(settings), "lora": {"rank": rank, "alpha": alpha}})
    text_ids, spm_ids = subject.ids
    np.savez(folder / "ids.npz", text=text_ids, spm=spm_ids, empty=pipeline.tokenizer([""]))


def serve(build: Callable[[], Side]) -> None:
    """Builds a side, says so, and runs a batch for every line that comes in; ends with the input.

    Peaks of memory are of the batches: building and compiling came before. What the user can mend is answered as
    ``{"error": ...}`` and ends the process.
    """
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    say = lambda message: print(json.dumps(message), file=answers, flush=True)  # noqa: E731
    try:
        side = build()
        building = process_peak()
        reset = reset_process_peak()
        say({"ready": {**side.about, "building_peak_bytes": building, "memory_of_batches_alone": reset}})
        for _ in sys.stdin:
            say({**side.batch(), "peak_memory_bytes": side.device_peak() or process_peak()})
    except UserError as error:
        say({"error": str(error)})
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        say({"error": f"out of memory: {str(error).splitlines()[0][:200]}"})


def _on_one_device(build: Callable[[], Side]) -> Side:
    """As the peer; the mesh stays in context for as long as this process lives."""
    import jax

    from spo_jax.parallel.mesh import make_mesh

    jax.set_mesh(make_mesh(devices=jax.devices()[:1]))
    return build()


if __name__ == "__main__":
    arguments = json.loads(sys.argv[1])
    arguments["folder"] = Path(arguments["folder"])
    if arguments.pop("side") == "ours":
        serve(lambda: _on_one_device(lambda: ours(**arguments)))
    else:
        serve(lambda: theirs(**arguments))
