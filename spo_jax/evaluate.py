"""Compares models on the same noise: ``python -m spo_jax.evaluate --lora=spo=runs/toy --out=evaluations/toy``.

The first contestant is the model itself. Every other one is a LoRA on it (``--lora=NAME=SOURCE[:STRENGTH]``), another
model (``--merged``), or a folder of images that were made elsewhere (``--images``); these flags may be repeated.
``--protocol`` names what is drawn and how scores are summed up, ``--rewards`` what scores the images. Images and scores
are kept in ``--out``: a command that is started again, or with a contestant or a reward more, makes only what is not
there yet. Results are ``index.html``, ``results.md``, ``results.csv``, ``scores.csv`` and ``results.json``.
"""

import os
import shlex
import sys
from collections.abc import Sequence

from absl import flags

from spo_jax import toy
from spo_jax.core.cli import callable_module, printing, run_command
from spo_jax.core.drawing_limits import SOLVERS, check_limits, flag_bounds
from spo_jax.core.errors import UserError
from spo_jax.core.files import local_path
from spo_jax.core.progress import stage
from spo_jax.core.strengths import checked_strengths
from spo_jax.data.protocol import protocol_names
from spo_jax.models import check_model
from spo_jax.rewards.common.total import read_weights
from spo_jax.work.evaluate.asked import TOY_REWARDS, asked_images, asked_rewards, is_empty
from spo_jax.work.evaluate.elsewhere import find_all_images
from spo_jax.work.evaluate.entries import Sources, check_sources, read_entries
from spo_jax.work.evaluate.layouts import LAYOUTS
from spo_jax.work.evaluate.request import Request
from spo_jax.work.evaluate.result import Evaluation
from spo_jax.work.evaluate.store import check_folder


def evaluate(
    out: str | os.PathLike,
    *,
    model: str = toy.NAME,
    loras: Sources = (),
    merged: Sources = (),
    images: Sources = (),
    strengths: str | Sequence[float | int] = (),
    protocol: str | os.PathLike = "",
    prompts: str | os.PathLike | Sequence[str] = "",
    limit: int | None = None,
    rewards: str | Sequence[str] = "",
    weights: str | Sequence[float | int] = "",
    layouts: Sequence[str] = (),
    solver: str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int | None = None,
    images_per_prompt: int | None = None,
    size: int | None = None,
    revision: str = "",
    base: str = "",
    vae: str = "",
    batch: int = 8,
    dtype: str = "float32",
    command: str = "",
) -> Evaluation:
    """Draws images of the same prompts from the same noise by several models, and compares their scores.

    Args:
      out: folder of the images, scores and results. It may hold an earlier evaluation of the same prompts, or of the
        first of them, of which all images and scores that still hold are taken.
      model: the model itself, the contestant ``base``: folder, hub id, single file, or ``toy``.
      loras: LoRAs by name, or texts ``NAME=SOURCE[:STRENGTH]``; a source is a run's folder, a file or a hub id.
      merged: other models of the same kind by name, or texts ``NAME=SOURCE``: pipeline folders, single files, hub ids,
        or UNets alone, which take the place of the model's own.
      images: folders of images that were made elsewhere by name, or texts ``NAME=FOLDER``.
      strengths: further strengths of every LoRA, as contestants ``NAME@STRENGTH``.
      protocol: name of a protocol or file of one; empty takes ``toy`` for the toy, and otherwise makes one of the other
        arguments, which is called ``custom``.
      prompts: file of prompts, ``toy:held_out``, or a list of prompts, instead of the protocol's.
      limit: number of prompts, from the first one on; None takes all.
      rewards: rewards that score the images, a list or a text with commas between them; empty takes ``toy,spm:toy`` for
        the toy.
      weights: a weight for each reward in one more score, ``total``; empty for none.
      layouts: benchmarks for which the images are also laid out: ``geneval``, ``t2i_compbench``, ``unigenbench``,
        ``hpsv2``.
      solver: solver instead of the protocol's, like the arguments that follow.
      steps: number of sampling steps.
      guidance: guidance scale of all contestants.
      seed: seed of the initial noise.
      images_per_prompt: images of each prompt.
      size: side of the images in pixels.
      revision: revision of the model's hub id.
      base: folder or hub id from which a single file takes its tokenizers and scheduler.
      vae: folder or hub id of an autoencoder instead of the models' own.
      batch: number of images drawn at a time.
      dtype: dtype of weights and activations of the models, ``float32`` or ``bfloat16``; rewards compute in float32.
      command: the command line, for the record.

    Returns:
      What was found (`spo_jax.work.evaluate.result.Evaluation`).

    Raises:
      UserError: a model, contestant, reward, prompt or number cannot be used; the folder holds something else, or is in
        use; or an image has values that are not finite. What is finished is kept.
    """
    # Check everything that can be checked before jax is imported.
    out = local_path(out)
    strengths = checked_strengths(strengths, "--strengths") if not is_empty(strengths) else []
    entries = read_entries(loras, merged, images, strengths)
    changes = {"solver": solver, "steps": steps, "guidance": guidance, "seed": seed}
    changes |= {"images_per_prompt": images_per_prompt, "size": size}
    drawn = asked_images(protocol, changes, prompts, limit, layouts, model)
    specs = asked_rewards(rewards, model)
    total = read_weights(weights if isinstance(weights, str) else ",".join(map(str, weights)), specs, "--weights")
    check_limits(batch=batch)
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"--dtype={dtype}: expected float32 or bfloat16")
    check_folder(out, drawn.prompts)
    check_model(model, base, vae)
    check_sources(entries, model, base, vae)
    request = Request(
        out=out, model=model, revision=revision, base=base, vae=vae, entries=entries,
        images=find_all_images(entries, drawn.prompts, drawn.protocol.images_per_prompt),
        **drawn._asdict(), rewards=specs, weights=total, layouts=layouts, batch=batch, dtype=dtype, command=command,
    )  # fmt: skip
    # Imported here because it takes seconds, and the mistakes above are found in one.
    with stage("importing JAX"):
        from spo_jax.work.evaluate import evaluation as work

    evaluation, text, files = work.evaluate(request)
    with printing():
        print(f"\n{text}\n")
        for file in files:
            print(f"wrote {file}")
    return evaluation


# The command


def _contestants() -> dict[str, flags.FlagHolder]:
    """Defines what is compared."""
    return {
        "model": flags.DEFINE_string(
            "model",
            toy.NAME,
            "Evaluate this model, the contestant 'base': folder, hub id, single file, or 'toy'.",
        ),
        "revision": flags.DEFINE_string("revision", "", "Use this revision of the hub id."),
        "base": flags.DEFINE_string(
            "base", "", "Take a single file's tokenizers and scheduler from this folder or hub id."
        ),
        "vae": flags.DEFINE_string("vae", "", "Use this autoencoder (folder or hub id) instead of the models' own."),
        "loras": flags.DEFINE_multi_string(
            "lora",
            [],
            "Evaluate this LoRA, NAME=SOURCE[:STRENGTH]: a run's folder, a file, or OWNER/NAME[/FILE] on the hub. May "
            "be repeated.",
        ),
        "merged": flags.DEFINE_multi_string(
            "merged",
            [],
            "Evaluate this model, NAME=SOURCE: pipeline folder, single file, hub id, or a UNet alone. May be repeated.",
        ),
        "images": flags.DEFINE_multi_string(
            "images",
            [],
            "Score the images in this folder, NAME=FOLDER, which were made elsewhere: 0012.png is of prompt 12 (from "
            "0), or metadata.jsonl says which is of which. May be repeated.",
        ),
        "strengths": flags.DEFINE_string(
            "strengths", "", "Evaluate every LoRA at these strengths too, such as 0.25,0.5: contestants NAME@STRENGTH."
        ),
    }


def _drawing() -> dict[str, flags.FlagHolder]:
    """Defines what is drawn, and how."""
    return {
        "protocol": flags.DEFINE_string(
            "protocol",
            "",
            f"Draw and sum up by this protocol: {', '.join(protocol_names())}, or a JSON file (default: 'toy' for the "
            "toy, else what the other flags say). The flags that follow override its fields, and results say so.",
        ),
        "prompts": flags.DEFINE_string("prompts", "", "Draw the prompts of this file, or toy:held_out."),
        "limit": flags.DEFINE_integer("limit", None, "Draw the first prompts only, this number of them."),
        "images_per_prompt": flags.DEFINE_integer(
            "images-per-prompt", None, "Draw this number of images of each prompt.", **flag_bounds("images_per_prompt")
        ),
        "seed": flags.DEFINE_integer("seed", None, "Draw the initial noise from this seed.", **flag_bounds("seed")),
        "solver": flags.DEFINE_enum("solver", None, list(SOLVERS), "Sample with this solver."),
        "steps": flags.DEFINE_integer("steps", None, "Take this number of sampling steps.", **flag_bounds("steps")),
        "guidance": flags.DEFINE_float("guidance", None, "Use this guidance scale for all contestants."),
        "size": flags.DEFINE_integer("size", None, "Make images of this side, in pixels.", **flag_bounds("size")),
        "batch": flags.DEFINE_integer("batch", 8, "Draw this number of images at a time.", **flag_bounds("batch")),
        "dtype": flags.DEFINE_enum(
            "dtype", "float32", ["float32", "bfloat16"], "Compute the models in this dtype; rewards are in float32."
        ),
    }


def _results() -> dict[str, flags.FlagHolder]:
    """Defines what is made of the images."""
    return {
        "rewards": flags.DEFINE_string(
            "rewards",
            "",
            "Score by these rewards, NAME[@VARIANT][:SOURCE] with commas between them (default for the toy: "
            f"{TOY_REWARDS}).",
        ),
        "weights": flags.DEFINE_string(
            "weights", "", "Add a score 'total', the sum of the rewards with these weights, such as 1,0.5."
        ),
        "layouts": flags.DEFINE_list(
            "layout",
            [],
            f"Lay the images out for these benchmarks too, separated by commas: {', '.join(LAYOUTS)}.",
        ),
        "out": flags.DEFINE_string(
            "out", None, "Keep images, scores and results in this folder, which may hold an earlier evaluation of them."
        ),
    }


def run() -> None:
    """Runs the command."""
    named = _contestants() | _drawing() | _results()
    flags.mark_flag_as_required("out")

    def main(_) -> None:
        command = shlex.join(["python", "-m", "spo_jax.evaluate", *sys.argv[1:]])
        evaluate(**{name: flag.value for name, flag in named.items()}, command=command)

    run_command(main, interrupted="interrupted; what is finished stays, and the same command goes on from there")


callable_module(__name__, evaluate)

if __name__ == "__main__":
    sys.exit(run())
