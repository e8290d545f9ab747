"""A folder is uploaded to a hub on the loopback, and every failure is one line that says what to do."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from spo_jax.core.errors import UserError
from spo_jax.weights.upload import check_upload
from tests.support.hub_for_uploads import environment, serving

ROOT = Path(__file__).resolve().parents[2]
DRIVER = """
import json, sys
from pathlib import Path
from spo_jax.core.errors import UserError
from spo_jax.weights.upload import check_upload, upload
answers = []
for call in json.loads(sys.argv[1]):
    try:
        check_upload(call["repo"])
        answers.append(upload(Path(call.pop("folder")), **call) if "folder" in call else "fine")
    except UserError as error:
        answers.append(f"error: {error}")
print("ANSWERS" + json.dumps(answers))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    card = tmp_path / "card"
    (card / "images").mkdir(parents=True)
    files = {"README.md": "---\nlicense: apache-2.0\n---\n# x\n", "lora.safetensors": "weights", "images/[0].png": "a"}
    for name, text in {**files, "images/0.png": "not ours", "notes.txt": "not ours"}.items():
        (card / name).write_text(text)
    return card


NAMES = ["README.md", "lora.safetensors", "images/[0].png"]


def run(server: Any, home: Path, calls: list[dict], **how: str) -> list[str]:
    command = [sys.executable, "-c", DRIVER, json.dumps(calls)]
    done = subprocess.run(
        command, env=environment(server, home, **how), cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.partition("ANSWERS")[2])


def test_the_named_files_are_uploaded_in_one_commit(tmp_path, folder):
    with serving() as hub:
        hub.repos["me/public"] = {"private": False, "files": {}, "messages": []}
        call = {"folder": str(folder), "names": NAMES, "message": "a LoRA"}
        wrong = tmp_path / "wrong"
        wrong.mkdir()
        (wrong / "README.md").write_text("---\nlicense: nonsense\n---\n")
        answers = run(
            hub,
            tmp_path,
            [
                {**call, "repo": "me/new"},
                {**call, "repo": "me/new", "message": "again"},
                {**call, "repo": "me/hidden", "private": True},
                {**call, "repo": "me/public", "private": True},
                {**call, "repo": "you/x"},
                {"folder": str(wrong), "names": ["README.md"], "message": "x", "repo": "me/wrong"},
            ],
        )
        repos = hub.repos
    address = f"http://127.0.0.1:{hub.server_port}/me/new"
    assert answers[:3] == [address, address, address.replace("new", "hidden")]
    assert repos["me/new"]["files"] == {name: (folder / name).read_bytes() for name in NAMES}
    assert repos["me/new"]["messages"] == ["a LoRA", "again"] and not repos["me/new"]["private"]
    assert repos["me/hidden"]["private"]
    assert answers[3].startswith("error: --private: me/public is there already, and everybody sees it: make it private")
    assert repos["me/public"]["files"] == {}
    assert answers[4].startswith("error: cannot upload to you/x: the token has no right to write there: take one with")
    assert '"license" must be one of [apache-2.0, ...]' in answers[5] and "\n" not in answers[5]
    assert all(answer.endswith("and stays") or answer.endswith(f"{folder} stays") for answer in answers[3:])


def test_failures_say_what_to_do(tmp_path, folder):
    call = {"folder": str(folder), "names": NAMES, "message": "x", "repo": "me/new"}
    with serving() as hub:
        (unknown,) = run(hub, tmp_path, [call], token="hf_unknown")
        (missing,) = run(hub, tmp_path, [call], token="")
        assert not hub.repos
    (away,) = run(hub, tmp_path, [call])  # it does not serve any more
    assert unknown.startswith("error: cannot upload to me/new: the hub does not accept the token: log in again with")
    assert missing.startswith("error: --push-to=me/new: no token for the hub: log in with `hf auth login`, or set HF_T")
    assert away.startswith("error: cannot upload to me/new: the hub cannot be reached (")
    assert away.endswith(f"{folder} is complete and stays") and "\n" not in away


@pytest.mark.parametrize("name", ["lora", "me/", "/lora", "a/b/c", "me/my lora", "me/a--b", "me/-x", "me/x.git", "é/x"])
def test_a_wrong_name_is_refused_before_anything_is_read(name):
    with pytest.raises(UserError, match=f"^--push-to={name}: expected USER/NAME"):
        check_upload(name)


def test_offline_nothing_is_uploaded():
    """Tests set HF_HUB_OFFLINE."""
    with pytest.raises(UserError, match="--push-to=me/x: HF_HUB_OFFLINE is set, so nothing is uploaded: unset it"):
        check_upload("me/x")
