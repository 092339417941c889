"""Downloads from a stand-in of the hub on this machine, reached through HF_ENDPOINT."""

import hashlib
import http.server
import importlib
import json
import pathlib
import re
import shutil
import sys
import threading

import pytest

from nextstep_jax import checkpoints
from nextstep_jax.conversion import convert, hub
from nextstep_jax.errors import InputError
from tests.conftest import GOLDENS
from tests.conversion.folders import write_tokenizer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.ThreadingHTTPServer):
    """Serves folders as repositories: `repositories["org/name"] = folder`."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, pathlib.Path] = {}
        self.commit = COMMIT
        self.requests: list[tuple[str, str, str | None]] = []  # method, path, range
        self.cut_after: dict[str, int] = {}  # file -> bytes of its content after which the connection breaks

    def fetched(self) -> set[str]:
        """The files whose content was asked for."""
        return {path.split("/", 5)[-1] for method, path, _ in self.requests if method == "GET" and "/resolve/" in path}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        """Keep the test's output quiet."""

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        self.server.requests.append((self.command, self.path, self.headers.get("Range")))
        path = self.path.split("?")[0]
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self.describe(match[1], match[2] or "main", with_body)
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.file(match[1], match[3], with_body)
        else:
            self.send(404, {}, b"")

    def describe(self, repository: str, revision: str, with_body: bool) -> None:
        folder = self.server.repositories.get(repository)
        if folder is None or revision not in ("main", "v2", COMMIT):
            code = "RepoNotFound" if folder is None else "RevisionNotFound"
            return self.send(404, {"X-Error-Code": code}, b"{}")
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        siblings = [{"rfilename": str(path.relative_to(folder)), "size": path.stat().st_size, "blobId": "0"} for path in files]
        body = json.dumps({"id": repository, "sha": self.server.commit, "siblings": siblings}).encode()
        self.send(200, {"Content-Type": "application/json"}, body if with_body else b"")

    def file(self, repository: str, name: str, with_body: bool) -> None:
        path = self.server.repositories.get(repository, pathlib.Path("/nowhere")) / name
        if not path.is_file():
            return self.send(404, {"X-Error-Code": "EntryNotFound"}, b"")
        data = path.read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        if start >= len(data):
            return self.send(416, {}, b"")
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self.send(206 if start else 200, headers, data[start:] if with_body else b"", len(data) - start)

    def send(self, status: int, headers: dict[str, str], body: bytes, length: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        limit = self.server.cut_after.get(self.path.split("/", 5)[-1])
        self.wfile.write(body[:limit])
        if limit is not None and body:
            self.close_connection = True


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The stand-in, with huggingface_hub imported afresh so that it reads HF_ENDPOINT."""
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    kept = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "huggingface_hub"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        patch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
        patch.delenv("HF_HUB_OFFLINE", raising=False)
        importlib.import_module("huggingface_hub")
        yield server
    for name in [name for name in sys.modules if name.split(".")[0] == "huggingface_hub"]:
        del sys.modules[name]
    sys.modules.update(kept)
    server.shutdown()
    server.server_close()


@pytest.fixture
def standin(server, request) -> Hub:
    """The stand-in without memories; each test uses an organization of its own."""
    server.repositories.clear()
    server.requests.clear()
    server.cut_after.clear()
    server.org = "org-" + hashlib.sha256(request.node.name.encode()).hexdigest()[:8]
    return server


@pytest.fixture
def repository(standin, released) -> pathlib.Path:
    """The released folder as the repository ORG/NextStep-1.1, with code and pictures beside it."""
    (released / "models").mkdir()
    for name in ("models/nextstep_model.py", "vae/nextstep_ae.py", "README.md", "demo.png", "pytorch_model.bin"):
        (released / name).write_text("raise SystemExit")
    shutil.copy(released / "vae/checkpoint.safetensors", released / "vae/checkpoint.pt")
    write_tokenizer(released)
    standin.repositories[f"{standin.org}/NextStep-1.1"] = released
    return released


def test_a_repository_converts_like_its_folder(standin, repository, tmp_path):
    said = []
    result = convert(f"{standin.org}/NextStep-1.1", tmp_path / "out", log=said.append)
    assert result.warnings == ()
    convert(repository, tmp_path / "local")
    digests = [json.loads((tmp_path / name / "manifest.json").read_text())["leaves"] for name in ("out", "local")]
    assert digests[0] == digests[1]
    found, expected = (checkpoints.load_config(tmp_path / name) for name in ("out", "local"))
    assert found["source"].pop("from") == f"{standin.org}/NextStep-1.1@{COMMIT}" != expected["source"].pop("from")
    assert found == expected
    assert standin.fetched() == {
        *("config.json", "model.safetensors", "tokenizer.json", "vae/config.json", "vae/checkpoint.safetensors")
    }
    size = sum((repository / file).stat().st_size for file in standin.fetched())
    assert said == [f"downloading 5 files, {size / 1e9:.2f} GB, of {standin.org}/NextStep-1.1@{COMMIT}"]


def test_a_second_conversion_downloads_nothing(standin, repository, tmp_path):
    name, said = f"{standin.org}/NextStep-1.1", []
    first = hub.download(name, said.append)
    standin.requests.clear()
    assert hub.download(name, said.append) == first
    assert standin.fetched() == set() and len(said) == 1


def content_requests(standin) -> list[int]:
    """From which byte each request for the model's weights started."""
    found = [where for method, path, where in standin.requests if method == "GET" and path.endswith("/model.safetensors")]
    return [int(where.removeprefix("bytes=").removesuffix("-")) for where in found]


def test_a_broken_connection_is_resumed(standin, repository):
    """Every answer breaks off after 300,000 bytes; each next request asks for what is missing."""
    standin.cut_after["model.safetensors"] = 300_000
    folder = hub.download(f"{standin.org}/NextStep-1.1", lambda line: None).folder
    assert content_requests(standin) == list(range(0, (folder / "model.safetensors").stat().st_size, 300_000))
    assert (folder / "model.safetensors").read_bytes() == (repository / "model.safetensors").read_bytes()


def test_an_interrupted_process_is_resumed(standin, repository, tmp_path, monkeypatch):
    """The first process ends in the middle of a file; the second one continues it and refetches nothing."""
    monkeypatch.setattr(hub, "ATTEMPTS", 1)
    monkeypatch.setattr(hub.time, "sleep", lambda seconds: (_ for _ in ()).throw(KeyboardInterrupt))
    standin.cut_after["model.safetensors"] = 300_000
    name, said = f"{standin.org}/NextStep-1.1", []
    with pytest.raises(KeyboardInterrupt):
        convert(name, tmp_path / "out", log=said.append)
    assert not (tmp_path / "out").exists()
    standin.cut_after.clear()
    standin.requests.clear()
    folder = hub.download(name, said.append).folder
    assert content_requests(standin) == [300_000]
    assert "config.json" not in standin.fetched()
    assert "already here" in said[1] and "already here" not in said[0]
    assert (folder / "model.safetensors").read_bytes() == (repository / "model.safetensors").read_bytes()
    assert not list(folder.rglob("*.part"))


def test_a_server_that_never_answers_whole(standin, repository, monkeypatch):
    monkeypatch.setattr(hub.time, "sleep", lambda seconds: None)
    standin.cut_after["model.safetensors"] = 0
    with pytest.raises(InputError, match=standin.org):
        hub.download(f"{standin.org}/NextStep-1.1", lambda line: None)
    assert content_requests(standin) == [0] * hub.ATTEMPTS


def test_a_damaged_part_is_found_and_thrown_away(standin, repository, monkeypatch):
    name = f"{standin.org}/NextStep-1.1"
    folder = hub.download(name, lambda line: None).folder
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.part").write_bytes(b"x" * 1000)
    with pytest.raises(InputError, match=r"model\.safetensors arrived damaged"):
        hub.download(name, lambda line: None)
    hub.download(name, lambda line: None)
    assert (folder / "model.safetensors").read_bytes() == (repository / "model.safetensors").read_bytes()


def test_what_the_library_has_cached_is_not_fetched_again(standin, repository):
    import huggingface_hub

    name = f"{standin.org}/NextStep-1.1"
    huggingface_hub.hf_hub_download(name, "model.safetensors", revision=COMMIT)
    standin.requests.clear()
    folder = hub.download(name, lambda line: None).folder
    assert "model.safetensors" not in standin.fetched()
    assert (folder / "model.safetensors").read_bytes() == (repository / "model.safetensors").read_bytes()


def test_everything_comes_from_one_commit(standin, repository):
    hub.download(f"{standin.org}/NextStep-1.1@v2", lambda line: None)
    assert [path for _, path, _ in standin.requests if "/api/" in path][0].split("?")[0].endswith("/revision/v2")
    assert {path.split("/")[4] for _, path, _ in standin.requests if "/resolve/" in path} == {COMMIT}


def test_the_image_tokenizer_of_the_sibling_repository(standin, repository, tmp_path):
    sibling = tmp_path / "sibling"
    (repository / "vae").rename(sibling)
    standin.repositories[f"{standin.org}/{hub.SIBLING}"] = sibling
    convert(f"{standin.org}/NextStep-1.1", tmp_path / "out", log=lambda line: None)
    source = checkpoints.load_config(tmp_path / "out")["source"]
    assert source["image_tokenizer_from"] == f"{standin.org}/{hub.SIBLING}@{COMMIT}"
    assert "image_tokenizer" in checkpoints.abstract_params(tmp_path / "out")
    standin.requests.clear()
    convert(f"{standin.org}/NextStep-1.1", tmp_path / "given", vae=sibling, log=lambda line: None)
    assert not any(hub.SIBLING in path for _, path, _ in standin.requests)


def test_a_repository_without_any_image_tokenizer(standin, repository, tmp_path):
    shutil.rmtree(repository / "vae")
    result = convert(f"{standin.org}/NextStep-1.1", tmp_path / "out", log=lambda line: None)
    assert len(result.warnings) == 1 and "no image tokenizer" in result.warnings[0]


def test_the_image_tokenizer_repository_itself(standin, tmp_path):
    folder = shutil.copytree(GOLDENS / "tiny_vae", tmp_path / "vae")
    standin.repositories[f"{standin.org}/{hub.SIBLING}"] = folder
    convert(f"{standin.org}/{hub.SIBLING}", tmp_path / "out", log=lambda line: None)
    assert checkpoints.load_config(tmp_path / "out")["model"] is None
    assert standin.fetched() == {"config.json", "checkpoint.safetensors"}


def test_shards_named_by_the_index(standin, repository):
    (repository / "model.safetensors").rename(repository / "model-00001-of-00001.safetensors")
    index = {"weight_map": {"norm.weight": "model-00001-of-00001.safetensors"}}
    (repository / "model.safetensors.index.json").write_text(json.dumps(index))
    shutil.copy(repository / "vae/checkpoint.safetensors", repository / "model-00009-of-00009.safetensors")
    hub.download(f"{standin.org}/NextStep-1.1", lambda line: None)
    shards = {file for file in standin.fetched() if file.startswith("model-")}
    assert shards == {"model-00001-of-00001.safetensors"}


@pytest.mark.parametrize(
    ("shard", "message"),
    [("../../escape.safetensors", "not a file of its own folder"), ("model-2.safetensors", "lacks model-2.safetensors")],
)
def test_a_hostile_index(standin, repository, shard, message):
    (repository / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(InputError, match=message):
        hub.download(f"{standin.org}/NextStep-1.1", lambda line: None)


def test_a_revision_that_is_a_path(standin, repository, monkeypatch):
    monkeypatch.setattr(standin, "commit", "../../../escape")
    with pytest.raises(InputError, match="no commit"):
        hub.download(f"{standin.org}/NextStep-1.1", lambda line: None)


@pytest.mark.parametrize("name", ["{org}/Nothing", "{org}/NextStep-1.1@v9"])
def test_names_that_the_hub_does_not_know(standin, repository, tmp_path, name):
    with pytest.raises(InputError) as caught:
        convert(name.format(org=standin.org), tmp_path / "out", log=lambda line: None)
    assert standin.org in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_without_huggingface_hub(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"org/name: no such folder; to fetch it from the hub, install nextstep_jax\[hub\]"):
        convert("org/name", tmp_path / "out")


def test_what_could_be_a_repository():
    for name in ("org/name", "stepfun-ai/NextStep-1.1", "a/b@main", "a/b@refs/pr/1", f"a/b@{COMMIT}"):
        assert hub.is_name(name)
    for name in ("name", "./name", "../a/b", "a/b/c", "/a/b", "a/b@", "a/../b", "a b/c", "a/b@-x", ""):
        assert not hub.is_name(name)
