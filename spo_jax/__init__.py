"""spo_jax: preference-tuned text-to-image diffusion in JAX.

From Python, as in a notebook:

    import spo_jax

    settings = spo_jax.read_settings(spo_jax.load_config("toy"))
    with spo_jax.watch("runs/toy"):  # shows curves and images while it trains
        spo_jax.train(settings, "runs/toy")
    spo_jax.sample(model="toy", lora="runs/toy", prompt="a red star", out="samples")
    spo_jax.export("runs/toy", "kohya", "exports/spo.safetensors")
    pipeline = spo_jax.open_pipeline("toy")
    drawn = spo_jax.open_studio("toy", judge="spm:toy").draw(["a red star"], steps=20)

The first ones are commands as well: ``python -m spo_jax.train``, and so on.
"""

from spo_jax.core.lazy import late

__version__ = "0.1.0"

# Public names and their modules, which are imported when a name is first used, so that ``import spo_jax`` is fast.
# Commands are modules that can be called.
_PUBLIC = {
    "train": "spo_jax.train",
    "sample": "spo_jax.sample",
    "export": "spo_jax.export",
    "export_card": "spo_jax.export",
    "compare_strengths": "spo_jax.export",
    "evaluate": "spo_jax.evaluate",
    "prepare": "spo_jax.prepare",
    "evaluate_spm": "spo_jax.evaluate_spm",
    "doctor": "spo_jax.doctor",
    "open_pipeline": "spo_jax.models",
    "open_studio": "spo_jax.work.studio",
    "to_uint8": "spo_jax.core.images",
    "load_reward": "spo_jax.rewards",
    "inspect_rollout": "spo_jax.methods.spo.inspect",
    "default_config": "spo_jax.methods",
    "load_config": "spo_jax.core.config_flag",
    "read_settings": "spo_jax.methods",
    "watch": "spo_jax.run.watch",
    "keep_copy": "spo_jax.run.kept_copy",
    "Resume": "spo_jax.run.resume",
}
__all__ = ["__version__", *_PUBLIC]
__getattr__, __dir__ = late(__name__, _PUBLIC)
