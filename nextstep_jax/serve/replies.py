"""Results and events as clients read them: OpenAI's objects, with the image's record as `nextstep` beside each.

A stream is server-sent events. Their names are OpenAI's (image_generation.*, image_edit.*, or chat chunks without a name), and
nextstep.{queued,started,thinking,token,text} for what OpenAI has no word for.
"""

import base64
import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from nextstep_jax.data.image_output import encode_image
from nextstep_jax.errors import InputError
from nextstep_jax.generation.generated_image import GeneratedImage
from nextstep_jax.generation.word_attention import WordAttention, contrast
from nextstep_jax.serve.requests import FORMATS, ChatRequest, DrawRequest, RequestError
from nextstep_jax.serve.worker import Job

TYPES = {400: "invalid_request_error", 401: "authentication_error", 429: "rate_limit_error"}


def error_object(error: Exception) -> tuple[int, dict[str, Any]]:
    """HTTP status and OpenAI's object of an error that the client can act on."""
    status = error.status if isinstance(error, RequestError) else 400
    param, code = (error.param, error.code) if isinstance(error, RequestError) else (None, None)
    kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return status, {"error": {"message": str(error), "type": kind, "param": param, "code": code}}


def sse(data: dict[str, Any] | str, name: str | None = None) -> str:
    """One server-sent event."""
    text = data if isinstance(data, str) else json.dumps(data)
    return (f"event: {name}\n" if name else "") + f"data: {text}\n\n"


# --- images -----------------------------------------------------------------------------------------------------------


def images_reply(request: DrawRequest, images: Sequence[GeneratedImage], ids: Sequence[str | None]) -> dict[str, Any]:
    """The reply to a request for images that is not streamed; `ids` of those whose attention can be asked for."""
    data = [
        {"b64_json": _base64(request, image), "nextstep": image.record, "nextstep_id": id}
        for image, id in zip(images, ids, strict=True)
    ]
    return {"created": int(time.time()), "data": data, "usage": _usage(request, len(images)), **_about(request, images[0])}


def image_events(job: Job, request: DrawRequest, name: str, values: dict[str, Any]) -> str:
    """An event of the worker as those of an images stream."""
    stream = "image_edit" if request.sources else "image_generation"
    if name == "partial":
        b64 = base64.b64encode(encode_image(values["pixels"], FORMATS[request.output_format], quality=request.quality)).decode()
        height, width = values["pixels"].shape[:2]
        about = {"b64_json": b64, "partial_image_index": values["index"], "index": values["image"]}
        about |= _described(request, width, height)
        return _named(f"{stream}.partial_image", about | {"created_at": int(time.time())})
    if name == "done":
        events = []
        for j, (image, id) in enumerate(zip(values["results"], values["ids"], strict=True)):
            about = {"b64_json": _base64(request, image), "index": j, "created_at": int(time.time()), "nextstep_id": id}
            about |= {"usage": _usage(request, 1), "nextstep": image.record} | _about(request, image)
            events.append(_named(f"{stream}.completed", about))
        return "".join(events)
    if name == "queued":
        return _named("nextstep.queued", {"id": job.id, "unfamiliar": list(request.unfamiliar)} | values)
    return own_event(job, name, values)


def own_event(job: Job, name: str, values: dict[str, Any]) -> str:
    """The events that images and chat share."""
    if name == "queued":
        return _named("nextstep.queued", {"id": job.id} | values)
    if name == "started":
        return _named("nextstep.started", {"id": job.id, "tokens": values["h"] * values["w"]} | values)
    if name == "tokens":
        return _named("nextstep.token", values | {"rgb": base64.b64encode(values["rgb"]).decode()})
    if name == "failed":
        return _named("nextstep.error", error_object(values["error"])[1])
    return _named(f"nextstep.{name}", values)


def _named(name: str, values: dict[str, Any]) -> str:
    return sse({"type": name} | values, name)


def _described(request: DrawRequest, width: int, height: int) -> dict[str, Any]:
    size = {"size": f"{width}x{height}", "output_format": request.output_format}
    return size | {"quality": "auto", "background": "opaque"}


def _about(request: DrawRequest, image: GeneratedImage) -> dict[str, Any]:
    return _described(request, image.pixels.shape[1], image.pixels.shape[0])


def _base64(request: DrawRequest, image: GeneratedImage) -> str:
    data = encode_image(image.pixels, FORMATS[request.output_format], image.record, quality=request.quality)
    return base64.b64encode(data).decode()


def _usage(request: DrawRequest, count: int) -> dict[str, Any]:
    read, drawn = request.text_tokens + request.image_tokens, request.h * request.w * count
    details = {"text_tokens": request.text_tokens, "image_tokens": request.image_tokens}
    return {"input_tokens": read, "output_tokens": drawn, "total_tokens": read + drawn, "input_tokens_details": details}


# --- attention --------------------------------------------------------------------------------------------------------


def attention_reply(attention: WordAttention) -> dict[str, Any]:
    """Words, and in base64 their weights [W, n] as little-endian float32 and what is shown of them as uint8."""
    shown = np.round(255 * contrast(attention.weights)).astype(np.uint8)
    weights = attention.weights.astype("<f4")
    as_text = {"shown": shown, "weights": weights}
    return {"words": attention.words} | {name: base64.b64encode(a.tobytes()).decode() for name, a in as_text.items()}


# --- chat -------------------------------------------------------------------------------------------------------------


def chat_reply(job: Job, request: ChatRequest, model: str, parts: Sequence[str | GeneratedImage]) -> dict[str, Any]:
    """The reply to a chat request that is not streamed; its content is a list of parts where images were asked for."""
    content = [chat_part(part) for part in parts] if request.draws else str(parts[0])
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    return _chat(job, model, "chat.completion") | {"choices": [choice]}


def chat_chunk(job: Job, model: str, content: Any, finish: str | None = None) -> str:
    """One chunk of a streamed chat: text, a list with an image, or None at the end."""
    delta = {} if content is None else {"role": "assistant", "content": content}
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return sse(_chat(job, model, "chat.completion.chunk") | {"choices": [choice]})


def chat_part(part: str | GeneratedImage) -> dict[str, Any]:
    """A text or an image as a part of a message's content."""
    if isinstance(part, str):
        return {"type": "text", "text": part}
    data = base64.b64encode(encode_image(part.pixels, "PNG", part.record)).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}, "nextstep": part.record}


def _chat(job: Job, model: str, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{job.id}", "object": kind, "created": int(time.time()), "model": model}


class TextDeltas:
    """What is new of a text that comes again and again, longer each time."""

    def __init__(self) -> None:
        self._sent = ""

    def __call__(self, text: str) -> str:
        """The rest of `text`; nothing where it does not go on from what was sent."""
        if not text.startswith(self._sent):
            return ""
        new, self._sent = text[len(self._sent) :], text
        return new

    def end(self) -> None:
        self._sent = ""


def as_error(error: Exception) -> Exception:
    """The errors that a client may see as they are."""
    return error if isinstance(error, InputError) else RequestError("the server failed; its log says why", 500)
