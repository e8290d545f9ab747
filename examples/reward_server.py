"""A scorer for the reward ``http``: run it where the judge fits, and replace `SCORES` and `score` by the judge.

    python examples/reward_server.py --port 8765
    python -m spo_jax.train --config=toy --out=runs/scored --config.eval.rewards=http:http://localhost:8765/score

It needs nothing but Pillow. The protocol is in ``spo_jax/rewards/http.py``. If the environment variable
SPO_JAX_HTTP_KEY is set, requests have to bring the same key. HPSv3 (a GPU with 20 GB, in an environment of its own:
``pip install hpsv3 "transformers<4.50"``) is this, in the place of what is below:

    from hpsv3 import HPSv3RewardInferencer
    model = HPSv3RewardInferencer(device="cuda")
    SCORES = {"hpsv3": "human preference as HPSv3 predicts it (its mean)"}
    def score(images, prompts):
        return {"hpsv3": [float(reward[0]) for reward in model.reward(prompts=prompts, image_paths=images)]}
"""

import argparse
import base64
import hmac
import io
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image, ImageStat

SCORES = {"brightness": "mean brightness, 0 to 1"}
LOWER_IS_BETTER = []
BATCH = 16  # images in a request, at most
VERSION = "1"  # another one for another judge: evaluations then compute the scores that they keep again


def score(images: list[Image.Image], prompts: list[str]) -> dict[str, list[float]]:
    """Returns one number per image for every name in `SCORES`; each image is judged for its prompt."""
    return {"brightness": [ImageStat.Stat(image.convert("L")).mean[0] / 255 for image in images]}


class Handler(BaseHTTPRequestHandler):
    """Answers GET with what is scored, and POST with the scores of images."""

    protocol_version = "HTTP/1.1"  # connections stay open between batches
    one_at_a_time = threading.Lock()

    def do_GET(self):
        """Describes the scorer."""
        if self._is_allowed():
            facts = {"scores": SCORES, "lower_is_better": LOWER_IS_BETTER, "batch": BATCH, "version": VERSION}
            self._answer(200, facts)

    def do_POST(self):
        """Scores images."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not self._is_allowed():
            return
        try:
            request = json.loads(body)
            images = [Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB") for text in request["images"]]
            prompts = [str(prompt) for prompt in request["prompts"]]
        except (KeyError, TypeError, ValueError, OSError) as error:
            self._answer(400, {"error": f"expected prompts and images: {error!r}"})
            return
        try:
            with self.one_at_a_time:
                self._answer(200, {"scores": score(images, prompts)})
        except Exception as error:
            self._answer(500, {"error": repr(error)})
            raise

    def _is_allowed(self) -> bool:
        expected = f"Bearer {os.environ['SPO_JAX_HTTP_KEY']}" if os.environ.get("SPO_JAX_HTTP_KEY") else ""
        allowed = not expected or hmac.compare_digest(self.headers.get("Authorization", ""), expected)
        if not allowed:
            self._answer(401, {"error": "wrong or missing key"})
        return allowed

    def _answer(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 for other machines, with a key"
    )
    parser.add_argument("--port", type=int, default=8765)
    arguments = parser.parse_args()
    server = ThreadingHTTPServer((arguments.host, arguments.port), Handler)
    print(f"scoring at http://{arguments.host}:{server.server_port}/score", flush=True)
    server.serve_forever()
