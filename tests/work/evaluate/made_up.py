"""Made-up evaluations: scores from normal distributions, and images that are one colour each."""

import dataclasses
from pathlib import Path

import numpy as np
from PIL import Image

from spo_jax.work.evaluate.result import Contestant, Evaluation

HOSTILE = "</script><img src=x onerror=alert(1)> \"a\" & 'b' 🐼 {{ 7 * 7 }}"
STRENGTHS = (0.5, 1.0, 2.0)
PROTOCOL = {"name": "spo", "about": "500 prompts of validation_unique.", "solver": "ddim", "steps": 20, "guidance": 5.0}
PROTOCOL |= {"images_per_prompt": 2, "seed": 0, "seed_rule": "per_image", "statistic": "mean", "group_size": 0}


def made_up(folder: Path, prompts: int = 20, images: int = 2, side: int = 16, **changes) -> Evaluation:
    """Returns base, a LoRA at three strengths whose best one is 1, and images that somebody else has drawn.

    The LoRA was trained on ``pickscore``, which rises with its strength, as does saturation; ``hpsv21`` falls again
    from 1 to 2. The images of somebody else are like those of base, and have no ``hpsv21``.
    """
    rng = np.random.default_rng(0)
    contestants = [Contestant("base", "toy", "base", None, 5.0)]
    contestants += [Contestant(f"spo@{s:g}", f"LoRA spo.safetensors at {s:g}", "spo", s, 5.0) for s in STRENGTHS]
    contestants += [Contestant("theirs", "images in theirs/", "theirs")]
    shared = rng.normal(size=(prompts, 1))
    scores = {}
    for contestant in contestants:
        s = contestant.strength or 0.0
        noise = rng.normal(size=(4, prompts, images))
        scores[contestant.name] = {
            "pickscore": 21 + shared + s + 0.1 * noise[0],
            "hpsv21": 28 + shared + 2 * s - s**2 + 0.1 * noise[1],
            "saturation": 0.4 + 0.1 * s + 0.01 * noise[2],
        }
        for number in range(prompts):
            for image in range(images):
                path = folder / "images" / contestant.name / f"{number:05d}_{image}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                colour = (60 * contestants.index(contestant), 5 * number % 255, 100 * image)
                Image.new("RGB", (side, side), colour).save(path)
    del scores["theirs"]["hpsv21"]
    evaluation = Evaluation(
        protocol=PROTOCOL | {"images_per_prompt": images},
        overridden=(),
        prompts=[f"a panda number {number}" for number in range(prompts)],
        groups=[""] * prompts,
        contestants=contestants,
        scores=scores,
        meanings={"pickscore": "100 times the cosine", "saturation": "0 (grey) to 1"},
        signs=("saturation",),
        trained_on={contestant.name: "pickscore" for contestant in contestants[1:4]},
        images={each.name: _Files(folder / "images" / each.name) for each in contestants},
        about={"command": "python -m spo_jax.evaluate --model toy", "versions": {"jax": "0.10"}},
    )
    return dataclasses.replace(evaluation, **changes)


@dataclasses.dataclass(frozen=True)
class _Files:
    folder: Path

    def __call__(self, prompt: int, image: int) -> Path:
        return self.folder / f"{prompt:05d}_{image}.png"
