"""A hub on the loopback to which the client uploads: the endpoints that its HfApi and lfs modules call for that."""

import base64
import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

USERS = {"hf_writer": "me", "hf_reader": ""}  # whose repositories a token may write, by the token
COMMIT = "c" * 40


class UploadHub(BaseHTTPRequestHandler):
    """Stores repositories in ``server.repos``: name to ``private``, ``files`` by name, and ``messages`` of commits."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.requested.append(f"GET {self.path}")
        repo = "/".join(self.path.strip("/").split("?")[0].split("/")[2:4])
        if repo not in self.server.repos:
            return self._send(404, {}, {"X-Error-Code": "RepoNotFound"})
        found = self.server.repos[repo]
        return self._send(200, {"id": repo, "sha": COMMIT, "private": found["private"], "siblings": []})

    def do_PUT(self) -> None:
        self.server.requested.append(f"PUT {self.path}")
        self.server.objects[self.path.rpartition("/")[2]] = self._body()
        self._send(200, {})

    def do_POST(self) -> None:
        self.server.requested.append(f"POST {self.path}")
        path = self.path.split("?")[0]
        body = self._body()
        if path.startswith("/api/repos/create"):
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            wrong = b"license: nonsense" in json.loads(body)["content"].encode()
            errors = [{"message": '"license" must be one of [apache-2.0, ...]'}] if wrong else []
            self._send(400 if wrong else 200, {"errors": errors, "warnings": []})
        elif not self._may_write("/".join(path.removeprefix("/api/models").strip("/").split("/")[:2])):
            self._send(403, {"error": "Forbidden"})
        elif "/preupload/" in path:
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith((".safetensors", ".png")) else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            self._send(200, {"files": modes})
        elif path.endswith(".git/info/lfs/objects/batch"):
            host = f"http://{self.headers['Host']}/objects"
            objects = [
                {**wanted, "actions": {"upload": {"href": f"{host}/{wanted['oid']}"}}}
                for wanted in json.loads(body)["objects"]
            ]
            self._send(200, {"transfer": "basic", "objects": objects})
        else:
            self._commit(path, [json.loads(line) for line in body.splitlines()])

    def log_message(self, *_: Any) -> None:
        pass

    def _create(self, wanted: dict[str, Any]) -> None:
        repo = f"{wanted['organization']}/{wanted['name']}"
        if self._token() not in USERS:
            return self._send(401, {"error": "Invalid username or password."})
        if not self._may_write(repo):
            return self._send(403, {"error": "You don't have the rights to create a model under this namespace"})
        there = repo in self.server.repos
        private = wanted.get("visibility") == "private"
        self.server.repos.setdefault(repo, {"private": private, "files": {}, "messages": []})
        return self._send(409 if there else 200, {"url": f"http://{self.headers['Host']}/{repo}", "id": repo})

    def _commit(self, path: str, lines: list[dict[str, Any]]) -> None:
        name = "/".join(path.split("/")[3:5])
        repo = self.server.repos[name]
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                repo["messages"].append(value["summary"])
            elif line["key"] == "file":
                repo["files"][value["path"]] = base64.b64decode(value["content"])
            else:
                repo["files"][value["path"]] = self.server.objects[value["oid"]]
                assert hashlib.sha256(repo["files"][value["path"]]).hexdigest() == value["oid"]
        self._send(200, {"commitUrl": f"http://{self.headers['Host']}/{name}/commit/{COMMIT}", "commitOid": COMMIT})

    def _token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def _may_write(self, repo: str) -> bool:
        owner = USERS.get(self._token())
        return bool(owner) and repo.startswith(f"{owner}/")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _send(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(body)


@contextlib.contextmanager
def serving() -> Iterator[Any]:
    """Serves an empty hub, which records what is requested."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), UploadHub)
    server.repos, server.objects, server.requested = {}, {}, []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def environment(server: Any, home: Any, token: str = "hf_writer", **more: str) -> dict[str, str]:
    """The environment of a process that uploads to the hub; the client reads it when it is imported."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    settings = {
        "HF_HOME": str(home),
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        "JAX_PLATFORMS": "cpu",
        **({"HF_TOKEN": token} if token else {}),
    }
    return kept | settings | more
