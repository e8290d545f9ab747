"""Writes a LoRA for other programs: ``python -m spo_jax.export --run=runs/toy --out=exports/toy.safetensors``.

The formats ``diffusers`` and ``kohya`` (for web UIs) are LoRA files. The other two hold the whole model, with the LoRA
merged into its weights: ``merged`` is a pipeline folder, and ``single-file`` is one checkpoint for the web UIs.
``--run`` names the folder of a run (to export its last checkpoint), one of its checkpoints (``RUN/checkpoints/20``; or
``RUN/checkpoints/best``, if a guard looked at the run), or a LoRA file. LoRA files are written without reading the base
model.

``--card --out=FOLDER`` writes everything that is published of a LoRA: both LoRA files, images, and a page for the hub;
``--push-to=USER/NAME`` uploads it. ``--scales=0.5,0.75,1 --out=FOLDER`` draws the same images at several strengths, so
that one can be picked, and ``--scale=0.75`` folds it into what is exported.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from spo_jax.core.cli import callable_module, printing, run_command
from spo_jax.core.drawing_limits import checked_prompts
from spo_jax.core.errors import UserError
from spo_jax.core.files import local_path
from spo_jax.core.lookup import find_module
from spo_jax.core.memory import explaining_memory
from spo_jax.core.progress import stage
from spo_jax.core.strengths import check_strength, checked_strengths
from spo_jax.data.prompts import load_prompts
from spo_jax.models import check_model
from spo_jax.rewards import parse_spec
from spo_jax.weights.upload import check_upload, upload
from spo_jax.work.export.checks import (
    FORMATS,
    STRENGTHS_SHEET,
    STRENGTHS_TABLE,
    check_card_folder,
    check_comparison_folder,
    check_out,
    check_source,
    checked_name,
)

DTYPES = ("float32", "float16")
MAX_COUNT = 50_000  # images at each strength


def export(
    source: str | os.PathLike,
    form: str,
    out: str | os.PathLike,
    model: str = "",
    revision: str = "",
    overwrite: bool = False,
    base: str = "",
    dtype: str = "float32",
    *,
    scale: float | int = 1.0,
    author: str = "",
    license: str = "",
) -> None:
    """Writes the LoRA of a run or of a file in another format.

    Args:
      source: run folder, checkpoint folder (``RUN/checkpoints/STEP``; the step ``best`` is the one that the run's guard
        found best) or LoRA file. Of a run that its guard ended, the folder means that one, otherwise the last one.
      form: ``diffusers``, ``kohya``, ``merged`` or ``single-file``.
      out: file that ends in ``.safetensors``, or folder for ``merged``. Beside a file in kohya's format of a run that
        has images, ``NAME.preview.png`` is written, which web UIs show.
      model: base model; empty takes the run's. A LoRA file needs one for ``merged`` and ``single-file``, and also if it
        has kohya's names.
      revision: revision of ``model`` on the hub. The run's revision is used only with the run's model.
      overwrite: whether to replace a file or a pipeline folder at ``out``.
      base: folder or hub id from which a model in one file takes its tokenizers and scheduler. The run's is used only
        with the run's model.
      dtype: dtype of the weights in a ``single-file``, ``float32`` or ``float16``.
      scale: strength that is folded into what is written, which then has it at strength 1; not 0.
      author: author in the metadata of a file in kohya's format; empty for none.
      license: licence there; empty takes that of the base model if it is known.

    Raises:
      UserError: there is nothing to export at ``source``, or ``out`` exists, is misnamed or cannot be written.
    """
    # Check the arguments.
    for flag, value, known in (("format", form, FORMATS), ("dtype", dtype, DTYPES)):
        if value not in known:
            raise UserError(f"--{flag}={value}: expected {', '.join(known)}")
    for flag, value in (("author", author), ("license", license)):
        if value and form != "kohya":
            raise UserError(f"--{flag}={value}: only --format=kohya and --card have a place for it")
    source = local_path(source)
    out = local_path(out)
    check_strength(scale, "--scale")
    check_out(out, form, overwrite)
    if dtype != "float32" and form != "single-file":
        raise UserError(f"--dtype={dtype}: only --format=single-file has a choice; {form} is written in float32")
    check_source(source)
    if model:
        check_model(model, base)
    # Imported here because it takes seconds, and the mistakes above are found in one.
    with stage("importing JAX"):
        from spo_jax.work.export.files import export
        from spo_jax.work.export.source import Base

    about = {"scale": scale, "author": author, "license": license}
    written = export(source, form, out, Base(model, revision, base), overwrite=overwrite, dtype=dtype, **about)
    with printing():
        for path in written:
            print(f"wrote {path}")


def export_card(
    source: str | os.PathLike,
    out: str | os.PathLike,
    *,
    name: str = "",
    author: str = "",
    license: str = "",
    scale: float | int = 1.0,
    push_to: str = "",
    private: bool = False,
    model: str = "",
    revision: str = "",
    base: str = "",
    overwrite: bool = False,
) -> Path:
    """Writes everything that is published of a LoRA into a folder, and uploads it if it is asked to.

    The folder has a page (``README.md``) that says what the LoRA is and, for a run, how it was trained and what it was
    worth; ``pytorch_lora_weights.safetensors`` for diffusers; ``NAME.safetensors`` and ``NAME.preview.png`` for the web
    UIs; and images.

    Args:
      source: run folder, checkpoint folder or LoRA file. The page of a file says what is not known.
      out: the folder.
      name: name of the LoRA; empty takes that of the repository or, otherwise, of the folder.
      author: its author; empty takes the owner of the repository, if there is one.
      license: its licence by the hub's name, such as ``openrail++``; empty takes that of a base model that is known.
      scale: strength that is folded into the files, as in `export`.
      push_to: ``user/name`` of the repository on the hub; empty uploads nothing.
      private: whether a repository that is made for it is private.
      model: base model, of which only configs are read; empty takes the run's.
      revision: revision of ``model`` on the hub.
      base: folder or hub id from which a model in one file takes its tokenizers and scheduler.
      overwrite: whether to replace files of the same names in a folder that exists; its other files stay.

    Returns:
      The folder.

    Raises:
      UserError: there is no LoRA at ``source``, a name cannot be used, the folder exists or cannot be written, or it
        cannot be uploaded, and then it stays.
    """
    source, out = local_path(source), local_path(out)
    if private and not push_to:
        raise UserError("--private goes with --push-to=USER/NAME only")
    if push_to:
        check_upload(push_to)
    name = checked_name(name, push_to.rpartition("/")[2] or out.absolute().name)
    check_strength(scale, "--scale")
    check_card_folder(out, overwrite)
    check_source(source)
    if model:
        check_model(model, base)
    with stage("importing JAX"):
        from spo_jax.work.export.card import write_card
        from spo_jax.work.export.page import Naming
        from spo_jax.work.export.source import Base, read_source

    read = read_source(source, Base(model, revision, base), scale)
    names = write_card(read, out, Naming(name, author or push_to.partition("/")[0], license, push_to))
    with printing():
        print(f"wrote {out}: {', '.join(names)}")
    if push_to:
        address = upload(out, push_to, names, f"{name}, by spo_jax", private)
        with printing():
            print(f"uploaded to {address}")
    return out


def compare_strengths(
    source: str | os.PathLike,
    scales: str | Sequence[float | int],
    out: str | os.PathLike,
    *,
    rewards: str | Sequence[str] = "",
    prompts: str | os.PathLike | Sequence[str] = "",
    count: int | None = None,
    model: str = "",
    revision: str = "",
    base: str = "",
    overwrite: bool = False,
) -> dict[str, Any]:
    """Draws the same images at several strengths of a LoRA, so that one can be picked.

    Args:
      source: run folder, checkpoint folder or LoRA file.
      scales: the strengths, a list or a text such as ``0.5,1``; 0, which is the base model, is added.
      out: folder for ``strengths.png``, a grid of the first 16 prompts, and ``strengths.json``, the scores.
      rewards: rewards that score the images, a list or a text with commas between them; empty scores nothing.
      prompts: file of prompts, ``toy:held_out``, or a list of prompts; empty takes the prompts of the run's evaluation,
        whose seed, steps and guidance are taken as well.
      count: number of images at each strength; None takes that of the run's evaluation.
      model: base model; empty takes the run's. A LoRA file needs one.
      revision: revision of ``model`` on the hub.
      base: folder or hub id from which a model in one file takes its tokenizers and scheduler.
      overwrite: whether to replace the files of an earlier comparison in ``out``.

    Returns:
      The content of ``strengths.json``: for each strength its scores, compared pair by pair with those at strength 0.

    Raises:
      UserError: there is no LoRA at ``source``, its base model is not known, a strength, reward or prompt cannot be
        used, or ``out`` cannot be written.
    """
    source, out = local_path(source), local_path(out)
    scales = checked_strengths(scales, "--scales")
    if count is not None and not 1 <= count <= MAX_COUNT:
        raise UserError(f"--count={count}: expected a number from 1 to {MAX_COUNT}")
    check_comparison_folder(out, overwrite)
    check_source(source)
    rewards = rewards if isinstance(rewards, str) else ",".join(map(str, rewards))
    for spec in filter(None, rewards.split(",")):
        find_module("spo_jax.rewards", parse_spec(spec).name, "--rewards")
    if isinstance(prompts, str | os.PathLike):
        prompts = os.fspath(prompts)
        if prompts:
            load_prompts(prompts)
    else:
        prompts = checked_prompts(prompts)
    if model:
        check_model(model, base)
    with stage("importing JAX"):
        from spo_jax.work.export import strengths
        from spo_jax.work.export.source import Base

    given = Base(model, revision, base)
    with explaining_memory(lambda: "lower --count"):
        chosen = {"rewards": rewards, "prompts": prompts, "count": count}
        result = strengths.compare_strengths(source, scales, out, given, **chosen)
    with printing():
        if rewards:
            print(f"\n{strengths.text_table(result)}\n")
        print(f"wrote {out / STRENGTHS_SHEET} and {out / STRENGTHS_TABLE}")
    return result


# The command

# What each kind of export takes besides the flags that all of them take.
_OF_EXPORT = ("format", "dtype", "scale", "author", "license")
_OF_CARD = ("card", "scale", "author", "license", "name", "push-to", "private")
_OF_SCALES = ("scales", "rewards", "prompts", "count")


def run() -> None:
    """Runs the command."""
    named = {
        "run": flags.DEFINE_string("run", None, "Export this run folder, checkpoint folder, or LoRA file."),
        "out": flags.DEFINE_string(
            "out", None, "Write this file, ending in .safetensors; or this folder, for 'merged', --card and --scales."
        ),
        "format": flags.DEFINE_enum("format", "diffusers", list(FORMATS), "Write this format."),
        "scale": flags.DEFINE_float("scale", 1.0, "Fold this strength into what is written."),
        "dtype": flags.DEFINE_enum("dtype", "float32", list(DTYPES), "Write a 'single-file' in this dtype."),
        "model": flags.DEFINE_string("model", "", "Use this base model (default: the run's)."),
        "revision": flags.DEFINE_string("revision", "", "Use this revision of the base model's hub id."),
        "base": flags.DEFINE_string(
            "base", "", "Take a single file's tokenizers and scheduler from this folder or hub id."
        ),
        "overwrite": flags.DEFINE_bool("overwrite", False, "Replace what was written to --out before."),
        "card": flags.DEFINE_bool("card", False, "Write all that is published of a LoRA, with a page for the hub."),
        "name": flags.DEFINE_string("name", "", "Call the LoRA by this name (default: that of --push-to or --out)."),
        "author": flags.DEFINE_string("author", "", "Name this author in the metadata and on the page."),
        "license": flags.DEFINE_string("license", "", "Name this licence there (default: that of a known base model)."),
        "push-to": flags.DEFINE_string("push-to", "", "Upload what --card wrote to USER/NAME on the hub."),
        "private": flags.DEFINE_bool("private", False, "Let nobody else see the repository that is made for it."),
        "scales": flags.DEFINE_string("scales", "", "Draw images at these strengths and at 0, such as 0.5,0.75,1."),
        "rewards": flags.DEFINE_string("rewards", "", "Score them by these rewards, such as toy,spm:toy."),
        "prompts": flags.DEFINE_string("prompts", "", "Draw these prompts (default: those of the run's evaluation)."),
        "count": flags.DEFINE_integer("count", None, "Draw this number of images (default: as the run's evaluation)."),
    }
    flags.mark_flags_as_required(["run", "out"])

    def main(_) -> None:
        value = {name: flag.value for name, flag in named.items()}
        common = {name: value[name] for name in ("model", "revision", "base", "overwrite")}
        if value["card"]:
            _refuse_others(_OF_CARD, "--card")
            chosen = {name.replace("-", "_"): value[name] for name in _OF_CARD[1:]}
            export_card(value["run"], value["out"], **chosen, **common)
        elif value["scales"]:
            _refuse_others(_OF_SCALES, "--scales")
            chosen = {name: value[name] for name in _OF_SCALES[1:]}
            compare_strengths(value["run"], value["scales"], value["out"], **chosen, **common)
        else:
            _refuse_others(_OF_EXPORT, "--card or --scales", goes=True)
            chosen = {name: value[name] for name in _OF_EXPORT[1:]}
            export(value["run"], value["format"], value["out"], **chosen, **common)

    run_command(main)


def _refuse_others(taken: Sequence[str], kind: str, goes: bool = False) -> None:
    """Refuses flags of another kind of export, which would be ignored."""
    for name in sorted({*_OF_EXPORT, *_OF_CARD, *_OF_SCALES} - set(taken)):
        value = flags.FLAGS[name].value
        if flags.FLAGS[name].present and value is not False and value != "":
            raise UserError(f"--{name} goes with {kind} only" if goes else f"--{name} does not go with {kind}")


callable_module(__name__, export)

if __name__ == "__main__":
    sys.exit(run())
