"""Tabs of the page, for its tests in a browser."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

_WAIT = 60_000  # milliseconds; the first drawing is compiled, and a page is slow to load where others compute


@pytest.fixture
def open_tab(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a tab of the page as one more person; what it asked of other hosts, and its errors, are none."""
    contexts, wrong = [], []

    def opened(address: str, name: str, awaited: str, **how: Any) -> Any:
        contexts.append(browser.new_context(**how))
        tab = contexts[-1].new_page()
        tab.set_default_timeout(_WAIT)
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("request", lambda request: request.url.startswith((address, "data:")) or wrong.append(request.url))
        tab.goto(address)
        tab.get_by_role("tab", name=name).click()
        tab.wait_for_selector(awaited)
        return tab

    yield opened
    for context in contexts:
        context.close()
    assert not wrong
