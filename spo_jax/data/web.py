"""Fetches small files from the web, and says what is wrong with what comes instead."""

import http.client
import urllib.error
import urllib.request
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from spo_jax.core.errors import UserError
from spo_jax.core.words import size

_LARGEST = 64 << 20  # bytes of a list; the training prompts of the reference have 0.6 MB
_SECONDS = 60  # without an answer


def download(url: str) -> tuple[str, bytes]:
    """Fetches a list of prompts from the web, and returns its file's name and content.

    Raises:
      UserError: it cannot be fetched, not all of it arrives, it is a web page, or it is too large.
    """
    request = urllib.request.Request(url, headers={"User-Agent": "spo_jax"})
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
            content = answer.read(_LARGEST + 1)
            expected = int(answer.headers.get("Content-Length") or len(content))
            kind = answer.headers.get_content_type()
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = error.reason if type(error) is urllib.error.URLError else error
        raise UserError(f"cannot fetch {url}: {reason}; check the address and the network") from error
    if kind == "text/html":
        raise UserError(f"{url} is a web page: expected the address of the file itself (on GitHub: of its button Raw)")
    if len(content) > _LARGEST:
        raise UserError(f"{url} has more than {size(_LARGEST)}: expected a list of prompts")
    if len(content) < expected:
        raise UserError(f"cannot fetch {url}: only {len(content)} of {expected} bytes arrived; try again")
    return PurePosixPath(unquote(urlsplit(url).path)).name, content
