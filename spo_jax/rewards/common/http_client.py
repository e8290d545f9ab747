"""Sends JSON to a server and reads JSON, with a limit of time, tries again, and one-line errors."""

import dataclasses
import os
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from absl import logging

from spo_jax.core.config import shown
from spo_jax.core.errors import UserError
from spo_jax.core.json_text import BadJSON, parse_json
from spo_jax.core.words import size

VARIABLE = "SPO_JAX_HTTP_"
_CONNECT_SECONDS = 10
_LONGEST_PAUSE = 30  # seconds
_LARGEST = 2**22  # bytes of an answer; 1,000 scores of full precision take 20 KB
_SHOWN = 200  # characters of an answer in a message


@dataclasses.dataclass(frozen=True)
class Options:
    """What environment variables say about all servers.

    Attributes:
      timeout: seconds to wait for an answer.
      retries: how often a failed request is tried again.
      batch: images in a request.
      key: secret that is sent with every request; empty for none.
    """

    timeout: float = 120.0
    retries: int = 4
    batch: int = 8
    key: str = dataclasses.field(default="", repr=False)

    @classmethod
    def from_environment(cls) -> "Options":
        """Reads ``SPO_JAX_HTTP_TIMEOUT``, ``_RETRIES``, ``_BATCH`` and ``_KEY``.

        Raises:
          UserError: a value is not a number, or out of range.
        """
        key = os.environ.get(f"{VARIABLE}KEY", "").strip()
        if not key.isascii() or not key.isprintable():
            raise UserError(f"environment variable {VARIABLE}KEY: expected printable ASCII characters")
        return cls(
            timeout=_number("TIMEOUT", cls.timeout, float, 0.001, 86400),
            retries=_number("RETRIES", cls.retries, int, 0, 100),
            batch=_number("BATCH", cls.batch, int, 1, 4096),
            key=key,
        )


def _number(name: str, default: Any, kind: Callable[[str], Any], low: int | float, high: int) -> Any:
    text = os.environ.get(f"{VARIABLE}{name}", "")
    try:
        value = kind(text) if text else default
    except ValueError:
        value = None
    if value is None or not low <= value <= high:
        what = "a whole number" if kind is int else "a number of seconds"
        raise UserError(f"environment variable {VARIABLE}{name} = {text[:50]!r}: expected {what} from {low} to {high}")
    return value


def check_url(url: str, where: str) -> None:
    """Refuses an address that cannot be one.

    Args:
      url: address of a server.
      where: flag or config field with its value, for the message.

    Raises:
      UserError: it has another form, or holds a password.
    """
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, or half of an IPv6 address
        fits = False
    if not fits or any(character.isspace() for character in url):
        raise UserError(f"{where}: expected the address of a scorer, such as http:http://localhost:8765/score")
    if parts.username is not None:
        # The message must not repeat it.
        raise UserError(f"an address with a password would be kept with the results: put it into {VARIABLE}KEY")


class Client:
    """One server.

    Args:
      url: its address.
      options: as `Options` says.
    """

    def __init__(self, url: str, options: Options):
        import requests  # here because it takes a tenth of a second

        self.url = url
        self.options = options
        self._session = requests.Session()
        if options.key:
            # A header of the session would give way to a password in ~/.netrc.
            self._session.auth = _Bearer(options.key)

    def get(self, expected: str) -> Any:
        """Asks with GET and returns the JSON of the answer.

        Args:
          expected: what should come, for messages.

        Raises:
          UserError: the server fails, or answers with something else than JSON.
        """
        return self._ask("GET", None, expected)

    def post(self, body: Any, expected: str) -> Any:
        """Sends JSON with POST and returns the JSON of the answer; see `get`."""
        return self._ask("POST", body, expected)

    def misunderstood(self, answer: Any, expected: str) -> UserError:
        """Returns the error about an answer that is JSON but not what was expected."""
        return UserError(f"{self.url} answered {_short(shown(answer))}: expected {expected}")

    def _ask(self, method: str, body: Any, expected: str) -> Any:
        problem = ""
        for number in range(self.options.retries + 1):
            if number:
                pause = min(2.0 ** (number - 1), _LONGEST_PAUSE)
                logging.warning("%s; trying again in %g s", problem, pause)
                time.sleep(pause)
            problem, status, content = self._try(method, body)
            if not problem:
                return self._parsed(content, expected)
            if status is not None and status != 429 and status < 500:
                raise UserError(f"{problem}; {_advice(status, expected)}")
        tries = f", {self.options.retries + 1} times" if self.options.retries else ""
        raise UserError(f"{problem}{tries}; check that the scorer runs there, and what it logs")

    def _try(self, method: str, body: Any) -> tuple[str, int | None, bytes]:
        """Sends one request; returns a problem, its status if there is one, and the content."""
        import requests

        seconds = self.options.timeout
        try:
            with self._session.request(
                method,
                self.url,
                json=body,
                timeout=(min(seconds, _CONNECT_SECONDS), seconds),
                allow_redirects=False,
                stream=True,
            ) as answer:
                content = _read(answer)
                status = answer.status_code
        except requests.exceptions.ReadTimeout as error:
            raise self._too_late(method) from error
        except requests.exceptions.ConnectionError as error:
            # What arrives too slowly after the first bytes is a ConnectionError too.
            if "Read timed out" in str(error):
                raise self._too_late(method) from error
            return f"cannot reach {self.url}: {_reason(error)}", None, b""
        except requests.exceptions.RequestException as error:
            return f"{self.url} broke off its answer: {_reason(error)}", None, b""
        if len(content) > _LARGEST:
            raise UserError(f"{self.url} answered with more than {size(_LARGEST)}: expected scores")
        if status != 200:
            said = _short(content.decode(errors="replace"))
            return f"{self.url} answered {method} with status {status}" + (f" ({said})" if said else ""), status, b""
        return "", status, content

    def _too_late(self, method: str) -> UserError:
        fewer = f", or lower {VARIABLE}BATCH" if method == "POST" else ""
        return UserError(
            f"{self.url} did not answer {method} within {self.options.timeout:g} s: raise {VARIABLE}TIMEOUT{fewer}"
        )

    def _parsed(self, content: bytes, expected: str) -> Any:
        try:
            return parse_json(content)
        except BadJSON as error:
            said = _short(content[: 4 * _SHOWN].decode(errors="replace"))
            raise UserError(
                f"{self.url} answered with something that is not JSON, {said!r} ({error}): expected {expected}"
            ) from error


class _Bearer:
    """Adds the key to a request, as a class of requests' ``auth``."""

    def __init__(self, key: str):
        self._key = key

    def __call__(self, request: Any) -> Any:
        request.headers["Authorization"] = f"Bearer {self._key}"
        return request


def _read(answer: Any) -> bytes:
    """Reads an answer, or a little more than the largest one that is allowed."""
    content = b""
    for piece in answer.iter_content(2**16):
        content += piece
        if len(content) > _LARGEST:
            break
    return content


def _advice(status: int, expected: str) -> str:
    if status in (401, 403):
        return f"set the environment variable {VARIABLE}KEY to the scorer's key"
    if status in (404, 405):
        return "expected a scorer at this address: check its path, and that it answers GET and POST"
    if 300 <= status < 400:
        return "expected no redirect: name the address to which it leads"
    return f"expected status 200 with {expected}"


def _reason(error: Exception) -> str:
    """Returns the innermost reason of an error of requests, whose own text names objects of urllib3."""
    inner: BaseException = error
    while inner.__cause__ or inner.__context__:
        inner = inner.__cause__ or inner.__context__
    return _short(getattr(inner, "strerror", None) or str(inner) or type(inner).__name__)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}…"
