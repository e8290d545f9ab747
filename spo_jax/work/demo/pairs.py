"""Pairs of images to vote on, drawn ahead of time, so that voters do not wait."""

import collections
import dataclasses
import secrets
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from spo_jax.core.config import SEED_LIMIT
from spo_jax.core.errors import UserError
from spo_jax.core.images import to_uint8
from spo_jax.core.typing import UInt8
from spo_jax.work.demo.context import PageContext

_LOW = 6  # pairs in stock below which more are drawn
_SMALL = 64  # pixels of a side up to which images are small
_MOST_SHOWN = 64  # pairs that are remembered until somebody votes on them
_MOST_STOCKS = 4


@dataclasses.dataclass(frozen=True)
class Matchup:
    """What two images of a pair differ in.

    Attributes:
      loras: names of the two LoRAs; if they are equal, the images of a pair differ in their noise instead.
      versions: what tells versions of the LoRAs' files apart.
      prompts: prompts to draw.
      steps: number of denoising steps.
      guidance: guidance scale.
    """

    loras: tuple[str, str]
    versions: tuple[str, str]
    prompts: tuple[str, ...]
    steps: int
    guidance: float

    @property
    def is_blind(self) -> bool:
        """Whether two LoRAs are compared."""
        return self.loras[0] != self.loras[1]


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two images to vote on.

    Attributes:
      token: name of the pair, which says nothing about it.
      matchup: what the images differ in.
      prompt: the prompt of both.
      images: the left and the right image.
      order: for each of the two, which of the matchup's LoRAs drew it.
      seed: seed of the batch that they were drawn in.
      rows: for each of the two, the number of its noise: ``sample --seed`` gives it to the image of this number.
    """

    token: str
    matchup: Matchup
    prompt: str
    images: tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w 3"]]
    order: tuple[int, int]
    seed: int
    rows: tuple[int, int]


class PairStock:
    """Draws pairs in the background, and remembers those that are shown.

    Args:
      page: what draws.
    """

    def __init__(self, page: PageContext):
        self._page = page
        self._lock = threading.Lock()
        self._drawer = ThreadPoolExecutor(1, "pairs")
        self._stocks: collections.OrderedDict[Matchup, _Stock] = collections.OrderedDict()
        self._shown: collections.OrderedDict[str, Pair] = collections.OrderedDict()

    def take(self, matchup: Matchup) -> Pair:
        """Returns a pair that nobody has seen, and remembers it; waits only if none is drawn yet.

        Raises:
          UserError: images cannot be drawn.
        """
        with self._lock:
            stock = self._stock(matchup)
        while True:  # with the same stock, also if others have come to take its place meanwhile
            with self._lock:
                if len(stock.pairs) < _LOW and (stock.drawing is None or stock.drawing.done()):
                    stock.drawing = self._drawer.submit(self._draw, matchup, stock)
                drawing = stock.drawing
                if stock.pairs:
                    pair = stock.pairs.popleft()
                    self._remember(pair)
                    return pair
            drawing.result()

    def claim(self, token: str) -> Pair | None:
        """Returns a pair that is shown and forgets it, so that nobody votes on it twice; None if it is not known."""
        with self._lock:
            return self._shown.pop(token, None)

    def give_back(self, pair: Pair) -> None:
        """Remembers a pair again whose vote could not be kept."""
        with self._lock:
            self._remember(pair)

    def _remember(self, pair: Pair) -> None:
        self._shown[pair.token] = pair
        while len(self._shown) > _MOST_SHOWN:
            self._shown.popitem(last=False)

    def _stock(self, matchup: Matchup) -> "_Stock":
        stock = self._stocks.setdefault(matchup, _Stock())
        self._stocks.move_to_end(matchup)
        while len(self._stocks) > _MOST_STOCKS:
            self._stocks.popitem(last=False)
        return stock

    def _draw(self, matchup: Matchup, stock: "_Stock") -> None:
        with self._page.device:
            pairs = list(_draw_pairs(self._page, matchup))
        with self._lock:
            stock.pairs.extend(pairs)


@dataclasses.dataclass
class _Stock:
    pairs: collections.deque = dataclasses.field(default_factory=collections.deque)
    drawing: Future | None = None


def _draw_pairs(page: PageContext, matchup: Matchup) -> Iterator[Pair]:
    """Draws a batch of pairs, always of as many images, so that one program draws all of them."""
    if not matchup.prompts:
        raise UserError("there are no prompts: write some, one per line")
    studio = page.studio
    batch = 16 if studio.pipeline.latent_shape_of(None, None)[0] * studio.pipeline.downscale <= _SMALL else 4
    rng = np.random.default_rng()
    seed = int(rng.integers(SEED_LIMIT))
    how = {"seed": seed, "steps": matchup.steps, "guidance": matchup.guidance, "predictions": False}
    adapters = [page.lora(name) for name in matchup.loras]
    if tuple(map(page.lora_version, matchup.loras)) != matchup.versions:  # votes would count for the former file
        raise UserError("the file of a LoRA has just changed: start voting again")
    count = batch if matchup.is_blind else batch // 2
    prompts = list(rng.choice(np.asarray(matchup.prompts, object), count, replace=count > len(matchup.prompts)))

    if matchup.is_blind:  # the same prompts and noise, drawn with each of the two
        drawn = [to_uint8(studio.draw(prompts, lora=adapter, **how).images) for adapter in adapters]
        rows = [(row, row) for row in range(count)]
    else:
        images = to_uint8(studio.draw(prompts * 2, lora=adapters[0], **how).images)
        drawn = [images[:count], images[count:]]
        rows = [(row, count + row) for row in range(count)]

    for row, prompt in enumerate(prompts):
        first = secrets.randbelow(2)
        order = (first, 1 - first)
        yield Pair(
            token=uuid.uuid4().hex,
            matchup=matchup,
            prompt=prompt,
            images=(drawn[order[0]][row], drawn[order[1]][row]),
            order=order,
            seed=seed,
            rows=(rows[row][order[0]], rows[row][order[1]]),
        )
