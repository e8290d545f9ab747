"""What can be done with a trained LoRA, for the report."""

from pathlib import Path

from spo_jax import toy
from spo_jax.methods.common.settings import AdapterSettings
from spo_jax.models.base import Pipeline
from spo_jax.run.report.steps import NextStep, command


def adapter_steps(settings: AdapterSettings, pipeline: Pipeline, prompt: str, lora: Path) -> list[NextStep]:
    """Says how to draw with the LoRA, load it in diffusers, and export it.

    Args:
      settings: settings of the run.
      pipeline: the model.
      prompt: a prompt of the evaluation.
      lora: the LoRA file in the run's folder.
    """
    run = lora.parent
    names = {"model": settings.model, "revision": settings.revision, "base": settings.base, "vae": settings.vae}
    model = [f"--{name}={value}" for name, value in names.items() if value]
    how = [f"--steps={settings.eval.steps}", f"--guidance={settings.eval.guidance_scale}"]
    draw = command(
        "sample", *model, f"--lora={lora}", f"--prompt={prompt}", *how, "--count=8", f"--out={run / 'drawn'}"
    )
    kohya = command("export", f"--run={run}", "--format=kohya", f"--out={run / 'kohya.safetensors'}")
    card = command("export", f"--run={run}", "--card", f"--out={run / 'card'}")
    merged = command("export", f"--run={run}", "--format=merged", f"--out={run / 'merged'}")
    steps = [
        NextStep("Draw with it", "As the evaluation does; --lora-scale makes it weaker or stronger.", draw),
        NextStep("Export it for the web UIs", "A LoRA file with the names that they read.", kohya),
        NextStep("Publish it", "A folder for the hub, with a page; --push-to=USER/NAME uploads it.", card),
        NextStep("Merge it into the model", "A whole diffusers folder, which needs no LoRA.", merged),
    ]
    if pipeline.folder.is_dir():  # diffusers reads a checkpoint in one file by another class for each family
        steps.insert(1, NextStep("Load it in diffusers", "", _diffusers(settings, pipeline, prompt, lora)))
    return steps


def _diffusers(settings: AdapterSettings, pipeline: Pipeline, prompt: str, lora: Path) -> str:
    """The Python that loads model and LoRA and draws as the evaluation does."""
    # The toy's name means something to this package only.
    model = str(pipeline.folder) if settings.model == toy.NAME else settings.model
    drawn = f"num_inference_steps={settings.eval.steps}, guidance_scale={settings.eval.guidance_scale}"
    return f"""from diffusers import DDIMScheduler, DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained({model!r})
pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
pipe.load_lora_weights({str(lora.parent)!r}, weight_name={lora.name!r})
image = pipe({prompt!r}, {drawn}).images[0]"""
