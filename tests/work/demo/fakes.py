"""A studio that draws at once, whose images say what drew them."""

import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from spo_jax.core.errors import UserError
from spo_jax.work.demo.context import PageContext

BRIGHTNESS = {"": -0.5, "dark": -1.0, "light": 1.0}  # of all pixels but the first, by LoRA


class FakeStudio:
    """Draws images of one brightness, which is that of the LoRA; the first pixel is the image's noise."""

    def __init__(self):
        self.pipeline = SimpleNamespace(latent_shape_of=lambda height, width: (8, 8, 4), downscale=4)
        self.calls = []

    def lora(self, source):
        return Path(source).parent.name

    def draw(self, prompts, *, seed, steps, guidance, lora, predictions):
        """Draws images [b 32 32 3], and remembers that it did."""
        self.calls.append((tuple(prompts), seed, lora))
        if steps > 1000:
            raise UserError(f"--steps={steps}: expected a number from 1 to 1000")
        images = np.full((len(prompts), 32, 32, 3), BRIGHTNESS[lora or ""], np.float32)
        images[:, 0, 0, 0] = [zlib.crc32(f"{seed} {row}".encode()) / 2**31 - 1 for row in range(len(prompts))]
        return SimpleNamespace(images=images)


def fake_page(folder: Path) -> PageContext:
    """A page with two runs, whose LoRAs are called ``dark`` and ``light``."""
    for name in ("dark", "light"):
        (folder / "runs" / name).mkdir(parents=True, exist_ok=True)
        (folder / "runs" / name / "lora.safetensors").write_bytes(name.encode())
    prompts = ("a red star", "a blue heart", "a green circle")
    return PageContext("toy", FakeStudio(), folder / "runs", folder / "votes", prompts=prompts)
