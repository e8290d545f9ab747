"""The reward ``http`` over loopback: the server of ``examples/``, and servers that fail in all the ways they can."""

import base64
import contextlib
import importlib.util
import io
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from PIL import Image

from spo_jax.core.errors import UserError
from spo_jax.rewards import check_reward, load_reward
from spo_jax.rewards.common import http_client
from spo_jax.rewards.common.protocol import Context, Reward
from tests.support.commands import ROOT

FLAG = Context(field="--rewards")
ONE = {"scores": {"beauty": "how beautiful it is"}}
IMAGES = np.linspace(-1, 1, 5 * 4 * 6 * 3, dtype=np.float32).reshape(5, 4, 6, 3)
PROMPTS = ["a", "b", "ç", "d", "e"]


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    """No variable is set, and nobody waits between two tries; the list has how long they would."""
    for name in ("KEY", "TIMEOUT", "RETRIES", "BATCH"):
        monkeypatch.delenv(f"SPO_JAX_HTTP_{name}", raising=False)
    waited: list[float] = []
    monkeypatch.setattr(http_client.time, "sleep", waited.append)
    return waited


@pytest.fixture
def serve():
    """A function that starts a server and returns its address.

    It is given a function of a request's body, which is None for GET, and its headers. That function returns the status
    and the answer: bytes, or what becomes JSON.
    """
    with contextlib.ExitStack() as stack:

        def start(respond: Callable[[Any, Any], tuple[int, Any]]) -> str:
            class Handler(BaseHTTPRequestHandler):
                def do_GET(self):
                    self._answer(None)

                def do_POST(self):
                    self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

                def _answer(self, body):
                    status, answer = respond(body, self.headers)
                    answer = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                    with contextlib.suppress(OSError):  # who does not wait long enough is gone
                        self.send_response(status)
                        self.send_header("Location", "/elsewhere")
                        self.end_headers()
                        self.wfile.write(answer)

                def log_message(self, *_):
                    pass

            server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_port}/score"

        yield start


def _scorer(respond: Any) -> Callable[[Any, Any], tuple[int, Any]]:
    """A server that describes itself as `ONE` and answers POST by ``respond``, a value or a function of the body."""
    return lambda body, headers: (200, ONE) if body is None else respond(body) if callable(respond) else (200, respond)


def _refused(act: Callable[[], Any], *parts: str) -> str:
    """Checks that a function is refused in one line that has all these parts."""
    with pytest.raises(UserError) as error:
        act()
    text = str(error.value)
    assert "\n" not in text and [part for part in parts if part not in text] == [], text
    return text


# What is sent and read


def test_an_image_that_is_not_finite_has_no_score(serve):
    images = np.zeros((3, 4, 4, 3), np.float32)
    images[1, 2, 3, 0] = np.nan
    scores = load_reward(f"http:{serve(_scorer(lambda body: (200, [0.5] * len(body['prompts']))))}", Context())
    (found,) = scores.measure(images, ["a", "b", "c"]).values()
    np.testing.assert_array_equal(found, np.float32([0.5, np.nan, 0.5]))


def test_images_and_prompts_arrive_and_scores_return(serve):
    """Batches are in order; images are 8-bit PNG files; two scores, one of which is better when it is lower."""
    requests = []
    description = {
        "scores": {"mean": "mean of the image", "length": "letters\n of the prompt"},
        "lower_is_better": ["length"],
        "signs": ["mean"],
        "batch": 2,
        "version": "2025-09",
        "contact": "someone",
    }

    def respond(body, headers):
        if body is None:
            return 200, description
        requests.append(body)
        images = [np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))) for text in body["images"]]
        lengths = [len(prompt) for prompt in body["prompts"]]
        return 200, {"scores": {"length": lengths, "mean": [float(x.mean()) for x in images]}, "seconds": 3}

    url = serve(respond)
    reward = load_reward(f"http:{url}", FLAG)
    assert isinstance(reward, Reward)
    assert reward.meanings["length"] == f"letters of the prompt (computed at {url})"
    assert (reward.lower_is_better, reward.signs, reward.version) == (("length",), ("mean",), "2025-09")
    reward.check(PROMPTS, (4, 6))
    scores = reward.measure(IMAGES, PROMPTS)
    assert [body["prompts"] for body in requests] == [["a", "b"], ["ç", "d"], ["e"]]
    expected = np.round((IMAGES / 2 + 0.5) * 255).mean((1, 2, 3))
    np.testing.assert_allclose(scores["mean"], expected, atol=0.1)
    np.testing.assert_array_equal(scores["length"], [1] * 5)
    assert all(values.dtype == np.float32 for values in scores.values())


def test_one_score_may_come_as_a_list(serve):
    reward = load_reward(f"http:{serve(_scorer([1, 2.5, 3, 4, 5]))}", FLAG)
    np.testing.assert_array_equal(reward.measure(IMAGES, PROMPTS)["beauty"], [1, 2.5, 3, 4, 5])


def test_the_key_is_sent_and_shown_nowhere(serve, monkeypatch):
    keys = []

    def respond(body, headers):
        keys.append(headers.get("Authorization"))
        return (200, ONE) if headers.get("Authorization") == "Bearer s3cret" else (401, {"error": "no key"})

    url = serve(respond)
    _refused(lambda: load_reward(f"http:{url}", FLAG), "status 401", "no key", "SPO_JAX_HTTP_KEY")
    monkeypatch.setenv("SPO_JAX_HTTP_KEY", "wr0ng")
    assert "wr0ng" not in _refused(lambda: load_reward(f"http:{url}", FLAG), "status 401")
    monkeypatch.setenv("SPO_JAX_HTTP_KEY", "s3cret")
    reward = load_reward(f"http:{url}", FLAG)
    assert keys == [None, "Bearer wr0ng", "Bearer s3cret"]
    assert "s3cret" not in repr(reward._client.options)


def test_the_batch_is_the_smaller_one(serve, monkeypatch):
    sizes = []

    def respond(body):
        sizes.append(len(body["images"]))
        return 200, [0.5] * len(body["images"])

    monkeypatch.setenv("SPO_JAX_HTTP_BATCH", "3")
    load_reward(f"http:{serve(_scorer(respond))}", FLAG).measure(IMAGES, PROMPTS)
    assert sizes == [3, 2]


# Failures


def test_a_server_that_fails_for_a_while_is_asked_again(serve, pauses):
    """Pauses double; the scores are those of the try that succeeds."""
    answers = iter([(500, b"out of memory"), (503, b""), (429, b"slowly"), (200, [1, 2, 3, 4, 5])])
    reward = load_reward(f"http:{serve(_scorer(lambda body: next(answers)))}", FLAG)
    np.testing.assert_array_equal(reward.measure(IMAGES, PROMPTS)["beauty"], [1, 2, 3, 4, 5])
    assert pauses == [1, 2, 4]


def test_a_server_that_keeps_failing_ends_the_command(serve, pauses):
    url = serve(_scorer(lambda body: (500, b"out of\nmemory " + 500 * b"x")))
    reward = load_reward(f"http:{url}", FLAG)
    text = _refused(lambda: reward.measure(IMAGES, PROMPTS), url, "POST with status 500 (out of memory", "5 times")
    assert len(text) < 500
    assert pauses == [1, 2, 4, 8]


@pytest.mark.parametrize(
    ("status", "advice"),
    [(400, "expected status 200 with 5 finite numbers"), (404, "check its path"), (403, "SPO_JAX_HTTP_KEY")],
)
def test_what_the_server_refuses_is_not_tried_again(serve, pauses, status, advice):
    asked = []

    def respond(body):
        asked.append(body)
        return status, {"error": "not like this"}

    url = serve(_scorer(respond))
    reward = load_reward(f"http:{url}", FLAG)
    _refused(lambda: reward.measure(IMAGES, PROMPTS), url, f"status {status}", "not like this", advice)
    assert len(asked) == 1 and pauses == []


def test_a_redirect_is_not_followed(serve):
    _refused(lambda: load_reward(f"http:{serve(lambda *_: (302, b''))}", FLAG), "status 302", "expected no redirect")


def test_a_slow_server_is_not_waited_for(serve, monkeypatch, pauses):
    """Neither one that says nothing, nor one that is slow in scoring alone; a second request would not be faster."""
    slept = threading.Event()
    monkeypatch.setenv("SPO_JAX_HTTP_TIMEOUT", "1")  # enough for the description, on a busy machine too
    url = serve(_scorer(lambda body: (slept.wait(60), (200, [0.0] * 5))[1]))
    reward = load_reward(f"http:{url}", FLAG)
    start = time.monotonic()
    _refused(lambda: reward.measure(IMAGES, PROMPTS), url, "within 1 s", "SPO_JAX_HTTP_TIMEOUT", "SPO_JAX_HTTP_BATCH")
    assert time.monotonic() - start < 30 and pauses == []
    slept.set()
    silent = socket.create_server(("127.0.0.1", 0))
    with silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/score"
        _refused(lambda: load_reward(f"http:{url}", FLAG), url, "did not answer GET within 1 s")


def test_nobody_at_the_address(pauses, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/score"
    parts = ("cannot reach", url, "Connection refused", "5 times", "check that the scorer runs")
    _refused(lambda: load_reward(f"http:{url}", FLAG), *parts)
    assert pauses == [1, 2, 4, 8]
    monkeypatch.setenv("SPO_JAX_HTTP_RETRIES", "0")
    assert "times" not in _refused(lambda: load_reward(f"http:{url}", FLAG), "Connection refused")


def test_a_connection_that_breaks_off_is_tried_again(pauses, monkeypatch):
    """The server closes the connection without an answer, and once in the middle of one."""
    monkeypatch.setenv("SPO_JAX_HTTP_RETRIES", "2")
    answers = [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", b""]
    with socket.create_server(("127.0.0.1", 0)) as server:

        def close() -> None:
            for answer in answers:
                connection, _ = server.accept()
                connection.recv(2**16)
                connection.sendall(answer)
                connection.close()

        thread = threading.Thread(target=close, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/score"
        _refused(lambda: load_reward(f"http:{url}", FLAG), "cannot reach", url, "3 times")
        thread.join(60)
    assert pauses == [1, 2]


BAD_SCORES = [
    [1, 2, 3, 4],
    [1, 2, 3, 4, "5"],
    [1, 2, 3, 4, None],
    [1, 2, 3, 4, True],
    [1, 2, 3, 4, 1e300],
    {"beauty": [1, 2, 3, 4, 5]},
    {"scores": {"ugliness": [1, 2, 3, 4, 5]}},
    {"scores": {"beauty": 3}},
    "5",
    None,
]


@pytest.mark.parametrize("answer", BAD_SCORES, ids=str)
def test_scores_that_are_not_what_was_asked_for(serve, answer):
    url = serve(_scorer(answer))
    reward = load_reward(f"http:{url}", FLAG)
    _refused(lambda: reward.measure(IMAGES, PROMPTS), url, "answered", "5 finite numbers for each of ['beauty']")


@pytest.mark.parametrize("answer", [b"<html>Sign in</html>", b"", b"[NaN, 1, 2, 3, 4]", b"\xff\xfe", b'{"scores": {'])
def test_an_answer_that_is_not_json(serve, answer):
    url = serve(_scorer(answer))
    reward = load_reward(f"http:{url}", FLAG)
    _refused(lambda: reward.measure(IMAGES, PROMPTS), url, "not JSON", "5 finite numbers")


def test_an_answer_without_end_is_not_read(serve):
    url = serve(lambda *_: (200, b" " * 2**23))
    _refused(lambda: load_reward(f"http:{url}", FLAG), url, "more than 4 MiB")


BAD_DESCRIPTIONS = [
    {},
    [],
    {"scores": {}},
    {"scores": ["beauty"]},
    {"scores": {"beauty": 3}},
    {"scores": {"<b>": "a name that a page would show"}},
    {"scores": {"beauty": ""}, "lower_is_better": ["ugliness"]},
    {"scores": {"beauty": ""}, "lower_is_better": "beauty"},
    {"scores": {"beauty": ""}, "signs": ["redness"]},
    {"scores": {"beauty": ""}, "batch": 0},
    {"scores": {"beauty": ""}, "batch": "8"},
    {"scores": {"beauty": ""}, "version": 2},
]


@pytest.mark.parametrize("description", BAD_DESCRIPTIONS, ids=str)
def test_a_description_that_is_not_one(serve, description):
    url = serve(lambda *_: (200, description))
    _refused(lambda: load_reward(f"http:{url}", FLAG), url, "answered", "expected")


# What is found without the network


@pytest.mark.parametrize("url", ["", "localhost:80", "ftp://host/x", "http://", "http://host:port/", "http://a b/"])
def test_addresses_that_cannot_be_one(url):
    expected = f"--rewards = '{f'http:{url}' if url else 'http'}': expected the address of a scorer, such as http:http://localhost:8765/score"
    _refused(lambda: check_reward(f"http:{url}", FLAG), expected)


def test_a_password_in_the_address_is_refused_without_showing_it():
    text = _refused(lambda: check_reward("http:https://me:s3cret@host/score", FLAG), "SPO_JAX_HTTP_KEY")
    assert "s3cret" not in text


@pytest.mark.parametrize(
    ("name", "value"), [("TIMEOUT", "soon"), ("TIMEOUT", "nan"), ("RETRIES", "-1"), ("BATCH", "2.5"), ("KEY", "a\x07")]
)
def test_variables_that_are_out_of_range(monkeypatch, name, value):
    monkeypatch.setenv(f"SPO_JAX_HTTP_{name}", value)
    _refused(lambda: check_reward("http:http://host/score", FLAG), f"environment variable SPO_JAX_HTTP_{name}")


def test_it_cannot_judge_rollouts():
    context = Context(field="spo.reward")
    _refused(lambda: check_reward("http:http://host/score", context, judges=True), "computed on the host and cannot")


# The server of examples/


def test_the_example_is_started_and_scores(pauses):
    """By its command, on a free port."""
    command = [sys.executable, ROOT / "examples" / "reward_server.py", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            url = process.stdout.readline().split()[-1]
            reward = load_reward(f"http:{url}", FLAG)
            scores = reward.measure(IMAGES, PROMPTS)["brightness"]
            grey = np.stack([np.full((4, 6, 3), value, np.float32) for value in (-1, 0, 1)])
            np.testing.assert_allclose(reward.measure(grey, ["", "", ""])["brightness"], [0, 0.5, 1], atol=0.003)
        finally:
            process.terminate()
    assert (np.diff(scores) > 0).all()


def test_the_example_says_what_is_wrong(monkeypatch):
    spec = importlib.util.spec_from_file_location("reward_server", ROOT / "examples" / "reward_server.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    monkeypatch.setattr(example.Handler, "log_message", lambda *_: None)
    monkeypatch.setenv("SPO_JAX_HTTP_RETRIES", "0")
    server = example.ThreadingHTTPServer(("127.0.0.1", 0), example.Handler)
    monkeypatch.setattr(server, "handle_error", lambda *_: None)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/score"
    try:
        reward = load_reward(f"http:{url}", FLAG)
        client = reward._client
        _refused(lambda: client.post({"prompts": ["a"]}, "scores"), "status 400", "expected prompts and images")
        _refused(lambda: client.post({"prompts": ["a"], "images": ["AAAA"]}, "scores"), "status 400")
        monkeypatch.setattr(example, "score", lambda images, prompts: 1 / 0)
        _refused(lambda: reward.measure(IMAGES, PROMPTS), "status 500", "division by zero")
        monkeypatch.setenv("SPO_JAX_HTTP_KEY", "s3cret")
        _refused(lambda: reward.measure(IMAGES, PROMPTS), "status 401", "wrong or missing key")
        load_reward(f"http:{url}", FLAG)
    finally:
        server.shutdown()
        server.server_close()
