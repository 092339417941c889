"""Data that every stage can train on, and programs compiled once for all runs."""

import http.server
import json
import pathlib
import threading
import time
import zlib

import jax
import numpy as np
import pytest


@pytest.fixture(scope="session")
def compilations(tmp_path_factory):
    """A folder of compiled programs."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def shared_compilations(compilations):
    """Most runs differ in what the compiled step does not see: they share it. Modules of runs use this fixture."""
    jax.config.update("jax_compilation_cache_dir", str(compilations))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    yield
    jax.config.update("jax_compilation_cache_dir", None)


class Listener(http.server.ThreadingHTTPServer):
    """Where a webhook leads to.

    Attributes:
      messages, paths: what was posted, and where to.
      trouble: what the server does instead of answering well.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Post)
        self.messages, self.paths, self.trouble = [], [], ""


class _Post(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.server.messages.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.server.paths.append(self.path)
        trouble = self.server.trouble
        if trouble == "is silent":
            time.sleep(1)
            return
        self.send_response({"fails": 500, "redirects": 302}.get(trouble, 200))
        self.send_header("Location", f"http://127.0.0.1:{self.server.server_port}/elsewhere")
        self.end_headers()
        for _ in range(20 if trouble == "trickles" else 0):
            self.wfile.write(b"x")
            time.sleep(0.05)

    do_GET = do_POST

    def log_message(self, *_): ...


@pytest.fixture
def listener(monkeypatch):
    """A server whose address the environment variable HOOK holds."""
    server = Listener()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HOOK", f"http://127.0.0.1:{server.server_port}/services/secret?key=x")
    yield server
    server.shutdown()
    server.server_close()


def metric_lines(workdir: pathlib.Path) -> list[dict]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def untimed(line):
    """A line of metrics without what the clock says."""
    return {name: value for name, value in line.items() if "second" not in name and name != "goodput"}


def fake_latents(pixels: np.ndarray) -> np.ndarray:
    """[B, height, width, 3] in [-1, 1] to [B, h, w, 16]: random features of the mean colors of 8x8 blocks, normalized."""
    blocks = pixels.reshape(len(pixels), pixels.shape[1] // 8, 8, pixels.shape[2] // 8, 8, 3).mean((2, 4))
    features = blocks @ np.random.default_rng(0).normal(size=(3, 16)) + 0.1
    features -= features.mean(-1, keepdims=True)
    return (features / np.sqrt(np.square(features).mean(-1, keepdims=True) + 1e-6)).astype(np.float32)


@pytest.fixture(scope="session")
def shapes_data(tmp_path_factory):
    """A folder with the datasets pair, caption, edit, thinking, interleaved, candidates and self_cot: a few shapes as latents.

    Of four candidates the one with the largest first channel is the best.
    """
    from nextstep_jax.data import records, shards
    from nextstep_jax.data.build import build
    from nextstep_jax.data.encode import encode
    from nextstep_jax.data.sources import open_source

    root = tmp_path_factory.mktemp("shapes_data")
    for kind in ("pair", "caption", "edit", "thinking", "interleaved"):
        build(open_source(f"shapes:{kind}:train:24"), root / "pixels" / kind)
        encode(root / "pixels" / kind, fake_latents, root / kind, area=64)
    pairs = shards.ArrayRecordSource(root / "pair")
    for name, thinking in (("candidates", ()), ("self_cot", ("<|begin_of_thinking|>a red circle<|end_of_thinking|>",))):
        preferences = []
        for index in range(24):
            texts = [records.TextPart(text, loss=False) for text in (pairs[index].texts[0].text, *thinking)]
            images = [pairs[(index + i) % 24].images[0] for i in range(4)]
            scores = [float(image.latents()[..., 0].astype(np.float32).mean()) for image in images]
            preferences.append(records.Sample((*texts, *images), "preference", str(index), metadata={"scores": scores}))
        (root / name).mkdir()
        shard = shards.write_shard(root / name / shards.shard_name(0), map(records.pack, preferences))
        shards.write_index(root / name, name, [shard], images=96, kinds={"preference": 24}, latents={"area": 64})
    return root


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory):
    """A checkpoint folder with nothing but a small image tokenizer of arbitrary weights."""
    import jax.numpy as jnp

    from nextstep_jax import checkpoints
    from nextstep_jax.config import ImageTokenizerConfig
    from nextstep_jax.models.image_tokenizer import ImageTokenizer

    config = ImageTokenizerConfig(
        resolution=64,
        channels=32,
        channel_multipliers=(1,),
        blocks_per_level=1,
        stem_patch=8,
        normalize=True,
        normalize_patch=2,
    )
    shapes = jax.eval_shape(ImageTokenizer(config).init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))["params"]

    def draw(path, leaf):
        rng = np.random.default_rng(zlib.crc32(jax.tree_util.keystr(path).encode()))
        return rng.normal(size=leaf.shape).astype(np.float32) * 0.1

    folder = tmp_path_factory.mktemp("tokenizer") / "checkpoint"
    params = jax.tree_util.tree_map_with_path(draw, shapes)
    checkpoints.save_params(folder, {"image_tokenizer": params}, {"model": None, "image_tokenizer": config.to_released()})
    return folder
