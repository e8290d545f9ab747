"""Operations of a prompt by how candidates are judged, counted from the layers: ``python -m benchmarks.judging``.

Stable Diffusion 1.5 and SDXL at their true sizes, with the published settings: SPO that decodes candidates by the
autoencoder, SPO with a distilled decoder, and LPO, which judges them as they are. Nothing is compiled or run
(`benchmarks.costs`). An update is counted with all pairs valid, which is the most that it can be.
"""

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from benchmarks.blueprints import blueprint, write_configs
from benchmarks.costs import PARTS, Costs, run_costs, tflop
from benchmarks.places import RESULTS
from benchmarks.subjects import DECODERS
from benchmarks.torch_table import JUDGES
from spo_jax.core.cli import run_command
from spo_jax.core.config_flag import load_config
from spo_jax.core.files import check_writable, write_json, write_text
from spo_jax.methods import read_settings
from spo_jax.methods.spo.settings import SPOTrainSettings

MODELS = ("sd15", "sdxl")
TITLE = """# Operations of a prompt, by how candidates are judged

Written by `python -m benchmarks.judging`, which counts the layers: TFLOP of a prompt's rollout and of its share of the
update with all pairs valid. The last columns say how much less that is than SPO with the autoencoder."""


def settings_of(model: str, decoder: str, folder: Path) -> SPOTrainSettings:
    """Returns the published settings of a model.

    Args:
      model: one of `MODELS`.
      decoder: one of `DECODERS`.
      folder: folder in which the config of a distilled decoder is written.
    """
    settings = read_settings(load_config(f"lpo_{model}" if decoder == "none" else model))
    if decoder == "tiny":
        write_configs(blueprint(model), folder)
        spo = dataclasses.replace(settings.spo, decoder=str(folder / "tiny_vae"))
        settings = dataclasses.replace(settings, spo=spo)
    return settings


def row(model: str, decoder: str) -> dict[str, Any]:
    """Counts one way to judge.

    Args:
      model: one of `MODELS`.
      decoder: one of `DECODERS`.

    Returns:
      Operations of a prompt by part, of its rollout and of all of it.
    """
    with tempfile.TemporaryDirectory() as name:
        settings = settings_of(model, decoder, Path(name))
        costs: Costs = run_costs(settings)
    prompts = settings.prompts_per_batch
    parts = {part: flops / prompts for part, flops in costs.of_batch().items()}
    rollout = sum(costs.programs["collect"].call.values()) / prompts
    return {"model": model, "decoder": decoder, "parts": parts, "rollout": rollout, "all": sum(parts.values())}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Formats rows as a Markdown document; each model's first row is the one that its others are compared with."""
    columns = ("model", "method and decoder", *PARTS, "rollout", "with update", "rollout of SPO", "of SPO with update")
    lines = [TITLE, "", f"| {' | '.join(columns)} |", "| " + " | ".join("---" for _ in columns) + " |"]
    first: dict[str, dict[str, Any]] = {}
    for one in rows:
        exact = first.setdefault(one["model"], one)
        cells = [one["model"], JUDGES[one["decoder"]], *(tflop(one["parts"][part]) for part in PARTS)]
        cells += [tflop(one[name]) for name in ("rollout", "all")]
        cells += [f"{exact[name] / one[name]:.2f} times" for name in ("rollout", "all")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def run() -> None:
    """Runs the command."""
    models = flags.DEFINE_multi_enum("model", list(MODELS), MODELS, "Count this model; may be given several times.")
    out = flags.DEFINE_string("out", RESULTS, "Write the results to this folder.")

    def main(_: Sequence[str]) -> None:
        check_writable(out.value)
        rows = [row(model, decoder) for model in models.value for decoder in DECODERS]
        path = Path(out.value) / "judging.json"
        write_json(path, {"benchmark": "judging", "rows": rows})
        write_text(path.with_suffix(".md"), table(rows))
        print(table(rows) + f"written to {path}")

    run_command(main)


if __name__ == "__main__":
    run()
