"""The command that shows the page: what it refuses, what it warns of, and how it ends."""

import importlib.util
import os
import signal
import socket
import subprocess
import time
import urllib.request

import pytest

from spo_jax import demo
from spo_jax.core.errors import UserError
from tests.support.commands import ROOT, command_line


def test_a_missing_extra_is_one_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'made with gradio: run pip install -e "\.\[demo\]" in the checkout'):
        demo()


def test_a_port_that_is_taken_is_named(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen at --host=127.0.0.1 --port={port}: Address already in use"):
            demo(port=port, out=tmp_path)


@pytest.mark.parametrize(("host", "others"), [("127.0.0.1", False), ("localhost", False), ("0.0.0.0", True)])
def test_who_can_open_the_page(host, others):
    module = importlib.import_module("spo_jax.demo")
    assert module._listens_to_others(host, 0) is others


@pytest.mark.slow
def test_ctrl_c_ends_the_page_in_one_line(tmp_path):
    """The command as a user starts it: the address it prints answers, and nothing is left in the folder."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    line = command_line("demo", f"--port={port}", f"--out={tmp_path}/votes", f"--runs={tmp_path}/runs")
    with subprocess.Popen(
        line, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True, stdout=-1, stderr=subprocess.STDOUT
    ) as process:
        printed = []
        while not printed or not printed[-1].startswith("open "):
            printed.append(process.stdout.readline())
            assert printed[-1], printed
        assert urllib.request.urlopen(printed[-1].split()[1], timeout=30).status == 200
        process.send_signal(signal.SIGINT)
        begin = time.monotonic()
        rest = process.stdout.read().splitlines()
        assert process.wait() == 130 and time.monotonic() - begin < 60
    assert rest == ["interrupted"]
    assert not list(tmp_path.iterdir())
