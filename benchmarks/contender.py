"""One side of `benchmarks.against_torch`, in a process of its own so that its peak of memory is its own.

The process talks over its standard streams: it answers ``{"ready": ...}``, then a row for every line that it is sent.
The output of libraries goes to standard error.
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

from benchmarks.memory import device_peak, is_out_of_memory, process_peak, reset_process_peak
from spo_jax.core.errors import UserError
from spo_jax.core.memory import return_unused_memory

MOST_BATCHES = 1000
# Seconds of both halves of a batch, its number of valid pairs and its loss.
Row = dict[str, float]


class Side(NamedTuple):
    """A side that is ready to run.

    Attributes:
      about: description for the results.
      batch: runs one batch.
      device_peak: returns the device's peak of memory in bytes, or None where the process's memory counts.
    """

    about: dict[str, Any]
    batch: Callable[[], Row]
    device_peak: Callable[[], int | None]


def ours(size: str, overrides: list[str], decoder: str, folder: Path) -> Side:
    """Builds our side on the mesh in context, compiles it, and leaves its weights for the other side.

    Args:
      size: size of the models.
      overrides: changes of the settings.
      decoder: decoder of the images.
      folder: folder that the other side reads.
    """
    import jax

    from benchmarks.common import compiled_all
    from benchmarks.subjects import build, read_settings
    from spo_jax.methods.spo.method import run_batch

    subject = build(size, read_settings(size, overrides, decoder=decoder), decoder)
    write_models(subject, folder)
    programs, compile_seconds = compiled_all(subject.traced)
    state = subject.fresh_state()
    keys = iter(subject.keys(MOST_BATCHES))

    def batch() -> Row:
        nonlocal state
        key = next(keys)
        state, row = run_batch(programs, subject.frozen, subject.inputs, subject.timesteps, state, key)
        return _row(row["seconds/rollout"], row["seconds/update"], row["valid_pairs"], row.get("loss", 0.0))

    about = {"device": jax.devices()[0].device_kind, "compile_seconds": compile_seconds}
    return Side(about, batch, device_peak)


def theirs(folder: Path, device: str, threads: int, checkpointing: bool) -> Side:
    """Builds the peer in torch, in a process without jax, whose memory would count as the peer's.

    Args:
      folder: folder that `write_models` wrote.
      device: ``cpu`` or ``cuda``.
      threads: threads that torch may use.
      checkpointing: whether the peer uses gradient checkpointing.
    """
    import diffusers
    import peft
    import torch
    import transformers

    from benchmarks.torch_peer import Peer

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("torch finds no CUDA device: install its CUDA build, or run with JAX_PLATFORMS=cpu")
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = True  # shapes do not change, except that of the last training batch
    torch.set_float32_matmul_precision("high")
    peer = Peer(folder, device, checkpointing)
    generator = torch.Generator(device).manual_seed(0)

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def batch() -> Row:
        begin = time.perf_counter()
        pairs, _, _ = peer.sample(peer.draw(generator))
        wait()
        middle = time.perf_counter()
        order = torch.randperm(len(pairs.t), generator=generator, device=device)
        losses = peer.train(pairs, order)
        loss = float(torch.stack(losses).mean()) if losses else 0.0
        return _row(middle - begin, time.perf_counter() - middle, len(pairs.t), loss)

    def cuda_peak() -> int | None:
        return torch.cuda.max_memory_allocated() if device == "cuda" else None

    modules = (torch, diffusers, transformers, peft)
    name = torch.cuda.get_device_name() if device == "cuda" else device
    about = {"device": name, "versions": {module.__name__: module.__version__ for module in modules}}
    return Side(about, batch, cuda_peak)


def _row(rollout: float, update: float, pairs: float, loss: float) -> Row:
    return {"seconds_rollout": rollout, "seconds_update": update, "valid_pairs": pairs, "loss": loss}


def write_models(subject: Any, folder: Path, lora: Any = None) -> None:
    """Writes everything that `benchmarks.torch_peer.Peer` reads: weights, schedule, tokens, settings and an adapter.

    Args:
      subject: a `benchmarks.subjects.Subject`.
      folder: folder to write to.
      lora: the adapter's tree; None writes a fresh one.
    """
    # Imported here, because this module must not import jax in the process of the peer.
    from spo_jax.core.files import write_json
    from spo_jax.models.lora import write_lora
    from spo_jax.parallel.sharding import to_host
    from spo_jax.weights.components import text_state, write_component
    from spo_jax.weights.rules import to_state

    spo = subject.spo
    params = spo.pipeline.params
    configs = subject.configs.pipeline

    # The models.
    write_component(folder / "unet", configs["unet"], to_state(params["unet"]))
    text = text_state(params["text_encoder"])
    write_component(folder / "text_encoder", configs["text_encoder"], text, kind="transformers")
    write_json(folder / "scheduler" / "scheduler_config.json", configs["scheduler"])
    if spo.judge.decoder is None:
        _write_latent_judge(subject, folder / "lrm")
    else:
        decoder = spo.judge.decoder.params
        vae = configs["vae"] if decoder is params["vae"] else subject.configs.tiny_vae
        write_component(folder / "vae", vae, to_state(decoder))
        spm = to_state(spo.judge.reward.params)
        write_component(folder / "spm", subject.configs.spm, spm, kind="transformers")

    # The adapter.
    settings = subject.settings
    lora = settings.lora.adapter(to_host(subject.fresh_state().params if lora is None else lora))
    write_lora(folder / "lora.safetensors", lora)

    # Settings and tokens.
    fields = dataclasses.asdict(settings) | {"lora": {"rank": lora.rank, "alpha": lora.alpha}}
    write_json(folder / "settings.json", fields)
    text_ids, judge_ids = subject.ids
    np.savez(folder / "ids.npz", text=text_ids, judge=judge_ids, empty=spo.pipeline.tokenizer([""]))


def _write_latent_judge(subject: Any, folder: Path) -> None:
    """Writes what `benchmarks.torch_judges.LatentJudge` reads: networks, projections and the tokens of no prompt."""
    from spo_jax.core.files import write_json
    from spo_jax.weights import store
    from spo_jax.weights.components import text_state, write_component
    from spo_jax.weights.rules import to_state

    read = subject.spo.judge.reward.read
    params = read.params
    unet, text = (dataclasses.asdict(config) for config in (read.config.unet, read.config.text[0]))
    write_component(folder / "unet", {"_class_name": "UNet2DConditionModel", **unet}, to_state(params["unet"]))
    text = {"model_type": "clip_text_model", **text}
    write_component(folder / "text_encoder", text, text_state(params["text_encoder"]), kind="transformers")
    head = {name: params[name] for name in ("visual_projection", "text_projection", "logit_scale")}
    store.write_state(folder / "head.safetensors", to_state(head) | {"empty_ids": read.tokenize([""])[:, 0]})
    write_json(folder / "judge.json", {"guidance_scale": subject.spo.judge.reward.model.guidance_scale})


def serve(build: Callable[[], Side]) -> None:
    """Builds a side, announces it, and runs a batch for every line of the input, until the input ends.

    Peaks of memory are those of the batches, because building and compiling come before. A `UserError` and too little
    memory are answered as ``{"error": ...}`` and end the process.
    """
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def answer(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=answers, flush=True)

    try:
        side = build()
        building = process_peak()
        return_unused_memory()  # as training does before its first batch
        reset = reset_process_peak()
        answer({"ready": {**side.about, "building_peak_bytes": building, "memory_of_batches_alone": reset}})
        for _ in sys.stdin:
            answer({**side.batch(), "peak_memory_bytes": side.device_peak() or process_peak()})
    except UserError as error:
        answer({"error": str(error)})
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        answer({"error": f"out of memory: {str(error).splitlines()[0][:200]}"})


def _on_one_device(build: Callable[[], Side]) -> Side:
    """Builds a side on one device, as the peer has one; the mesh stays in context until this process ends."""
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
