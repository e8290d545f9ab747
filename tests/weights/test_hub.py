"""The client of the hub against a local server: which files are fetched and kept, and which messages failures give."""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from spo_jax.core.errors import UserError
from spo_jax.weights.hub import local, resolve, select_files

ROOT = Path(__file__).resolve().parents[2]
SHA = {"main": "a" * 40, "v1": "b" * 40}

PIPELINE = {
    "model_index.json": "{}",
    "README.md": "# readme",
    "v1-5-pruned.safetensors": "whole checkpoint",
    "unet/config.json": '{"a": 1}',
    "unet/diffusion_pytorch_model.safetensors": "unet full",
    "unet/diffusion_pytorch_model.fp16.safetensors": "unet half",
    "unet/diffusion_pytorch_model.bin": "unet pickle",
    "unet/diffusion_pytorch_model.non_ema.safetensors": "another",
    "vae/config.json": "{}",
    "vae/diffusion_pytorch_model.fp16.safetensors": "vae half",
    "text_encoder/config.json": "{}",
    "text_encoder/pytorch_model.bin": "text pickle",
    "text_encoder/flax_model.msgpack": "flax",
    "tokenizer/vocab.json": "{}",
    "tokenizer/merges.txt": "#version: 0.2",
    "safety_checker/config.json": "{}",
    "safety_checker/model.safetensors": "safety",
}
SHARDED = {
    "config.json": "{}",
    "model.safetensors.index.json": "{}",
    "model-00001-of-00002.safetensors": "one",
    "model-00002-of-00002.safetensors": "two",
    "model.fp16-00001-of-00002.safetensors": "half one",
    "model.fp16-00002-of-00002.safetensors": "half two",
    "model.safetensors.index.fp16.json": "{}",
    "odd [1].json": "{}",
    "weights.ckpt": "a checkpoint",
}
PAIRS = {"data/train-00000-of-00001-aa.parquet": "t", "data/test-00000-of-00001-aa.parquet": "e", "README.md": "x"}
LORAS = {
    "README.md": "x",
    "adapter_config.json": "{}",
    "pytorch_lora_weights.safetensors": "the LoRA",
    "other.safetensors": "another",
    "demo.bin": "no LoRA",
}
REPOSITORIES = {
    "acme/lora": LORAS,
    "acme/sd": PIPELINE,
    "acme/clip": SHARDED,
    "acme/text": {"README.md": "x"},
    "datasets/acme/pairs": PAIRS,
}


class Hub(BaseHTTPRequestHandler):
    """The endpoints of the hub that the client calls (see its HfApi and file_download)."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        self.server.requested.append(f"{self.command} {self.path}")
        if self.server.broken:
            self._send(503, b"down")
        elif self.server.broken_file and self.path.endswith(self.server.broken_file):
            self._send(403, b"")  # not 503, which the client retries for a long time
        elif parts[:2] == ["api", "models"]:
            self._answer_api("/".join(parts[2:4]), parts[4:])
        elif parts[:2] == ["api", "datasets"]:
            self._answer_api("/".join(parts[1:4]), parts[4:])
        elif parts[0] == "datasets" and parts[3:4] == ["resolve"]:
            self._answer_file("/".join(parts[:3]), parts[4], unquote("/".join(parts[5:])))
        elif parts[2:3] == ["resolve"]:
            self._answer_file("/".join(parts[:2]), parts[3], unquote("/".join(parts[4:])))
        else:
            self._send(404, b"")

    do_HEAD = do_GET

    def log_message(self, *_: Any) -> None:
        pass

    def _answer_api(self, repo: str, rest: list[str]) -> None:
        revision = rest[1] if len(rest) > 1 else "main"
        if repo == "acme/gated":
            return self._send(403, b"{}", {"X-Error-Code": "GatedRepo"})
        if repo not in REPOSITORIES:
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if revision not in {*SHA, *SHA.values()}:
            return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        files = REPOSITORIES[repo]
        if rest[:1] == ["tree"]:
            listing = [
                {"type": "file", "path": name, "size": len(text), "oid": hashlib.sha1(text.encode()).hexdigest()}
                for name, text in files.items()
            ]
        else:
            sha = SHA.get(revision, revision)
            listing = {"id": repo, "sha": sha, "siblings": [{"rfilename": name} for name in files]}
        return self._send(200, json.dumps(listing).encode(), {"Content-Type": "application/json"})

    def _answer_file(self, repo: str, revision: str, name: str) -> None:
        text = REPOSITORIES[repo][name].encode() + revision.encode()
        etag = hashlib.sha1(text).hexdigest()
        self._send(200, text, {"ETag": f'"{etag}"', "X-Repo-Commit": SHA.get(revision, revision)})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@pytest.fixture
def hub() -> Iterator[Any]:
    """A hub on the loopback that records requests and can be made to fail."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.requested = []
    server.broken = False
    server.broken_file = None
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


DRIVER = """
import json, logging, sys
from spo_jax.core.errors import UserError
from spo_jax.weights.hub import resolve
from spo_jax.weights.lora import find_lora
answers = []
for call in json.loads(sys.argv[1]):
    try:
        folder = find_lora(call["lora"]).parent if "lora" in call else resolve(call.pop("id"), **call)
        files = {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}
        answers.append({"commit": folder.name, "files": files})
    except UserError as error:
        answers.append({"error": str(error)})
print("ANSWERS" + json.dumps(answers))
"""


def _resolve_in_a_process(home: Path, port: int, calls: list[dict], **environment: str) -> list[dict]:
    """Calls `resolve` in a new process, because the client reads its environment on import."""
    settings = {
        "HF_HOME": str(home),
        "HF_ENDPOINT": f"http://127.0.0.1:{port}",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_ETAG_TIMEOUT": "5",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        "JAX_PLATFORMS": "cpu",
        **environment,
    }
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    command = [sys.executable, "-c", DRIVER, json.dumps(calls)]
    done = subprocess.run(command, env=kept | settings, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.partition("ANSWERS")[2])


CORE = ["unet", "vae", "text_encoder", "tokenizer"]
SMALL = ["model_index.json", "text_encoder/config.json", "tokenizer/merges.txt", "tokenizer/vocab.json"]
CORE_FILES = sorted(
    [
        *SMALL,
        "text_encoder/pytorch_model.bin",  # the only weights of this folder
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.fp16.safetensors",  # the only weights of this folder
    ]
)


def test_select_files() -> None:
    assert select_files(list(PIPELINE), CORE) == CORE_FILES
    everything = select_files(list(PIPELINE))
    assert set(everything) - set(CORE_FILES) == {"safety_checker/config.json", "safety_checker/model.safetensors"}
    half = select_files(list(PIPELINE), ["unet"], "fp16")
    assert half == ["model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.fp16.safetensors"]
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    indices = ["model.safetensors.index.fp16.json", "model.safetensors.index.json"]
    assert select_files(list(SHARDED), []) == ["config.json", *shards, *indices, "odd [1].json"]
    halves = [name.replace("model-", "model.fp16-") for name in shards]
    assert select_files(list(SHARDED), [], "fp16") == ["config.json", *halves, *indices, "odd [1].json"]


def test_a_local_path_is_returned_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "acme" / "sd").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve(tmp_path / "acme") == tmp_path / "acme"
    assert resolve("acme/sd") == Path("acme/sd")  # a folder takes precedence over a hub id
    assert resolve("~/acme") == tmp_path / "acme"


@pytest.mark.parametrize("path", ["./sd", "/nowhere/sd", "runs", "a/b/c", "~/sd", "../x/y", "C:\\models\\sd", "x/y z"])
def test_a_missing_path_is_not_looked_up_on_the_hub(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^no such file or folder: .* \(an id on the hub has the form owner/name\)$"):
        resolve(path)


def test_needed_files_are_fetched_and_kept(tmp_path: Path, hub: Any) -> None:
    port = hub.server_address[1]
    pipeline = {"id": "acme/sd", "components": CORE}
    first, pinned, sharded, picked = _resolve_in_a_process(
        *(tmp_path, port),
        [
            pipeline,
            {"id": "acme/sd", "components": ["unet"], "variant": "fp16", "revision": "v1"},
            {"id": "acme/clip"},
            {"id": "acme/clip", "allow_patterns": ["*.ckpt"], "revision": "v1"},
        ],
    )
    assert sorted(first["files"]) == CORE_FILES and first["commit"] == SHA["main"]
    assert first["files"]["unet/diffusion_pytorch_model.safetensors"] == "unet full" + SHA["main"]
    assert pinned["commit"] == SHA["v1"]
    assert pinned["files"]["unet/diffusion_pytorch_model.fp16.safetensors"] == "unet half" + SHA["v1"]
    assert len(pinned["files"]) == 3
    assert sorted(sharded["files"]) == select_files(list(SHARDED))
    assert list(picked["files"]) == ["weights.ckpt"]

    # Offline on purpose: the same answers without a single request.
    hub.requested.clear()
    calls = [pipeline, {"id": "acme/clip"}, {"id": "acme/sd", "components": ["unet", "safety_checker"]}]
    calls += [{"id": "acme/text"}, {"id": "acme/clip", "allow_patterns": ["*.ckpt"], "revision": "v1"}]
    again, sharded_again, other, never, picked_again = _resolve_in_a_process(tmp_path, port, calls, HF_HUB_OFFLINE="1")
    assert not hub.requested
    assert again == first and sharded_again == sharded and picked_again == picked
    for answer, name in ((other, "acme/sd"), (never, "acme/text")):
        assert answer["error"].startswith(f"HF_HUB_OFFLINE is set and {name} was not fetched completely before: unset")

    # Offline by accident: fetched files are used, and the rest is refused.
    hub.broken = True
    again, never = _resolve_in_a_process(tmp_path, port, [pipeline, {"id": "acme/text"}])
    assert again == first
    assert never["error"].startswith(
        "cannot fetch acme/text from the hub, and it was not fetched completely before: HfHubHTTPError"
    )
    hub.shutdown()
    hub.server_close()
    again, never = _resolve_in_a_process(tmp_path, port, [pipeline, {"id": "acme/text"}])
    assert again == first
    assert never["error"].startswith("cannot fetch acme/text from the hub, and it was not fetched completely before: ")
    assert never["error"].endswith("check the network")


def test_the_lora_of_a_repository_is_fetched_alone_and_kept(tmp_path: Path, hub: Any) -> None:
    port = hub.server_address[1]
    named = {"lora": "acme/lora/other.safetensors"}
    found = {"lora": "acme/lora"}
    never = {"lora": "acme/clip/weights.ckpt.safetensors"}
    first, both, missing, unknown = _resolve_in_a_process(tmp_path, port, [named, found, never, {"lora": "acme/none"}])
    assert sorted(first["files"]) == ["adapter_config.json", "other.safetensors"]
    assert sorted(both["files"]) == ["adapter_config.json", "other.safetensors", "pytorch_lora_weights.safetensors"]
    assert missing["error"].startswith("acme/clip on the hub has no weights.ckpt.safetensors: found ")
    assert unknown["error"].startswith("acme/none is neither a local path nor a repository on the hub")

    # Without network, what was fetched is found again, and another file is not taken for what was not fetched.
    (only_named,) = _resolve_in_a_process(tmp_path / "other", port, [named])
    assert only_named == first
    offline = _resolve_in_a_process(tmp_path / "other", port, [named, found], HF_HUB_OFFLINE="1")
    assert offline[0] == first and offline[1]["error"].startswith("HF_HUB_OFFLINE is set and acme/lora was not fetched")
    hub.requested.clear()
    again = _resolve_in_a_process(tmp_path, port, [named, found, never], HF_HUB_OFFLINE="1")
    assert again[:2] == [both, both] and not hub.requested
    assert again[2]["error"].startswith("HF_HUB_OFFLINE is set and acme/clip was not fetched completely before")
    hub.broken = True
    again = _resolve_in_a_process(tmp_path, port, [named, found, never])
    assert again[:2] == [both, both]
    assert again[2]["error"].endswith("here either: check the path, or check the network")


def test_datasets_are_separate_repositories(tmp_path: Path, hub: Any) -> None:
    call = {"id": "acme/pairs", "allow_patterns": ["*/train-*.parquet"]}
    port = hub.server_address[1]
    fetched, model = _resolve_in_a_process(tmp_path, port, [call | {"repo_type": "dataset"}, call])
    assert list(fetched["files"]) == ["data/train-00000-of-00001-aa.parquet"]
    assert "acme/pairs is neither a local path nor a repository on the hub" in model["error"]
    hub.broken = True
    (again,) = _resolve_in_a_process(tmp_path, port, [call | {"repo_type": "dataset"}])
    assert again == fetched


def test_an_interrupted_fetch_is_not_taken_for_a_complete_one(tmp_path: Path, hub: Any) -> None:
    hub.broken_file = "vae/diffusion_pytorch_model.fp16.safetensors"
    call = {"id": "acme/sd", "components": ["unet", "vae"]}
    first, again = _resolve_in_a_process(tmp_path, hub.server_address[1], [call, call])
    assert list((tmp_path / "hub").rglob("unet/config.json"))  # some files did arrive
    for answer in (first, again):
        assert answer["error"].startswith(
            "cannot fetch acme/sd from the hub, and it was not fetched completely before: "
        )
    hub.broken_file = None
    (whole,) = _resolve_in_a_process(tmp_path, hub.server_address[1], [call])
    assert len(whole["files"]) == 5


def test_failures_say_what_to_do(tmp_path: Path, hub: Any) -> None:
    calls = [{"id": "acme/none"}, {"id": "acme/gated"}, {"id": "acme/sd", "revision": "v9"}, {"id": "acme/text"}]
    calls += [{"id": "acme/a--b"}, {"id": "acme/gated", "allow_patterns": ["*.bin"]}]
    missing, gated, revision, text, odd, gated_files = _resolve_in_a_process(tmp_path, hub.server_address[1], calls)
    assert missing["error"] == (
        "acme/none is neither a local path nor a repository on the hub (a private one needs `hf auth login`)"
    )
    for answer in (gated, gated_files):
        assert answer["error"] == (
            "acme/gated is gated: accept its terms on its page on the hub, then log in with `hf auth login`"
        )
    assert revision["error"] == "acme/sd has no revision 'v9' on the hub: expected a branch, tag or commit of it"
    assert text["error"] == "acme/text on the hub holds no model: found README.md"
    assert "acme/a--b" in odd["error"] and "\n" not in odd["error"]
    with contextlib.suppress(FileNotFoundError):
        assert not [path for path in (tmp_path / "hub").rglob("*") if path.is_file() and "snapshots" in path.parts]


# Paths that do not exist


def test_a_path_of_results_is_not_looked_for_on_the_hub(monkeypatch, tmp_path):
    """No owner is called runs, and no repository is a weights file: the network is not asked."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "sd15").mkdir(parents=True)
    with pytest.raises(UserError, match=r"^no such file or folder: runs/sd15x \(did you mean runs/sd15\?\)$"):
        local("runs/sd15x")
    with pytest.raises(UserError, match="^no such file or folder: models/file.safetensors$"):
        local("models/file.safetensors")
    with pytest.raises(UserError, match=r"^no such file or folder: toyy \(an id on the hub has the form owner/name\)$"):
        local("toyy")
    assert local("runs/sd15") == Path("runs/sd15")
    assert local("acme/model") is None


def test_a_folder_of_the_owners_name_may_be_meant(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "acme" / "model-a").mkdir(parents=True)

    def fail(*_):
        raise UserError("cannot fetch it")

    monkeypatch.setattr("spo_jax.weights.hub._fetch", fail)
    expected = (
        r"^no such file or folder: acme/model-b \(did you mean acme/model-a\?\); nor is it on the hub: cannot fetch it$"
    )
    with pytest.raises(UserError, match=expected):
        resolve("acme/model-b")
    with pytest.raises(UserError, match="^cannot fetch it$"):
        resolve("other/model-b")
