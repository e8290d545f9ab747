"""The prompts of every protocol are fetched by one command, from files in the layouts that the hub lists.

The stand-ins have these layouts and a few prompts, so that the protocols say that their number is another one.
"""

import io
import json
import os
import subprocess
import sys
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest

from spo_jax.core.errors import UserError
from spo_jax.data.prompts import load_grouped_prompts
from spo_jax.data.protocol import load_protocol, protocol_names
from spo_jax.prepare import prepare
from tests.support.commands import ROOT
from tests.weights import test_hub

STYLES = ("anime", "concept-art", "paintings", "photo")
TEST_JSON = [
    {"prompt": f"prompt {i}", "image_path": [f"{i}.jpg"], "rank": [1], "raw_annotation": [{"rank": [1]}]}
    for i in range(3)
]
PARTI = 'Prompt\tCategory\tChallenge\tNote\nbond\tAbstract\tBasic\tx\nthe words "Fly" on a wall\tArts\tComplex\t\n'


def _parquet() -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    file = io.BytesIO()
    parquet.write_table(pyarrow.table({"caption": ["a", "b", "a"], "image_0_uid": ["x", "y", "z"]}), file)
    return file.getvalue()


def _repositories() -> dict[str, dict[str, bytes]]:
    """The files of the data sets, among others that are not needed."""
    hpd = {f"benchmark/{style}.json": json.dumps([f"{style} 0", f"{style} 1"]).encode() for style in STYLES}
    hpd |= {"test.json": json.dumps(TEST_JSON).encode(), "README.md": b"x", "benchmark/drawbench.json": b'["d"]'}
    pick = {f"data/{split}-00000-of-00001-ab.parquet": _parquet() for split in ("validation_unique", "test_unique")}
    return {"datasets/zhwang/HPDv2": hpd, "datasets/yuvalkirstain/pickapic_v1_no_images": pick}


def _expected(protocol: str) -> list[tuple[str, str]]:
    """The prompts and groups of the stand-ins."""
    return {
        "spo": [("a", ""), ("b", "")],
        "lpo": [("a", ""), ("b", "")],
        "hpsv2-bench": [(f"{style} {i}", style) for style in STYLES for i in range(2)],
        "hpdv2-median": [(f"prompt {i}", "") for i in range(3)],
        "parti": [("bond", "Abstract"), ('the words "Fly" on a wall', "Arts")],
    }[protocol]


class _Hub(test_hub.Hub):
    """Serves the bytes of the files as they are."""

    def _answer_file(self, repo: str, revision: str, name: str) -> None:
        content = test_hub.REPOSITORIES[repo][name].encode("latin-1")
        commit = test_hub.SHA.get(revision, revision)
        self._send(200, content, {"ETag": f'"{abs(hash(name))}"', "X-Repo-Commit": commit})


FETCHING = """
import sys
from spo_jax.prepare import prepare
for name in sys.argv[2:]:
    prepare("prompts", sys.argv[1], protocol=name)
"""


def test_one_command_fetches_the_prompts_of_a_protocol_from_the_hub(tmp_path, monkeypatch):
    texts = {
        repository: {name: content.decode("latin-1") for name, content in files.items()}
        for repository, files in _repositories().items()
    }
    monkeypatch.setattr(test_hub, "REPOSITORIES", texts)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    server.requested, server.broken, server.broken_file = [], False, None
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    endpoint = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}", "HF_HOME": str(tmp_path / "home")}
    plain = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    environment = os.environ | endpoint | plain | {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    names = ["spo", "hpsv2-bench", "hpdv2-median"]
    command = [sys.executable, "-c", FETCHING, str(tmp_path / "out"), *names]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=100)
    server.shutdown()
    server.server_close()
    assert done.returncode == 0, done.stderr
    for name in names:
        path = tmp_path / "out" / Path(load_protocol(name).prompts).name
        assert list(zip(*load_grouped_prompts(path), strict=True)) == _expected(name)
        assert f"; for python -m spo_jax.evaluate --protocol={name}" in done.stdout
    assert "protocol spo has 500 prompts, and its source now 2" in done.stderr
    fetched = [line for line in server.requested if "/resolve/" in line]
    assert fetched and not any("drawbench" in line or "README" in line or "test_unique" in line for line in fetched)


@pytest.mark.parametrize("name", [name for name in protocol_names() if name != "toy"])
def test_a_local_copy_stands_in_for_the_source(tmp_path, name):
    """A folder with the files of the repository, as `hf download --local-dir` or a browser leaves them."""
    protocol = load_protocol(name)
    (source,) = set(map(_repository, protocol.fetch.sources.values()))
    files = {"PartiPrompts.tsv": PARTI.encode()} if name == "parti" else _repositories()[f"datasets/{source}"]
    for file, content in files.items():
        (tmp_path / "copy" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / file).write_bytes(content)
    (done,) = prepare("prompts", tmp_path / "out", protocol=name, source=str(tmp_path / "copy")).values()
    assert done.path == tmp_path / "out" / Path(protocol.prompts).name
    assert list(zip(*load_grouped_prompts(done.path), strict=True)) == _expected(name)
    (again,) = prepare("prompts", tmp_path / "out", protocol=name, source=str(tmp_path / "copy")).values()
    assert again.kept and again.protocol == name


def _repository(source: str) -> str:
    return "" if source.startswith("http") else "/".join(source.split("/")[:2])


def test_flags_that_do_not_fit_a_protocol_are_refused(tmp_path):
    with pytest.raises(UserError, match="--splits=train: --protocol=spo names the split itself"):
        prepare("prompts", tmp_path, ["train"], protocol="spo")
    with pytest.raises(UserError, match="--protocol=toy: its prompts are toy:held_out, which need no fetching"):
        prepare("prompts", tmp_path, protocol="toy")
    with pytest.raises(UserError, match=r"--protocol=sop: expected .*did you mean spo"):
        prepare("prompts", tmp_path, protocol="sop")
    with pytest.raises(UserError, match="--source = '': expected a file, a URL, .*, or --protocol=NAME"):
        prepare("prompts", tmp_path)
    with pytest.raises(UserError, match="no such file or folder: .*anime.json"):
        prepare("prompts", tmp_path, protocol="hpsv2-bench", source=str(tmp_path))
