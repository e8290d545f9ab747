"""Makes the shipped assets: ``python -m spo_jax.build_toy.build --work-dir=build/assets``.

The build first trains the autoencoder and then the diffusion model, and writes their pipeline to ``--out``. Then it
trains the preference model with the commands that users have (`spo_jax.prepare` and `spo_jax.train` with ``--config``),
and likewise the latent reward model, from pairs that the pipeline draws (`spo_jax.build_toy.latent_judge`). Every stage
is kept in ``--work-dir``, so that an interrupted build continues where it stopped. All seeds are fixed.
"""

import dataclasses
import functools
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from spo_jax.build_toy import autoencoder, base, preference
from spo_jax.build_toy.latent_judge import train_latent_judge
from spo_jax.core.cli import run_command
from spo_jax.core.config_flag import define_config
from spo_jax.core.files import read_json, write_atomic, write_json
from spo_jax.core.trees import flatten, unflatten
from spo_jax.core.typing import Params
from spo_jax.data.tokenizer import Tokenizer
from spo_jax.methods import read_settings
from spo_jax.methods.spm.settings import SPMTrainSettings
from spo_jax.nn.clip_config import CLIPTextConfig
from spo_jax.nn.vae import VAEConfig
from spo_jax.toy import ASSETS, world
from spo_jax.toy.tokenizer import END, MAX_LENGTH, vocabulary, write_tokenizer
from spo_jax.weights.components import text_state, write_component
from spo_jax.weights.rules import to_state
from spo_jax.weights.store import read_file, write_state

EARLIER = "earlier.safetensors"  # an earlier checkpoint of the diffusion model, in --work-dir


def run() -> None:
    """Runs the command."""
    work = flags.DEFINE_string("work-dir", "build/assets", "Keep the finished stages in this folder.")
    out = flags.DEFINE_string("out", str(ASSETS), "Write the assets to this folder, which the package reads.")
    config = define_config("configs/spm_toy.py")

    def main(_) -> None:
        build(Path(work.value), Path(out.value), read_settings(config.value))

    run_command(main)


def build(work: Path, out: Path, settings: SPMTrainSettings) -> None:
    """Runs the stages that ``work`` does not have yet, and writes the assets.

    Args:
      work: folder of the finished stages.
      out: folder of the assets.
      settings: settings of the preference model's training.
    """
    # The pipeline.
    vae_config, vae = _autoencoder(work)
    ids, _ = vocabulary()
    text = base.text_config(len(ids), MAX_LENGTH, ids[END])
    trained = _stage(work / "base.safetensors", lambda: _train_base(work, vae_config, vae, text))
    trained = _stage(work / "base_further.safetensors", lambda: _train_base(work, vae_config, vae, text, trained))
    _write_pipeline(out / "pipeline", vae_config, vae, text, trained)
    _write_pipeline(work / "earlier", vae_config, vae, text, _read(work / EARLIER))
    # The preference model.
    clip = preference.clip_config(text.vocab_size, text.max_position_embeddings, text.eos_token_id)
    settings = dataclasses.replace(settings, model=str(out / "pipeline"))
    spm = preference.train_preference_model(settings, clip, work)
    shutil.copytree(spm, out / "spm", dirs_exist_ok=True, copy_function=_copy)
    # The latent reward model.
    lrm = train_latent_judge(out / "pipeline", work / "earlier", work)
    shutil.copytree(lrm, out / "lrm_people", dirs_exist_ok=True, copy_function=_copy)


def _copy(source: str, target: str) -> None:
    """Copies a file, which appears as a whole or not at all."""
    write_atomic(Path(target), functools.partial(shutil.copyfile, source))


def _stage(path: Path, train: Callable[[], Params]) -> Params:
    """Reads the weights of a finished stage, or trains and writes them first."""
    if not path.exists():
        _write(path, train())
    return _read(path)


def _write(path: Path, params: Params) -> None:
    write_state(path, {key: np.asarray(value, np.float32) for key, value in flatten(params).items()})


def _read(path: Path) -> Params:
    return jax.tree.map(jnp.asarray, unflatten(read_file(path)))


def _autoencoder(work: Path) -> tuple[VAEConfig, Params]:
    """Returns the config and the weights of the autoencoder."""
    scale_file = work / "vae.json"

    def train() -> Params:
        config, params = autoencoder.train_autoencoder()
        write_json(scale_file, {"scaling_factor": config.scaling_factor})
        return params

    params = _stage(work / "vae.safetensors", train)
    return dataclasses.replace(autoencoder.CONFIG, **read_json(scale_file)), params


def _train_base(
    work: Path, vae_config: VAEConfig, vae: Params, text: CLIPTextConfig, start: Params | None = None
) -> Params:
    """Trains the UNet and the text encoder; the first run keeps them as they are after `base.EARLIER` steps as well."""
    write_tokenizer(work / "tokenizer")
    prompts = [*world.PROMPTS, ""]
    ids = dict(zip(prompts, Tokenizer(work / "tokenizer")(prompts), strict=True))
    data = base.encode_scenes(vae, vae_config, ids, base.IMAGES, seed=11 if start else 10)
    if start:
        further = {"steps": base.FURTHER_STEPS, "learning_rate": base.FURTHER_LEARNING_RATE}
        return base.train_base(data, ids[""], text, seed=1, start=start, **further)

    def look(steps: int, params: Params) -> None:
        if steps == base.EARLIER:
            _write(work / EARLIER, params)

    return base.train_base(data, ids[""], text, look=look)


def _write_pipeline(folder: Path, vae_config: VAEConfig, vae: Params, text: CLIPTextConfig, trained: Params) -> None:
    """Writes the pipeline in diffusers' layout."""
    half = np.float16  # It halves the files, and no image changes visibly.
    # Configs.
    levels = len(vae_config.block_out_channels)
    vae_json = dataclasses.asdict(vae_config) | {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }
    unet_json = dataclasses.asdict(base.UNET) | {"_class_name": "UNet2DConditionModel", "act_fn": "silu"}
    text_json = dataclasses.asdict(text) | {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        # Otherwise transformers would keep the file's float16 beside a float32 UNet.
        "torch_dtype": "float32",
        "bos_token_id": text.eos_token_id - 1,
        "pad_token_id": text.eos_token_id,
    }
    # Components.
    write_component(folder / "vae", vae_json, to_state(vae, half))
    write_component(folder / "unet", unet_json, to_state(trained["unet"], half))
    write_component(folder / "text_encoder", text_json, text_state(trained["text_encoder"], half), kind="transformers")
    write_tokenizer(folder / "tokenizer")
    write_json(folder / "scheduler" / "scheduler_config.json", base.SCHEDULER)
    write_json(folder / "model_index.json", MODEL_INDEX)


MODEL_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.30.0",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


if __name__ == "__main__":
    run()
