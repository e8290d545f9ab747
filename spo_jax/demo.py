"""Shows a page to try images and to vote on them: ``python -m spo_jax.demo --model=toy``.

Open the address that it prints in a browser; Ctrl-C ends it. The page shows images with a LoRA and without, asks which
of two images is better and keeps the answers in ``--out``, as ``python -m spo_jax.prepare --dataset=folder`` reads
them, and runs the commands that learn from them. It needs no network. Only this machine can open it, unless ``--host``
or ``--share`` say otherwise; there is no password.
"""

import contextlib
import importlib.util
import ipaddress
import os
import socket
import sys
from collections.abc import Sequence

from absl import flags, logging

from spo_jax import toy
from spo_jax.core.cli import callable_module, run_command
from spo_jax.core.errors import UserError, missing_extra
from spo_jax.core.files import check_writable, local_path
from spo_jax.core.progress import stage
from spo_jax.data.prompts import load_prompts
from spo_jax.models import check_model
from spo_jax.rewards import check_reward
from spo_jax.rewards.common.protocol import Context
from spo_jax.weights.lora import find_lora

DEFAULT_PORT = 7860
# gradio asks servers of its own for news, and sends statistics there. The model must not take all memory of a GPU,
# because training that is started from the page needs some.
_ENVIRONMENT = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
}
_PROMPTS = (
    "a portrait of an old fisherman, natural light",
    "a mountain lake at dawn, photograph",
    "a bowl of ramen on a wooden table",
    "a cat asleep on a windowsill, watercolour",
    "a narrow street in Lisbon after rain",
    "a lighthouse in a storm, oil painting",
    "a robot that waters plants, illustration",
    "a red bicycle against a yellow wall",
)


def demo(
    *,
    model: str = toy.NAME,
    judge: str | None = None,
    revision: str = "",
    base: str = "",
    vae: str = "",
    dtype: str = "float32",
    lora: Sequence[str] = (),
    prompts: str = "",
    runs: str | os.PathLike = "runs",
    out: str | os.PathLike = "votes",
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    share: bool = False,
) -> None:
    """Shows the page until it is interrupted; ``python -m spo_jax.demo --help`` explains the arguments.

    Raises:
      UserError: a model, judge, LoRA, list of prompts, folder or address cannot be used, or gradio is not installed.
    """
    # Check everything that can be checked before the model is read.
    if importlib.util.find_spec("gradio") is None:
        raise missing_extra("the page is made with gradio", "demo")
    if judge is None:
        judge = f"spm:{toy.NAME}" if model == toy.NAME else ""
    check_model(model, base, vae)
    if judge:
        check_reward(judge, Context(field="--judge"))
    named_loras = {name: find_lora(name) for name in lora}
    texts = _prompts(prompts, model)
    runs = local_path(runs)
    if runs.exists() and not runs.is_dir():
        raise UserError(f"--runs={runs} is a file: expected a folder of runs")
    check_writable(out)
    if _listens_to_others(host, port):
        logging.warning("--host=%s: everybody who reaches this machine can use the page; there is no password", host)

    # Read the model.
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with stage("importing JAX and gradio"):
        import spo_jax
        from spo_jax.work.demo.context import PageContext
        from spo_jax.work.demo.page import serve

    studio = spo_jax.open_studio(model, judge=judge, revision=revision, base=base, vae=vae, dtype=dtype)
    page = PageContext(
        model=model,
        studio=studio,
        runs=runs,
        out=local_path(out),
        named_loras=named_loras,
        prompts=tuple(texts),
        prompts_file=prompts,
        model_fields={"model": model, "revision": revision, "base": base, "vae": vae},
    )
    serve(page, host, port, share)


def _prompts(prompts: str, model: str) -> Sequence[str]:
    if not prompts and model != toy.NAME:
        return _PROMPTS
    return load_prompts(prompts or f"{toy.NAME}:train")


def _listens_to_others(host: str, port: int) -> bool:
    """Says whether other machines can reach an address; refuses one at which nothing can listen."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with contextlib.closing(socket.socket(family, kind, protocol)) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
        return not ipaddress.ip_address(address[0]).is_loopback
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"cannot listen at --host={host} --port={port}: {reason}; another --port may be free, and --host is an "
            "address of this machine, such as 127.0.0.1"
        ) from error


# The command


def run() -> None:
    """Runs the command."""
    named = {
        "model": flags.DEFINE_string("model", toy.NAME, "Draw with this model: folder, hub id, single file, or 'toy'."),
        "judge": flags.DEFINE_string(
            "judge", None, "Score images with this reward, such as spm:FOLDER (default: spm:toy for the toy, or none)."
        ),
        "revision": flags.DEFINE_string("revision", "", "Use this revision of the hub id."),
        "base": flags.DEFINE_string(
            "base", "", "Take a single file's tokenizers and scheduler from this folder or hub id."
        ),
        "vae": flags.DEFINE_string("vae", "", "Use this autoencoder (folder or hub id) instead of the model's own."),
        "dtype": flags.DEFINE_enum(
            "dtype", "float32", ["float32", "bfloat16"], "Compute weights and activations in this dtype."
        ),
        "lora": flags.DEFINE_multi_string(
            "lora", [], "Offer this LoRA too: a file, a run's folder, or OWNER/NAME[/FILE]; may be repeated."
        ),
        "prompts": flags.DEFINE_string(
            "prompts", "", "Vote on images of the prompts of this file: .txt, .csv, .json or .jsonl."
        ),
        "runs": flags.DEFINE_string("runs", "runs", "Offer the LoRAs of the runs in this folder."),
        "out": flags.DEFINE_string("out", "votes", "Keep votes, and the images voted on, in this folder."),
        "host": flags.DEFINE_string(
            "host", "127.0.0.1", "Listen at this address; 0.0.0.0 lets others of the network in."
        ),
        "port": flags.DEFINE_integer("port", DEFAULT_PORT, "Listen at this port.", lower_bound=1, upper_bound=65535),
        "share": flags.DEFINE_bool("share", False, "Make the page public at an address of gradio's tunnel."),
    }

    def main(_) -> None:
        demo(**{name: flag.value for name, flag in named.items()})

    run_command(main)


callable_module(__name__, demo)

if __name__ == "__main__":
    sys.exit(run())
