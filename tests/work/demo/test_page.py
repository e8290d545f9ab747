"""The page as a browser uses it, over loopback: its events by name, and what can be read through it."""

import json
import re
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from gradio_client import Client

from spo_jax.work.demo.ballot import COLLECT, COMPARE
from spo_jax.work.demo.votes import Vote, VoteFolder
from spo_jax.work.doctor import extras
from tests.support.commands import ROOT
from tests.work.demo.serving import serving

CHOICES = {"first": "dark", "second": "light", "prompts": "", "steps": 20, "guidance": 5.0, "voter": "Ann"}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("page")) as (page, address):
        client = Client(address, verbose=False, download_files=False)
        yield page, address, client
        client.close()


def values(kind):
    return [kind, *CHOICES.values()]


def test_votes_by_the_events_of_the_page(served):
    page, _, client = served
    shown = client.predict(*values(COMPARE), api_name="/start_voting")
    assert re.fullmatch(r"Which is better for \*\*a (red star|blue heart|green circle)\*\*\?", shown[1])
    for number, choice in enumerate(("left", "tie", "skip", "right", "left"), 1):
        token = shown[0]
        shown = client.predict(token, *values(COMPARE), api_name=f"/vote_{choice}")
        assert shown[0] != token
        count = number - (number > 2)
        assert shown[4].startswith(f"{count} vote{'s' * (count != 1)} in")
    client.predict(token, *values(COMPARE), api_name="/vote_left")  # the same pair again
    lines = [json.loads(line) for line in (page.out / COMPARE / "train.jsonl").read_text().splitlines()]
    assert [line["label"] for line in lines] == [0, 0.5, 1, 0]
    assert all(line["voter"] == "Ann" and sorted(line["loras"]) == ["dark", "light"] for line in lines)
    told = client.predict(*values(COMPARE), api_name="/end_voting")[0]
    assert "| `dark` |" in told and "| `light` |" in told and "| tie | 1 |" in told and "3 decided votes" in told

    # What this person votes now is kept, and not counted.
    shown = client.predict(*values(COMPARE), api_name="/start_voting")
    assert "no longer counted as blind" in shown[4]
    client.predict(shown[0], *values(COMPARE), api_name="/vote_left")
    told = client.predict(*values(COMPARE), api_name="/end_voting")[0]
    assert "3 decided votes" in told and "Not counted: 1 vote" in told


def test_names_are_not_sent_before_the_end(served):
    _, _, client = served
    for _ in range(3):
        shown = client.predict(*values(COMPARE), api_name="/start_voting")
        # The last of what is sent is what the person chose, in their order.
        assert "dark" not in json.dumps(shown[:-1]) and "light" not in json.dumps(shown[:-1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"first": "/etc/passwd"}, "no LoRA '/etc/passwd': the page reads those below"),
        ({"second": "dark"}, "both sides are the same"),
        ({"prompts": "a\n" * 10_001}, "there are 10001 prompts: expected at most 10000"),
    ],
)
def test_a_mistake_is_a_message_on_the_page(served, change, message):
    _, _, client = served
    chosen = CHOICES | change
    with pytest.raises(Exception, match=re.escape(message)):
        client.predict(COMPARE, *chosen.values(), api_name="/start_voting")
    assert client.predict(*values(COLLECT), api_name="/start_voting")


def test_what_learning_needs_and_is_not_installed_is_said_before_the_votes(served, monkeypatch):
    _, _, client = served
    assert "pip install" not in client.predict("1", api_name="/taste_look")[0]
    monkeypatch.setattr(extras, "has_module", lambda name: name != "tensorflow_datasets")
    told = client.predict("1", api_name="/taste_look")[0]
    assert "The steps after it need tensorflow_datasets: install with `pip install" in told


def test_a_step_of_the_taste_runs_its_command(served):
    """The first of them, with votes that were written elsewhere in the meantime."""
    page, _, client = served
    with pytest.raises(Exception, match="'Prepare the votes' cannot be started now: waits for"):
        client.predict("1", api_name="/taste_1")
    with pytest.raises(Exception, match=r"there is no round '\.\./x': expected a number"):
        client.predict("../x", api_name="/taste_look")
    images = (np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8))
    for number in range(40):
        VoteFolder(page.out / COLLECT).add(Vote(f"prompt {number}", images, number % 2))
    shown = client.predict("1", api_name="/taste_1")
    assert "40 votes so far" in shown[0] and "*Running.*" in shown[1]
    end = time.monotonic() + 300
    while "*Done.*" not in (shown := client.predict("1", api_name="/taste_look"))[1]:
        assert time.monotonic() < end, shown
        time.sleep(0.2)
    assert "*Ready.*" in " ".join(map(str, shown))
    assert {path.name for path in (page.out / "data1").iterdir()} >= {"train", "validation"}


def status(address, path):
    try:
        return urllib.request.urlopen(f"{address}{path}", timeout=60).status
    except urllib.error.HTTPError as error:
        return error.code


def test_no_file_of_the_machine_can_be_read_through_the_page(served):
    page, address, _ = served
    files = ["/etc/passwd", "README.md", ROOT / "README.md", page.runs / "dark" / "lora.safetensors", page.out]
    for file in files:
        assert status(address, f"gradio_api/file={file}") == 403, file
    assert status(address, "gradio_api/file=../README.md") in (403, 404)


def test_the_page_loads_nothing_from_elsewhere(served):
    _, address, _ = served
    html = urllib.request.urlopen(address, timeout=60).read().decode()
    loaded = re.findall(r"<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=[\"'](https?:)?//([^/\"']+)", html)
    assert {host for _, host in loaded} <= {address.split("/")[2]}
