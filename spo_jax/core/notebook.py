"""Output in notebooks: lines and images below the running cell that are redrawn in place."""

import sys
import threading
from typing import Any

MOST_LINES = 100  # lines below one cell; older ones give way


def in_notebook() -> bool:
    """Whether stderr is shown below a cell, as in Jupyter, Colab and Kaggle."""
    return type(sys.stderr).__module__.startswith("ipykernel.")


class Place:
    """A place below the running cell, whose content can be replaced, also by another thread and by later cells."""

    def __init__(self):
        self._handle: Any = None

    def show(self, content: dict[str, Any]) -> None:
        """Shows something in place of what was there.

        Args:
          content: the same thing in one or several formats, by their MIME types; images are bytes.
        """
        from IPython.display import display

        if self._handle is None:
            self._handle = display(content, raw=True, display_id=True)
        else:
            self._handle.update(content, raw=True)


class Line:
    """A line of text below the running cell that can be rewritten; it appears when it is first written."""

    def write(self, text: str) -> None:
        """Replaces the text of the line."""
        if not hasattr(self, "_page"):
            self._page = _page()
        self._page.write(self, text)


class _Page:
    """All lines of one cell, in one place, because a place for each would be far apart."""

    def __init__(self):
        self._place = Place()
        self._texts: dict[Line, str] = {}
        self._lock = threading.Lock()

    def write(self, line: Line, text: str) -> None:
        with self._lock:
            self._texts[line] = text
            for old in list(self._texts)[:-MOST_LINES]:
                del self._texts[old]
            self._place.show({"text/plain": "\n".join(self._texts.values())})


_pages: dict[int, _Page] = {}  # the page of the running cell, by the number of its execution


def _page() -> _Page:
    from IPython import get_ipython

    number = get_ipython().execution_count
    if number not in _pages:
        _pages.clear()
        _pages[number] = _Page()
    return _pages[number]
