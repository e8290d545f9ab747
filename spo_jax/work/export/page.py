"""The page of a LoRA on the hub: YAML that the hub reads, and Markdown for people."""

import dataclasses
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from spo_jax import toy
from spo_jax.core import markdown
from spo_jax.core.trees import flatten
from spo_jax.core.words import duration, listed, readable
from spo_jax.methods.common.judged import is_judge, judges
from spo_jax.methods.common.settings import AdapterSettings
from spo_jax.models.lora import names_of
from spo_jax.run.report.scores import day, score_rows, setting_rows
from spo_jax.run.report.steps import command
from spo_jax.run.verdict import shown_limit
from spo_jax.work.export.licences import Licence, licence_of
from spo_jax.work.export.metadata import description, model_name
from spo_jax.work.export.preview import preview_file
from spo_jax.work.export.source import RunRecord, Source

URL = "https://github.com/spo-jax/spo_jax"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_LEFT_OUT = ("log.", "mesh.", "eval.")  # groups of settings that do not change what is learned
_METHODS = {
    "spo": "SPO, step-by-step preference optimisation ([arXiv 2406.04314](https://arxiv.org/abs/2406.04314)): the "
    "model draws images, a judge compares candidates at every step, and the model comes to prefer the winners",
    "diffusion_dpo": "Diffusion-DPO ([arXiv 2311.12908](https://arxiv.org/abs/2311.12908)) or a relative of it: the "
    "model learns from preference pairs, two images of a prompt of which one was preferred",
    "finetune": "plain fine-tuning of the LoRA on images with captions",
}
_ABSENT = "PATH_OR_HUB_ID_OF_THE_BASE_MODEL"


class Naming(NamedTuple):
    """What the user says about a LoRA that is published.

    Attributes:
      name: its name, by which web UIs call it.
      author: its author; empty for none.
      licence: its licence; empty takes that of the base model if it is known.
      repo: ``user/name`` on the hub; empty if it is not known yet.
    """

    name: str
    author: str = ""
    licence: str = ""
    repo: str = ""


def page(source: Source, naming: Naming, gallery: Mapping[str, str], sheet: str) -> str:
    """Writes the page.

    Paths of this machine are shortened to their last part wherever they appear.

    Args:
      source: the LoRA.
      naming: how it is called, whose it is and where it goes.
      gallery: prompt by the name of the image that was drawn from it.
      sheet: name of the sheet of images before and after; empty for none.
    """
    licence = licence_of(source.base.model, naming.licence)
    values = _what_it_is(source, naming) | _how_to_use_it(source, naming)
    values |= {"licence": licence, "inherited": licence and not naming.licence and source.base.model != toy.NAME}
    values |= {"sheet": sheet, "shown": len(gallery), "preview": sheet and preview_file(Path(f"{naming.name}.x")).name}
    values |= _scores(source.record) if source.record else {"scores": []}
    text = _template(_shortening(source)).render(values)
    text = re.sub(r"\n{3,}", "\n\n", text).strip()
    return f"---\n{_front_matter(source, naming, licence, gallery)}---\n\n{text}\n"


def _template(shorten: Callable[[str], str]) -> jinja2.Template:
    """The template; its filters write texts of the run and of the user without this machine's paths."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "template"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # it is Markdown; `plain` escapes what is not ours
    )
    environment.filters["plain"] = lambda text: markdown.plain(shorten(str(text)))
    environment.filters["code"] = lambda text: markdown.code(shorten(str(text)))
    return environment.get_template("card.md")


def _front_matter(source: Source, naming: Naming, licence: Licence | None, gallery: Mapping[str, str]) -> str:
    """The YAML that the hub reads."""
    from huggingface_hub import ModelCardData  # its import takes a second

    widths = {name: lora_a.shape[0] for name, (lora_a, _) in source.lora.modules().items()}
    version = names_of(widths).base_version(widths, "epsilon")
    tags = ["text-to-image", "diffusers", "lora"]
    tags += [re.sub(r"-v\d.*", "", version.spec)] if version else []
    tags += [source.record.settings.method, "spo_jax"] if source.record else ["spo_jax"]
    base = source.base.model if _on_hub(source.base.model) else None
    more: dict[str, Any] = {"base_model_relation": "adapter"} if base else {}
    if gallery:
        more["widget"] = [{"text": prompt, "output": {"url": file}} for file, prompt in gallery.items()]
    data = ModelCardData(
        base_model=base,
        license=licence.id if licence else None,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=tags,
        **more,
    )
    return data.to_yaml().rstrip("\n") + "\n"


def _on_hub(model: str) -> bool:
    return bool(_HUB_ID.fullmatch(model)) and not Path(model).exists()


def _what_it_is(source: Source, naming: Naming) -> dict[str, Any]:
    record = source.record
    base = source.base.model
    names = f" at revision `{source.base.revision}`" if source.base.revision else ""
    if base == toy.NAME:
        told = f"the toy pipeline that [spo_jax]({URL}) ships: coloured shapes of 32 pixels"
    elif _on_hub(base):
        told = f"[{base}](https://huggingface.co/{base}){names}"
    else:
        told = f"{markdown.plain(model_name(base))}, a local model" if base else "not known"
    values = {
        "name": naming.name,
        "description": description(source),
        "strength": source.strength,
        "base": told,
        "rank": source.lora.rank,
        "modules": len(source.lora.modules()),
        "is_toy": base == toy.NAME,
        "method": "",
        "url": URL,
        "settings": [],
        "cites_spo": False,
    }
    if record is None:
        return values
    method = record.settings.method
    changed, _ = setting_rows(record.settings)
    return values | {
        "method": _METHODS.get(method, f"`{method}`"),
        "about": _about(record),
        "version": f" {record.summary['versions']['spo_jax']}" if "versions" in record.summary else "",
        "settings": [row for row in changed if not row["name"].startswith((*_LEFT_OUT, "method"))],
        "cites_spo": method == "spo",
    }


def _about(record: RunRecord) -> dict[str, str]:
    """Returns rows about the training, by their headings."""
    settings, summary = record.settings, record.summary
    rows = {}
    if judges(settings):
        rows["judge"] = listed([f"{name} ({source})" if source else name for name, source in judges(settings)])
    for name, field in (("prompts", "prompts"), ("images", "images"), ("pairs", "data_dir")):
        if isinstance(getattr(settings, field, None), str):
            rows[f"training {name}"] = getattr(settings, field)
    rows["length"] = f"{record.step:,} batches"
    if "wall_seconds" in summary and "started" in summary:
        device = summary.get("versions", {}).get("device", "")
        rows["length"] += f", {duration(summary['wall_seconds'])}" + (f" on {device}" if device else "")
    if "finished" in summary:
        rows["trained"] = day(summary["finished"])
    return rows


def _scores(record: RunRecord) -> dict[str, Any]:
    scores = record.summary.get("scores") or {}
    rows = score_rows(scores)
    for row, score in zip(rows, scores.values(), strict=True):
        row["is_judge"] = "reward" in score and is_judge(score["reward"], record.settings)
    how = record.settings.eval
    meanings = {readable(name): score["meaning"].rstrip(".") for name, score in scores.items()}
    finished = "the run has not finished" if not record.summary else "no score was measured"
    return {
        "scores": rows,
        "images": record.summary.get("images", 0),
        "verdict": record.summary.get("verdict", ""),
        "noise": shown_limit(scores),
        "drawn": f", drawn by DDIM in {how.steps} steps with guidance {how.guidance_scale:g}",
        "meanings": {name: meaning for name, meaning in meanings.items() if meaning},
        "judged": listed([row["name"] for row in rows if row["is_judge"]]),
        "knows_judged": bool(judges(record.settings)) and all("reward" in score for score in scores.values()),
        "why_no_scores": f"{finished}, or this is one of its earlier checkpoints" if not rows else "",
    }


def _how_to_use_it(source: Source, naming: Naming) -> dict[str, str]:
    repo = naming.repo or f"USER/{naming.name}"
    base = source.base.model
    lines = ["from diffusers import DDIMScheduler, DiffusionPipeline"]
    if base == toy.NAME:
        lines += ["from spo_jax import toy", "", 'pipe = DiffusionPipeline.from_pretrained(toy.ASSETS / "pipeline")']
    else:
        revision = f", revision={json.dumps(source.base.revision)}" if source.base.revision and _on_hub(base) else ""
        lines += ["", f"pipe = DiffusionPipeline.from_pretrained({json.dumps(_base_to_type(base))}{revision})"]
    prompt, how, flags = "a lake at dawn", "", []
    if base == toy.NAME:
        prompt = "a red star"
    if source.record:
        settings = source.record.settings.eval
        how = f", num_inference_steps={settings.steps}, guidance_scale={settings.guidance_scale:g}"
        flags = [f"--steps={settings.steps}", f"--guidance={settings.guidance_scale:g}"]
    lines += ["pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)"]
    lines += [f'pipe.load_lora_weights("{repo}")', f'image = pipe("{prompt}"{how}).images[0]']
    model = f"--model={base if base == toy.NAME else _base_to_type(base)}"
    sample = command("sample", model, f"--lora={repo}", f"--prompt={prompt}", *flags)
    return {"diffusers_code": "\n".join(lines), "sample_code": sample, "kohya": f"{naming.name}.safetensors"}


def _base_to_type(base: str) -> str:
    return base if _on_hub(base) else _ABSENT


def _shortening(source: Source) -> Callable[[str], str]:
    """Returns a function that shortens every path of this machine which the run's settings hold to its last part."""
    settings: AdapterSettings | None = source.record.settings if source.record else None
    texts = [source.base.model, *(flatten(dataclasses.asdict(settings)).values() if settings else ())]
    parts = {part.strip() for text in texts if isinstance(text, str) for part in re.split(r"[,:]", text)}
    local = [part for part in parts if os.sep in part and (os.path.isabs(part) or os.path.exists(part))]
    names = {path: Path(path).name for path in local if Path(path).name}
    if not names:
        return lambda text: text
    longest_first = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    return lambda text: re.sub(longest_first, lambda match: names[match[0]], text)
