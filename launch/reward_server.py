"""Serve a Python function as a reward: what a `--reward http://…` or `config.rewards.NAME.reward` asks.

    python -m nextstep_jax.launch.reward_server --function my_rewards:pick_score --port 8001

`my_rewards.py` is yours and may hold any model; this program only speaks HTTP (nextstep_jax/rewards/endpoint.py says how). The
function takes a list of `RewardRequest`s (prompt, image [height, width, 3] uint8, metadata) and returns a dict of numbers for
each, "reward" among them, or None for an image that it cannot score. It is called once at a time. docs/training.md has
functions for PickScore, ImageReward and HPSv2.

The address is the loopback interface's unless --host says otherwise: the server asks nobody for a password.
"""

import base64
import binascii
import http.server
import importlib
import json
import logging
import sys
import threading
from collections.abc import Callable, Sequence

import click
import numpy as np

from nextstep_jax.data import images
from nextstep_jax.errors import InputError
from nextstep_jax.rewards.protocol import RewardRequest, Score

logger = logging.getLogger(__name__)

MAX_BODY = 256 << 20  # bytes
SLOW = 60.0  # seconds without a byte before a client is given up

Function = Callable[[Sequence[RewardRequest]], list[Score | None]]


def parse_requests(body: bytes) -> list[RewardRequest]:
    """The requests of a body. InputError for one that is not what `rewards.endpoint` sends."""
    try:
        entries = json.loads(body)["requests"]
        return [
            RewardRequest(
                str(entry["prompt"]),
                _pixels(entry["image"]),
                dict(entry.get("metadata") or {}),
                [_pixels(source) for source in entry.get("sources") or ()],
            )
            for entry in entries
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, binascii.Error) as error:
        raise InputError(f"expected requests with a prompt and a base64 image ({error!r:.200})") from error


def _pixels(encoded: str) -> np.ndarray:
    return np.asarray(images.load(base64.b64decode(encoded, validate=True), "image"))


def make_server(function: Function, host: str = "127.0.0.1", port: int = 0) -> http.server.ThreadingHTTPServer:
    """A server that scores with `function`, not yet serving; port 0 takes a free one."""
    one_at_a_time = threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = SLOW

        def do_POST(self) -> None:
            length = self.headers.get("Content-Length", "")
            if not length.isdigit() or int(length) > MAX_BODY:
                self.close_connection = True
                return self.reply(413, {"error": f"expected a body of at most {MAX_BODY} bytes"})
            try:
                requests = parse_requests(self.rfile.read(int(length)))
            except InputError as error:
                return self.reply(400, {"error": str(error)})
            try:
                with one_at_a_time:
                    scores = function(requests)
            except Exception:  # whatever a user's model raises: the client tries again
                logger.exception("%d images could not be scored", len(requests))
                return self.reply(500, {"error": "the function failed, see the server's log"})
            self.reply(200, {"scores": scores})

        def reply(self, status: int, answer: dict) -> None:
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments) -> None:
            logger.debug(format, *arguments)

    return http.server.ThreadingHTTPServer((host, port), Handler)


@click.command(help=__doc__)
@click.option("--function", "spelling", required=True, metavar="MODULE:FUNCTION", help="What scores.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=8001, show_default=True)
def main(spelling: str, host: str, port: int) -> None:
    logging.basicConfig(level=logging.INFO)
    module, _, name = spelling.partition(":")
    sys.path.insert(0, "")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        print(f"error: --function {spelling}: cannot be imported ({error})", file=sys.stderr)
        sys.exit(2)
    with make_server(function, host, port) as server:
        print(f"scoring at http://{host}:{server.server_port}/score", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
