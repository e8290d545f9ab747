"""Draws docs/images/method.svg: one step of SPO, with images of a real rollout of the toy pipeline.

python docs/images/draw_method.py

Model and judge are those that the package ships, untrained by SPO. Ten held-out prompts are rolled out once, from seed
0. Of their pools the one is shown whose best and worst candidate the judge separates most, because in most pools they
differ too little to be seen at this size. Images of 32 by 32 pixels are reduced to a few colours and written as paths,
because some viewers load no images inside an SVG file.
"""

import html
import itertools
import textwrap
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from PIL import Image

from spo_jax import default_config, read_settings
from spo_jax.core.images import to_uint8
from spo_jax.core.rows import take_rows
from spo_jax.core.typing import Float, UInt8
from spo_jax.data.prompts import load_prompts
from spo_jax.methods.common.prompts import read_data
from spo_jax.methods.spo.judging import judge
from spo_jax.methods.spo.method import setup
from spo_jax.methods.spo.resampler import draw, rollout
from spo_jax.parallel.mesh import make_mesh

FILE = Path(__file__).with_name("method.svg")
COLOURS = 14
WIDTH, HEIGHT = 880, 396

STYLE = """
  .ground { fill: #f6f8fa; stroke: #d0d7de }
  text { font: 16px system-ui, -apple-system, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; fill: #1f2328 }
  .head { font-weight: 600 }
  .more { font-size: 14px; fill: #57606a }
  .line { fill: none; stroke: #57606a; stroke-width: 2 }
  .tip { fill: #57606a }
  .bar { fill: #8c959f }
  .won { fill: #1a7f37; stroke: #1a7f37 }
  .lost { fill: #cf222e; stroke: #cf222e }
  .frame { fill: none !important; stroke-width: 4 }
  @media (prefers-color-scheme: dark) {
    .ground { fill: #161b22; stroke: #30363d }
    text { fill: #e6edf3 }
    .more { fill: #9198a1 }
    .line { stroke: #9198a1 }
    .tip { fill: #9198a1 }
    .bar { fill: #6e7681 }
    .won { fill: #3fb950; stroke: #3fb950 }
    .lost { fill: #f85149; stroke: #f85149 }
  }
"""


class Pool(NamedTuple):
    """What is drawn of one pool.

    Attributes:
      prompt: its prompt.
      parent: the parent's noisy latents, decoded.
      candidates: the clean images that the model predicts from the candidates, as the judge sees them.
      scores: the judge's scores of these.
      picked: index of the candidate that is the next parent.
    """

    prompt: str
    parent: UInt8[np.ndarray, "H W 3"]
    candidates: UInt8[np.ndarray, "k H W 3"]
    scores: Float[np.ndarray, " k"]
    picked: int


def clearest_pool() -> Pool:
    """Rolls the base model out and returns the pool whose best and worst candidate differ most."""
    config = default_config("spo")
    config.spo.divert_start_step = 11  # as in configs/toy.py
    config.prompts = "toy:held_out"
    settings = read_settings(config)
    mesh = make_mesh(settings.mesh, jax.devices()[:1])
    prompts = load_prompts(settings.prompts)
    with jax.set_mesh(mesh):
        spo = setup(settings, mesh, read_data(settings)).spo
        frozen = spo.frozen()
        inputs = spo.feed(spo.features(prompts))

        @jax.jit
        def play(key):
            draws = draw(key, settings.spo, len(prompts), spo.pipeline.latent_shape)
            denoise = spo.policy.sampler(frozen.network, None, inputs.condition, frozen.unconditional)
            played = rollout(denoise, settings.spo, spo.process, draws)

            def score(latents, t, row):
                return spo.judge.score(frozen.judge, latents, take_rows(inputs.judge, row), t)

            return played, judge(score, played, settings.spo.decode_chunk), draws.choice

        played, scores, choice = jax.device_get(play(jax.random.key(settings.seed)))
        # The last pool has no next parent.
        gaps = np.ptp(scores[:-1], axis=1)
        pool, row = np.unravel_index(np.argmax(gaps), gaps.shape)
        latents = np.concatenate([played.parents[pool, row][None], played.judged[pool, :, row]])
        images = to_uint8(np.asarray(spo.pipeline.decode(spo.pipeline.params["vae"], latents), np.float32))
    return Pool(prompts[row], images[0], images[1:], scores[pool, :, row], int(choice[pool, row]))


def pixels(image: UInt8[np.ndarray, "H W 3"], x: float, y: float, side: float) -> str:
    """Returns an image as one path for each of its colours, with a square of its commonest colour behind them."""
    few = Image.fromarray(image).quantize(COLOURS, dither=Image.Dither.NONE)
    palette = np.asarray(few.getpalette()[: 3 * COLOURS]).reshape(-1, 3)
    indices = np.asarray(few)
    width = indices.shape[1]
    common = np.bincount(indices.ravel()).argmax()
    paths: dict[int, list[str]] = {}
    for line, row in enumerate(indices):
        start = 0
        for index, run in itertools.groupby(row):
            length = len(list(run))
            if index != common:
                paths.setdefault(int(index), []).append(f"M{start} {line}h{length}v1h-{length}z")
            start += length
    square = f'<path fill="{_hex(palette[common])}" d="M0 0h{width}v{width}h-{width}z"/>'
    drawn = "".join(f'<path fill="{_hex(palette[index])}" d="{"".join(path)}"/>' for index, path in paths.items())
    place = f"translate({x:g} {y:g}) scale({side / width:g})"
    return f'<g transform="{place}" shape-rendering="crispEdges">{square}{drawn}</g>\n'


def _hex(colour: UInt8[np.ndarray, " 3"]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    """Returns a line of text."""
    return f'<text x="{x:g}" y="{y:g}" class="{kind}" text-anchor="{anchor}">{html.escape(words)}</text>\n'


def arrow(path: str, tip: tuple[float, float], kind: str = "") -> str:
    """Returns a line along a path, with a tip that points to the right."""
    x, y = tip
    return f'<path class="line {kind}" d="{path}"/><path class="tip" d="M{x} {y}l-10 -5v10z"/>\n'


def frame(x: float, y: float, side: float, kind: str) -> str:
    """Returns a coloured frame around an image."""
    x, y, side = x - 2, y - 2, side + 4
    return (
        f'<rect x="{x - 2:g}" y="{y - 2:g}" width="{side + 4:g}" height="{side + 4:g}" rx="3" class="frame {kind}"/>\n'
    )


def drawing(pool: Pool) -> str:
    """Returns the whole drawing."""
    small, large, gap, top = 66, 104, 14, 64
    middle = top + (4 * small + 3 * gap) / 2
    win, lose = int(np.argmax(pool.scores)), int(np.argmin(pool.scores))
    kinds = {win: "won", lose: "lost"}

    # The parent.
    left = 24
    parts = [
        text(left, 38, "One parent", "head"),
        pixels(pool.parent, left, middle - large / 2, large),
        text(left, middle + large / 2 + 24, f"“{pool.prompt}”", "more"),
        text(left, middle + large / 2 + 44, "partly denoised", "more"),
    ]

    # The candidates, and the judge's scores of them.
    column, bars = 214, 376
    parts += [text(column, 38, "Four candidates", "head"), text(bars, 38, "The judge’s score", "head")]
    start = left + large + 8
    for index, (image, score) in enumerate(zip(pool.candidates, pool.scores, strict=True)):
        y = top + index * (small + gap)
        centre = y + small / 2
        bend = f"C{start + 50} {middle:g} {column - 70} {centre:g} {column - 16} {centre:g}"
        kind = kinds.get(index, "")
        length = 20 + 90 * (score - pool.scores.min()) / np.ptp(pool.scores)
        parts += [
            arrow(f"M{start} {middle:g}{bend}", (column - 8, centre)),
            pixels(image, column, y, small),
            frame(column, y, small, kind) if kind else "",
            f'<rect x="{bars}" y="{centre - 9:g}" width="{length:.1f}" height="18" rx="2" class="{kind or "bar"}"/>\n',
            text(bars + length + 8, centre + 6, f"{score:.2f}"),
        ]
        if index == pool.picked:
            parts.append(text(column + small + 10, centre + 27, "next parent, by chance", "more"))

    # The pair.
    pair = 596
    for index, y, words, more in (
        (win, 76, "Winner", "the model learns to take this step more often"),
        (lose, 76 + large + 44, "Loser", "and this step less often"),
    ):
        parts += [
            pixels(pool.candidates[index], pair, y, large),
            frame(pair, y, large, kinds[index]),
            text(pair + large + 16, y + 30, words, "head"),
            *(text(pair + large + 16, y + 54 + 20 * line, part) for line, part in enumerate(_lines(more, 18))),
        ]
    parts.append(text(pair, 38, "The pair to learn from", "head"))
    return "".join(parts)


def _lines(words: str, width: int) -> list[str]:
    return textwrap.wrap(words, width)


def main() -> None:
    """Writes the drawing."""
    pool = clearest_pool()
    said = (
        f"One denoising step of SPO on the toy pipeline, prompt “{pool.prompt}”. From one parent four candidates are "
        f"drawn; the judge scores them {', '.join(f'{score:.2f}' for score in pool.scores)}; the model learns to make "
        "the step to the best one more likely and that to the worst one less likely. A candidate that is picked at "
        "random is the next parent."
    )
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    ground = f'<rect x="1" y="1" width="{WIDTH - 2}" height="{HEIGHT - 2}" rx="8" class="ground"/>'
    FILE.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">\n<title>How SPO learns</title>\n'
        f"<desc>{html.escape(said)}</desc>\n<style>{STYLE}</style>\n{ground}\n{drawing(pool)}</svg>\n",
        encoding="utf-8",
    )
    print(f"{FILE}: {FILE.stat().st_size / 1000:.1f} kB. {said}")


if __name__ == "__main__":
    main()
