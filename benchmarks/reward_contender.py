"""One side of `benchmarks.rewards` in a process of its own; `benchmarks.contender` describes how it talks."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contender import Row, Side, serve
from benchmarks.memory import device_peak


def ours(spec: str, images: np.ndarray, prompts: list[str]) -> Side:
    """Loads a reward and compiles what is measured.

    Args:
      spec: name of the reward and the folder of its weights.
      images: uint8 images [b h w 3].
      prompts: a prompt for each of them.
    """
    import jax

    from spo_jax.parallel.mesh import make_mesh
    from spo_jax.rewards import load_reward
    from spo_jax.rewards.base import Context
    from spo_jax.rewards.common.clip_pixels import openai_pixels

    mesh = make_mesh(devices=jax.devices()[:1])
    jax.set_mesh(mesh)
    reward = load_reward(spec, Context(mesh=mesh))
    name = spec.partition(":")[0]
    network = reward.blip if name == "image_reward" else reward.clip
    to_pixels = jax.jit(getattr(reward, "pixels", openai_pixels), static_argnums=1)
    floats = images.astype(np.float32) / 127.5 - 1

    def pixels() -> Any:
        return to_pixels(floats, network.config.vision.image_size).block_until_ready()

    def scores() -> np.ndarray:
        reward.forget_prompts()
        (values,) = reward.measure(floats, prompts).values()
        return values

    return _side({"device": jax.devices()[0].device_kind}, pixels, scores, device_peak)


def theirs(name: str, size: str, folder: Path, images: np.ndarray, prompts: list[str], threads: int) -> Side:
    """Builds a peer in torch, and writes its weights for the other side.

    Args:
      name: name of the reward.
      size: size of the networks.
      folder: folder to write to.
      images: uint8 images [b h w 3].
      prompts: a prompt for each of them.
      threads: threads that torch may use.
    """
    import torch
    import transformers
    from PIL import Image

    from benchmarks.reward_models import make_peer, peer_tokens, write_reward

    torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    peer = make_peer(name, size)
    spec = write_reward(name, size, peer, folder)
    peer = peer.to(device)
    pictures = [Image.fromarray(image) for image in images]

    def pixels() -> torch.Tensor:
        return peer.pixels(pictures)

    def scores() -> np.ndarray:
        with torch.inference_mode():
            tokens = peer_tokens(name, folder, prompts)
            return peer(pixels().to(device), *(ids.to(device) for ids in tokens)).cpu().numpy()

    about = {"device": device, "spec": spec, "parameters": sum(p.numel() for p in peer.parameters())}
    about["versions"] = {module.__name__: module.__version__ for module in (torch, transformers)}
    return _side(about, pixels, scores, lambda: torch.cuda.max_memory_allocated() if device == "cuda" else None)


def _side(
    about: dict[str, Any],
    pixels: Callable[[], Any],
    scores: Callable[[], np.ndarray],
    device_peak: Callable[[], int | None],
) -> Side:
    """Runs both once, which compiles and warms up, and returns the side that times them."""
    pixels()
    first = scores()

    def timed(call: Callable[[], Any]) -> tuple[float, float]:
        begin, begin_core = time.perf_counter(), time.process_time()
        call()
        return time.perf_counter() - begin, time.process_time() - begin_core

    def batch() -> Row:
        seconds, core_seconds = timed(scores)
        prepared, core_prepared = timed(pixels)
        return {
            "seconds": seconds, "core_seconds": core_seconds,
            "seconds_prepared": prepared, "core_seconds_prepared": core_prepared,
        }  # fmt: skip

    return Side({**about, "scores": [float(value) for value in first]}, batch, device_peak)


if __name__ == "__main__":
    arguments = json.loads(sys.argv[1])
    side = arguments.pop("side")
    arguments["images"] = np.load(arguments["images"])
    if side == "theirs":
        arguments["folder"] = Path(arguments["folder"])
        serve(lambda: theirs(**arguments))
    else:
        serve(lambda: ours(**arguments))
