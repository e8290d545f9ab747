"""Trains a plain toy CLIP, for preference models to start from: ``python -m spo_jax.build_toy.clip``.

It learns which caption belongs to which image, as CLIP did, and knows nothing of preferences. Its captions are like
those of the web: they name the colour and the shape, and now and then a word says what the image looks like ("a soft
red star"). It plays the part of PickScore and of CLIP-H, from which published preference models start.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from absl import flags

from spo_jax.build_toy.fit import fit
from spo_jax.build_toy.preference import clip_config
from spo_jax.core.cli import run_command
from spo_jax.core.files import check_free
from spo_jax.core.typing import Array, Float, Int, Key, Params
from spo_jax.data.tokenizer import Tokenizer
from spo_jax.nn.clip import CLIPModel
from spo_jax.rewards.common.clip_score import normalise, unit_norm
from spo_jax.rewards.common.preference_model import write_clip
from spo_jax.toy import world
from spo_jax.toy.tokenizer import END, MAX_LENGTH, vocabulary, write_tokenizer

STEPS = 1000
BATCH = 64
LEARNING_RATE = 1e-3
PLAIN = 0.25  # share of captions without such a word
# What is said of an image whose factor is near the lower or the upper end of its range; of tilt, its size counts.
WORDS = {
    "edge_width": ("crisp", "soft"),
    "dullness": ("vivid", "dull"),
    "grain": ("clean", "grainy"),
    "mottle": ("even", "mottled"),
    "raggedness": ("neat", "ragged"),
    "scale": ("small", "large"),
    "tilt": ("straight", "tilted"),
    "shift": ("centred", "off"),
}
_EXTREME = 0.3  # share of a factor's range at either end of which a word is said


def captions(
    rng: np.random.Generator, prompts: Sequence[str], factors: dict[str, Float[np.ndarray, " b"]]
) -> list[str]:
    """Adds to prompts a word for one factor that stands out, chosen at random: "a red star" -> "a soft red star".

    Args:
      rng: the source of the choices.
      prompts: captions of the toy world.
      factors: hidden factors of the images.
    """
    heights = {}
    for name, values in _sizes(factors).items():
        low, high = _range(name)
        heights[name] = (values - low) / (high - low)
    said = []
    for row, prompt in enumerate(prompts):
        words = [
            WORDS[name][int(height[row] > 0.5)]
            for name, height in heights.items()
            if abs(height[row] - 0.5) > 0.5 - _EXTREME
        ]
        if words and rng.random() >= PLAIN:
            _, thing = prompt.split(" ", 1)
            said.append(f"a {rng.choice(words)} {thing}")
        else:
            said.append(prompt)
    return said


def _sizes(factors: dict[str, Float[np.ndarray, " b"]]) -> dict[str, Float[np.ndarray, " b"]]:
    """Returns the factors that words are about; the shift is the distance from the middle, and tilts have no sign."""
    shift = np.hypot(factors["shift_x"], factors["shift_y"])
    return {name: np.abs(values) for name, values in (factors | {"shift": shift}).items() if name in WORDS}


def _range(name: str) -> tuple[float, float]:
    if name == "shift":
        return 0.0, float(np.hypot(world.FACTORS["shift_x"][1], world.FACTORS["shift_y"][1]))
    low, high = world.FACTORS[name]
    return max(low, 0.0), high


def batches(tokenizer: Tokenizer, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields images, token ids of their captions, and which captions of the batch are the same."""
    rng = np.random.default_rng(seed)
    while True:
        prompts = [str(prompt) for prompt in rng.choice(world.TRAIN_PROMPTS, BATCH)]
        images, factors = world.draw(rng, prompts)
        said = captions(rng, prompts, factors)
        _, which = np.unique(said, return_inverse=True)
        yield images, tokenizer(said), (which[:, None] == which).astype(np.float32)


def contrastive_loss(
    clip: CLIPModel,
    params: Params,
    images: Float[Array, "b h w 3"],
    ids: Int[Array, "b l"],
    same: Float[Array, "b b"],
) -> Float[Array, ""]:
    """Computes CLIP's loss, in which equal captions share the probability of the right one."""
    image = unit_norm(clip.apply({"params": params}, normalise(images / 2 + 0.5), method="encode_image"))
    text = unit_norm(clip.apply({"params": params}, ids, method="encode_text"))
    logits = clip.apply({"params": params}, method="scale") * image @ text.T
    wanted = same / same.sum(1, keepdims=True)
    rows = (wanted * jax.nn.log_softmax(logits, axis=1)).sum(1)
    columns = (wanted * jax.nn.log_softmax(logits.T, axis=1)).sum(1)
    return -(rows.mean() + columns.mean()) / 2


def train_clip(folder: Path, steps: int = STEPS, seed: int = 0) -> None:
    """Trains a plain CLIP of the size of the toy's preference model, and writes it as transformers does.

    Args:
      folder: folder to write.
      steps: number of training steps.
      seed: seed of weights and images.
    """
    write_tokenizer(folder / "tokenizer")
    tokenizer = Tokenizer(folder / "tokenizer")
    ids, _ = vocabulary()
    config = clip_config(len(ids), MAX_LENGTH, ids[END], time_conditioned=False)
    clip = CLIPModel(config)
    source = batches(tokenizer, seed)
    images, tokens, _ = next(source)
    params = jax.jit(clip.init)(jax.random.key(seed), tokens[:1], images[:1])["params"]

    def loss(params: Params, batch: tuple[Array, Array, Array], key: Key):
        del key
        value = contrastive_loss(clip, params, *batch)
        return value, {"loss": value}

    key = jax.random.key(seed + 1)
    trained = fit(
        loss, params, source, steps=steps, learning_rate=LEARNING_RATE, key=key, weight_decay=0.05, title="clip"
    )
    write_clip(folder, config, jax.device_get(trained))


def run() -> None:
    """Runs the command."""
    out = flags.DEFINE_string("out", "build/toy_clip", "Write the model to this folder.")
    overwrite = flags.DEFINE_bool("overwrite", False, "Replace the files in --out.")

    def main(_) -> None:
        check_free(Path(out.value), overwrite.value)
        train_clip(Path(out.value))
        print(f"wrote {out.value}")

    run_command(main)


if __name__ == "__main__":
    run()
