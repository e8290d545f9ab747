"""The page: its tabs, its looks, and the server that shows it."""

import os
import tempfile
import threading

import gradio as gr

from spo_jax.core.errors import UserError
from spo_jax.core.markdown import code
from spo_jax.work.demo import taste_tab, vote_tab
from spo_jax.work.demo.context import PageContext
from spo_jax.work.demo.jobs import Jobs
from spo_jax.work.demo.try_tab import add_try_tab

MAX_UPLOAD = "4mb"
QUEUE = 16  # events that may wait; further ones are refused with a message
_HOUR = 3600
# Fonts of the machine: those of gradio's own themes are fetched from Google.
_FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
_CSS = """
.gradio-container { max-width: 1100px !important; width: 100% !important; margin: 0 auto !important; }
footer { display: none !important; }
"""


def build_page(page: PageContext, jobs: Jobs) -> gr.Blocks:
    """Returns the page with all its tabs, which is not served yet."""
    with gr.Blocks(title="spo_jax", analytics_enabled=False, delete_cache=(_HOUR, _HOUR)) as blocks:
        gr.Markdown(f"# spo_jax\nModel: {code(page.model)}")
        remembered = vote_tab.remembering()
        with gr.Tabs() as tabs:
            with gr.Tab("Try", id="try"):
                add_try_tab(page)
            with gr.Tab("Vote", id="vote"):
                vote = vote_tab.add_vote_tab(page, tabs, remembered)
            with gr.Tab("My taste", id="taste") as tab:
                taste_tab.add_taste_tab(page, jobs, vote, tabs, tab)
    return blocks.queue(max_size=QUEUE, default_concurrency_limit=4)


def serve(page: PageContext, host: str, port: int, share: bool) -> None:
    """Shows the page until Ctrl-C.

    Args:
      page: what the tabs share.
      host: address to listen at.
      port: port to listen at.
      share: whether to make a public address, through a tunnel of gradio.

    Raises:
      UserError: the port was taken in the meantime.
    """
    # The images that are shown. gradio's own folder for them is that of all users of the machine.
    with tempfile.TemporaryDirectory(prefix="spo_jax_") as shown:
        os.environ["GRADIO_TEMP_DIR"] = shown
        jobs = Jobs(page.device)
        address = launch(build_page(page, jobs), host, port, share)
        print(f"open {address} (Ctrl-C ends the page)", flush=True)
        try:
            threading.Event().wait()
        finally:
            if jobs.stop():
                print("the command that the page started saves and ends", flush=True)


def launch(blocks: gr.Blocks, host: str, port: int, share: bool = False) -> str:
    """Starts the server in threads of its own, and returns the page's address.

    Raises:
      UserError: nothing can listen at the port.
    """
    try:
        _, address, public = blocks.launch(
            server_name=host,
            server_port=port,
            share=share,
            quiet=True,
            prevent_thread_lock=True,
            max_file_size=MAX_UPLOAD,
            footer_links=[],
            run_history=False,  # it fills the browser's storage with all inputs and outputs
            theme=gr.themes.Default(**_FONTS),
            css=_CSS + vote_tab.CSS + taste_tab.CSS,
            head=vote_tab.KEYS_SCRIPT,
        )
    except OSError as error:
        raise UserError(f"cannot listen at --host={host} --port={port}: {error}") from error
    return public or address
