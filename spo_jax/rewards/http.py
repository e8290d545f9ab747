"""A scorer elsewhere, for judges that are too large to live here: HPSv3 and other vision-language judges.

``http:URL``, such as ``http:http://localhost:8765/score``, sends images and prompts to a server and reads scores. It is
computed on the host, so it evaluates images and cannot judge rollouts. ``examples/reward_server.py`` is such a server,
in which one function is to be replaced.

**Protocol.** All bodies are JSON in UTF-8, because any server can read that: Python's standard library, for one, has
no reader of multipart forms any more. Unknown fields of an answer are ignored, so a server may add its own.

``GET URL`` describes the scorer, and is asked once, before anything is drawn:

    {"scores": {"hpsv3": "human preference as HPSv3 predicts it (its mean)"},
     "lower_is_better": [],
     "batch": 8,
     "version": "HPSv3.safetensors of September 2025"}

- ``scores``: the name of every score, with a sentence that says what it is. Names have letters, digits and ``_-.@/``.
- ``lower_is_better``: names of those for which a lower value is better; may be left out.
- ``signs``: names of those that have no better direction, such as brightness; may be left out.
- ``batch``: the most images that the server takes in a request; may be left out.
- ``version``: a text that changes with the scores. An evaluation keeps scores with it, and computes them again where it
  is another one; may be left out.

``POST URL`` scores images, each for its prompt:

    {"prompts": ["a red star", "a blue star"],
     "images": ["iVBORw0KGgo...", "iVBORw0KGgo..."]}

- ``images``: PNG files of 8-bit RGB in base64, as many as ``prompts``, all of one size.

It is answered by one finite number per image for every score of the description, in the order of the images:

    {"scores": {"hpsv3": [9.1, 8.4]}}

A server with one score may answer with the list alone.

**Failures.** Any status except 200 is an error, and the message shows the beginning of its body. A status of 500 to 599
or 429, and a connection that fails, is tried again after 1, 2, 4, ... and at most 30 seconds. Everything else ends the
command, also an answer that does not come in time or that is not what is expected. Redirects are not followed.

**Environment variables.** They are no part of the reward's name, because the name is kept with the results, where a key
has no business.

- ``SPO_JAX_HTTP_KEY``: sent as ``Authorization: Bearer KEY``.
- ``SPO_JAX_HTTP_TIMEOUT``: seconds to wait for an answer (120).
- ``SPO_JAX_HTTP_RETRIES``: how often a failed request is tried again (4).
- ``SPO_JAX_HTTP_BATCH``: images in a request (8, or ``batch`` of the server if that is less).
"""

import base64
import io
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from spo_jax.core.images import to_uint8
from spo_jax.core.typing import Float, UInt8
from spo_jax.rewards.common.http_client import Client, Options, check_url
from spo_jax.rewards.common.protocol import Context, Scores

ON_HOST = True  # so it cannot judge inside a rollout

_LARGEST = float(np.finfo(np.float32).max)  # of a score
_NAME = re.compile(r"[\w.@/-]{1,100}")
_DESCRIPTION = 'a description such as {"scores": {"NAME": "what it is"}, "lower_is_better": []}'


def load(source: str, context: Context) -> "HTTPReward":
    """Asks the server what it scores.

    Args:
      source: address of the server, with ``http://`` or ``https://``.
      context: names the flag or config field for messages.

    Raises:
      UserError: the address or an environment variable is wrong, or no scorer answers there.
    """
    check(source, context)
    return HTTPReward(Client(source, Options.from_environment()))


def check(source: str, context: Context) -> None:
    """Refuses an address and environment variables that cannot be right, without the network."""
    check_url(source, f"{context.where} = 'http{':' if source else ''}{source}'")
    Options.from_environment()


class HTTPReward:
    """Scores that a server computes.

    Args:
      client: what sends requests to the server.

    Attributes:
      version: what the server says about its version; empty if it says nothing.

    Raises:
      UserError: the server does not answer, or not with a description.
    """

    def __init__(self, client: Client):
        self._client = client
        answer = client.get(_DESCRIPTION)
        names = answer.get("scores") if isinstance(answer, dict) else None
        if not isinstance(names, dict) or not names or not all(_is_score(*item) for item in names.items()):
            raise client.misunderstood(answer, _DESCRIPTION)
        lower, signs = (_listed(client, answer, field, names) for field in ("lower_is_better", "signs"))
        batch = answer.get("batch", client.options.batch)
        if type(batch) is not int or batch < 1:
            raise client.misunderstood(batch, "batch to be a whole number from 1 on")
        self.version = answer.get("version", "")
        if not isinstance(self.version, str):
            raise client.misunderstood(self.version, "version to be a text")
        lines = {name: " ".join(meaning.split()) for name, meaning in names.items()}
        self.meanings = {name: f"{line} (computed at {client.url})" for name, line in lines.items()}
        self.lower_is_better = lower
        self.signs = signs
        self._batch = min(batch, client.options.batch)

    def check(self, prompts: Sequence[str], size: tuple[int, int]) -> None:
        """Accepts all prompts and sizes: only the server knows better."""

    def measure(self, images: Float[np.ndarray, "b h w 3"], prompts: Sequence[str]) -> Scores:
        """Scores finished images near [-1, 1], some at a time; returns the scores by name.

        An image that is not finite has the score NaN, and is sent as what is left of it.

        Raises:
          UserError: the server fails, or answers with something else than a finite number per image and score.
        """
        parts: dict[str, list[float]] = {name: [] for name in self.meanings}
        for start in range(0, len(images), self._batch):
            rows = slice(start, start + self._batch)
            for name, values in self._scores(to_uint8(np.nan_to_num(images[rows])), list(prompts[rows])).items():
                parts[name] += values
        is_finite = np.isfinite(images).all((1, 2, 3))
        return {name: np.where(is_finite, np.array(values, np.float32), np.nan) for name, values in parts.items()}

    def _scores(self, images: UInt8[np.ndarray, "b h w 3"], prompts: list[str]) -> dict[str, list[float]]:
        names = list(self.meanings)
        expected = f"{len(images)} finite numbers for each of {names}, as " + '{"scores": {"NAME": [0.5, …]}}'
        answer = self._client.post({"prompts": prompts, "images": [_png(image) for image in images]}, expected)
        if isinstance(answer, list) and len(names) == 1:
            answer = {"scores": {names[0]: answer}}
        scores = answer.get("scores") if isinstance(answer, dict) else None
        if not isinstance(scores, dict) or not all(_are_numbers(scores.get(name), len(images)) for name in names):
            raise self._client.misunderstood(answer, expected)
        return {name: [float(value) for value in scores[name]] for name in names}


def _listed(client: Client, answer: Mapping[str, Any], field: str, names: Collection[str]) -> tuple[str, ...]:
    """Returns the scores that a description names in a field."""
    listed = answer.get(field, [])
    if not isinstance(listed, list) or any(not isinstance(name, str) or name not in names for name in listed):
        raise client.misunderstood(listed, f"{field} to be a list with names of {sorted(names)}")
    return tuple(listed)


def _is_score(name: str, meaning: Any) -> bool:
    return _NAME.fullmatch(name) is not None and isinstance(meaning, str)


def _are_numbers(values: Any, count: int) -> bool:
    """Whether a server's values are as many finite numbers, as float32 has them."""
    numbers = isinstance(values, list) and all(type(value) in (int, float) for value in values)
    return numbers and len(values) == count and all(abs(value) <= _LARGEST for value in values)


def _png(image: UInt8[np.ndarray, "h w 3"]) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=1)  # a fifth of the default's time, a tenth more bytes
    return base64.b64encode(file.getvalue()).decode()
