"""A page of made-up LoRAs, served over loopback for tests."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from spo_jax.work.demo.context import PageContext
from spo_jax.work.demo.jobs import Jobs
from spo_jax.work.demo.page import build_page, launch
from tests.work.demo.fakes import fake_page


@contextlib.contextmanager
def serving(folder: Path, page: PageContext | None = None) -> Iterator[tuple[PageContext, str]]:
    """Serves the page while the context is open; gives what its tabs share, and its address."""
    with mock.patch.dict(os.environ, {"GRADIO_TEMP_DIR": str(folder / "shown")}):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        page = page or fake_page(folder)
        jobs = Jobs(page.device)
        blocks = build_page(page, jobs)
        try:
            yield page, launch(blocks, "127.0.0.1", port)
        finally:
            jobs.stop()
            blocks.close(verbose=False)
