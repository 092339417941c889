"""The application: routes, and what guards them. The event loop never calls JAX."""

import asyncio
import contextlib
import dataclasses
import hmac
import pathlib
import urllib.parse
from collections.abc import AsyncIterator, Callable, Sequence

import anyio
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.middleware import Middleware
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nextstep_jax.errors import InputError
from nextstep_jax.generation.generated_image import GeneratedImage
from nextstep_jax.serve import replies, requests
from nextstep_jax.serve.requests import AttentionRequest, ChatRequest, DrawRequest, RequestError
from nextstep_jax.serve.worker import Event, Job, Worker
from nextstep_jax.serve.worker import Request as Wanted

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
KEEP_ALIVE_SECONDS = 15.0  # between comments on a stream on which nothing happens
_DECODING_AT_ONCE = 2  # uploads decoded side by side: each may take some 100 MB
_STATIC = pathlib.Path(__file__).parent / "static"
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


class _Form(MultiPartParser):
    spool_max_size = requests.MAX_BODY_BYTES  # uploads stay in memory


def create_app(worker: Worker, token: str | None = None, hosts: Sequence[str] = LOOPBACK) -> Starlette:
    """The application on a worker, which it starts and stops.

    Args:
      token: what clients must send as Authorization: Bearer.
      hosts: names that requests may call this server by; ("*",) for any.
    """
    api = _Api(worker)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        worker.start()
        yield
        await anyio.to_thread.run_sync(worker.stop)

    routes = [
        Route("/v1/images/generations", api.generations, methods=["POST"]),
        Route("/v1/images/edits", api.edits, methods=["POST"]),
        Route("/v1/chat/completions", api.chat, methods=["POST"]),
        Route("/v1/nextstep/attention", api.attention, methods=["POST"]),
        Route("/v1/nextstep/jobs/{id}", api.stop, methods=["DELETE"]),
        Route("/v1/nextstep/settings", api.settings, methods=["GET"]),
        Route("/v1/models", api.models, methods=["GET"]),
        Route("/queue", api.queue, methods=["GET"]),
        Route("/health", api.health, methods=["GET"]),
        *(Route(path, _file(name), methods=["GET"]) for path, name in _PAGE.items()),
    ]
    middleware = [
        Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False),
        Middleware(_Guard, token=token),
        Middleware(RequestBodyLimitMiddleware, max_body_size=requests.MAX_BODY_BYTES),
    ]
    handlers = {InputError: _on_error, HTTPException: _on_http_error, Exception: _on_failure, ClientDisconnect: _on_gone}
    return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers, lifespan=lifespan)


_PAGE = {
    "/": "index.html",
    "/static/page.js": "page.js",
    "/static/page.css": "page.css",
    "/static/icon.svg": "icon.svg",
    "/favicon.ico": "icon.svg",
}


def _file(name: str) -> Callable:
    data, kind = (_STATIC / name).read_bytes(), _TYPES[pathlib.Path(name).suffix]

    async def answer(_: Request) -> Response:
        return Response(data, media_type=kind, headers={"cache-control": "no-cache"})

    return answer


class _Guard:
    """Headers of every reply; refuses requests of other sites' pages, and those without the token."""

    def __init__(self, app: ASGIApp, token: str | None):
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        headers, refusal = Headers(scope=scope), None
        origin = headers.get("origin")
        if scope["method"] not in ("GET", "HEAD") and origin and urllib.parse.urlsplit(origin).netloc != headers.get("host"):
            refusal = RequestError("requests of other sites' pages are refused", 403, code="foreign_origin")
        elif self.token is not None and scope["path"] not in ("/health", *_PAGE):
            given = headers.get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(), self.token.encode()):
                refusal = RequestError("Authorization: Bearer TOKEN is missing or wrong", 401, code="invalid_api_key")
        await (self.app if refusal is None else _error(refusal))(scope, receive, guarded)


# --- errors -----------------------------------------------------------------------------------------------------------


def _error(error: Exception) -> JSONResponse:
    status, body = replies.error_object(error)
    return JSONResponse(body, status, headers=getattr(error, "headers", None))


async def _on_error(_: Request, error: Exception) -> Response:
    return _error(error)


async def _on_http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail = {404: "there is no such path", 405: "this path has other methods"}.get(error.status_code, error.detail)
    return _error(RequestError(detail, error.status_code, headers=error.headers))


async def _on_failure(_: Request, error: Exception) -> Response:
    return _error(RequestError("the server failed; its log says why", 500))


async def _on_gone(_: Request, error: Exception) -> Response:
    return Response(status_code=400)  # nobody reads it


# --- routes -----------------------------------------------------------------------------------------------------------


class _Api:
    def __init__(self, worker: Worker):
        self.worker, self.pipeline = worker, worker.pipeline
        self._decoding = anyio.CapacityLimiter(_DECODING_AT_ONCE)

    async def generations(self, request: Request) -> Response:
        fields = requests.read_json(await _body(request, "application/json"))
        return await self._answer(request, requests.draw_request(self.pipeline, fields))

    async def edits(self, request: Request) -> Response:
        _require_type(request, "multipart/form-data")
        limits = {"max_files": requests.MAX_UPLOADS, "max_fields": 60, "max_part_size": 1 << 20}
        try:
            form = await _Form(request.headers, request.stream(), **limits).parse()
        except MultiPartException as error:
            raise RequestError(f"the form cannot be read: {error.message}", code="invalid_form") from error
        except (ValueError, KeyError, LookupError) as error:  # a charset or a boundary that does not exist
            raise RequestError("the form cannot be read", code="invalid_form") from error
        try:
            texts: list[tuple[str, str]] = []
            uploads: list[bytes] = []
            for name, value in form.multi_items():
                if isinstance(value, str):
                    texts.append((name, value))
                elif name in ("image", "image[]"):
                    uploads.append(await _read(value, len(uploads)))
                else:
                    known = "mask is not supported" if name == "mask" else "files are expected in image or image[]"
                    raise RequestError(f"{known}, found {name!r:.100}", param=name[:100])
        finally:
            await form.close()
        if not uploads:
            raise RequestError("an edit needs at least one file in image", param="image")
        fields = requests.read_form(texts)
        make = await anyio.to_thread.run_sync(requests.draw_request, self.pipeline, fields, uploads, limiter=self._decoding)
        return await self._answer(request, make)

    async def chat(self, request: Request) -> Response:
        fields = requests.read_json(await _body(request, "application/json"))
        make = await anyio.to_thread.run_sync(requests.chat_request, self.pipeline, fields, limiter=self._decoding)
        return await self._answer(request, make)

    async def attention(self, request: Request) -> Response:
        fields = requests.read_json(await _body(request, "application/json"))
        image = self.worker.kept.get(requests.image_id(fields))
        return await self._answer(request, AttentionRequest(image))

    async def stop(self, request: Request) -> Response:
        job = self.worker.find(request.path_params["id"])
        if job is None:
            raise RequestError("no such job waits or runs", 404)
        self.worker.cancel(job)
        return JSONResponse({"id": job.id, "stopped": True})

    async def settings(self, _: Request) -> Response:
        drawing, editing = (dataclasses.asdict(self.pipeline.settings(edit=edit)) for edit in (False, True))
        about = {"model": self.pipeline.name, "token_pixels": self.pipeline.token_pixels}
        return JSONResponse(about | {"generate": drawing, "edit": editing})

    async def models(self, _: Request) -> Response:
        model = {"id": self.pipeline.name, "object": "model", "created": 0, "owned_by": "nextstep_jax"}
        return JSONResponse({"object": "list", "data": [model]})

    async def queue(self, _: Request) -> Response:
        return JSONResponse(self.worker.counts())

    async def health(self, _: Request) -> Response:
        ready = self.worker.ready
        return JSONResponse({"status": "ready" if ready else "compiling"}, 200 if ready else 503)

    # --- jobs -----------------------------------------------------------------------------------------------------------

    async def _answer(self, request: Request, wanted: Wanted) -> Response:
        """Queue a job, and reply with its events or its results. A client that leaves takes its job along."""
        events: asyncio.Queue[Event] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def send(event: Event) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(events.put_nowait, event)

        job = Job(wanted, send)
        self.worker.submit(job)
        gone = asyncio.create_task(self._stop_when_gone(request, job))
        if wanted.stream:
            headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
            return StreamingResponse(self._stream(job, events, gone), media_type="text/event-stream", headers=headers)
        try:
            while True:
                name, values = await events.get()
                if name == "failed":
                    raise replies.as_error(values["error"])
                if name == "done":
                    results = values["results"]
                    if isinstance(wanted, AttentionRequest):
                        reply = replies.attention_reply(results)
                    elif isinstance(wanted, DrawRequest):
                        reply = await anyio.to_thread.run_sync(replies.images_reply, wanted, results, values["ids"])
                    else:
                        reply = await anyio.to_thread.run_sync(replies.chat_reply, job, wanted, self.pipeline.name, results)
                    return JSONResponse(reply, headers={"cache-control": "no-store"})
        finally:
            gone.cancel()
            self.worker.cancel(job)

    async def _stop_when_gone(self, request: Request, job: Job) -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass  # what is left of a body that nobody reads
        self.worker.cancel(job)

    async def _stream(self, job: Job, events: asyncio.Queue[Event], gone: asyncio.Task) -> AsyncIterator[str]:
        chat = _ChatEvents(job, job.request, self.pipeline.name) if isinstance(job.request, ChatRequest) else None
        try:
            name = ""
            while name not in ("done", "failed"):
                try:
                    name, values = await asyncio.wait_for(events.get(), KEEP_ALIVE_SECONDS)
                except TimeoutError:
                    yield ": waiting\n\n"
                    continue
                if chat is not None:
                    text = await anyio.to_thread.run_sync(chat, name, values)
                elif name in ("partial", "done"):
                    assert isinstance(job.request, DrawRequest)
                    text = await anyio.to_thread.run_sync(replies.image_events, job, job.request, name, values)
                else:
                    assert isinstance(job.request, DrawRequest)
                    text = replies.image_events(job, job.request, name, values)
                if text:
                    yield text
        finally:
            gone.cancel()
            self.worker.cancel(job)


class _ChatEvents:
    """Events of the worker as those of a chat stream; own events only for clients that asked for them (`tokens`)."""

    def __init__(self, job: Job, request: ChatRequest, model: str):
        self._job, self._request, self._model, self._deltas = job, request, model, replies.TextDeltas()

    def __call__(self, name: str, values: dict) -> str:
        if name == "text":
            delta = self._deltas(values["text"])
            return replies.chat_chunk(self._job, self._model, delta) if delta else ""
        if name == "part" and isinstance(values["part"], GeneratedImage):
            return replies.chat_chunk(self._job, self._model, [replies.chat_part(values["part"])])
        if name == "part":
            delta = self._deltas(values["part"])
            self._deltas.end()
            return replies.chat_chunk(self._job, self._model, delta) if delta else ""
        if name == "done":
            return replies.chat_chunk(self._job, self._model, None, "stop") + replies.sse("[DONE]")
        if name == "failed" or self._request.tokens:
            return replies.own_event(self._job, name, values)
        return ""


# --- bodies -----------------------------------------------------------------------------------------------------------


def _require_type(request: Request, kind: str) -> None:
    found = request.headers.get("content-type", "")
    if found.partition(";")[0].strip().lower() != kind:
        raise RequestError(f"content-type must be {kind}, found {found[:100] or 'none'}", 415)


async def _body(request: Request, kind: str) -> bytes:
    _require_type(request, kind)
    return await request.body()


async def _read(upload: UploadFile, index: int) -> bytes:
    data = await upload.read(requests.MAX_UPLOAD_BYTES + 1)
    return requests.read_upload(data, f"image {index}")
