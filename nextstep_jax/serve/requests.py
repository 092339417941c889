"""What clients ask for, checked field by field before anything runs on the device.

Field names are OpenAI's; negative_prompt, num_inference_steps, guidance_scale and seed are vLLM-Omni's; what is neither is in
the object `nextstep`, by the names of GenerationConfig. In a form the object's fields are written nextstep[name].
"""

import base64
import binascii
import dataclasses
import difflib
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from nextstep_jax.data import images as image_files
from nextstep_jax.errors import InputError
from nextstep_jax.generation.arguments import require_bool, require_float, require_int, require_str
from nextstep_jax.generation.config import GenerationConfig
from nextstep_jax.generation.generated_image import GeneratedImage, Pixels
from nextstep_jax.generation.pipeline import Pipeline
from nextstep_jax.seeds import MAX_SEED

MAX_IMAGES = 10  # of one request
MAX_UPLOADS = 4
MAX_UPLOAD_BYTES = 16 << 20
MAX_UPLOAD_PIXELS = 24_000_000
MAX_BODY_BYTES = 32 << 20
MAX_PROMPT = 32_000  # characters
MAX_GRID = 4096  # tokens of one image
MAX_STEPS = 200
FORMATS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}

_EXTENSIONS = ("negative_prompt", "num_inference_steps", "guidance_scale", "seed", "nextstep")
_DRAW = ("prompt", "model", "n", "size", "response_format", "output_format", "output_compression", "stream", "partial_images")
_CHAT = ("messages", "model", "max_tokens", "max_completion_tokens", "temperature", "top_p", "n", "stream", "modalities")
# OpenAI's fields that change nothing here.
_IGNORED = ("user", "quality", "style", "background", "moderation", "input_fidelity", "safety_identifier", "prompt_cache_key")
_IGNORED_CHAT = ("metadata", "store", "stream_options", "frequency_penalty", "presence_penalty", "stop", "service_tier")
_OWN = {"tokens": bool, "max_images": int}  # of `nextstep`, beside the settings
_ELSEWHERE = {
    "cfg": "guidance_scale",
    "steps": "num_inference_steps",
    "negative_prompt": "negative_prompt",
    "image_size": "size",
}
_FORM_TYPES = {"n": int, "output_compression": int, "partial_images": int, "stream": bool, "num_inference_steps": int}
_FORM_TYPES |= {"guidance_scale": float, "seed": int}


class RequestError(InputError):
    """A request that cannot be served, as OpenAI reports it.

    Attributes:
      status: HTTP status.
      param, code: the field it is about, and a word for programs.
      headers: of the reply.
    """

    def __init__(self, message: str, status: int = 400, param: str | None = None, code: str | None = None, headers=None):
        super().__init__(message)
        self.status, self.param, self.code, self.headers = status, param, code, headers


@dataclasses.dataclass(frozen=True)
class DrawRequest:
    """n images of a prompt, or n edits of `sources`.

    Attributes:
      sources: input images, loaded and resized.
      h, w: sides of an image in tokens.
      text_tokens, image_tokens: what the model reads before the first image token.
      partial_images: decoded partial images to send of each image, tokens: whether to send the tokens' colors.
      unfamiliar: what the model was not trained with, in words.
    """

    prompt: str
    sources: Sequence[Pixels]
    n: int
    h: int
    w: int
    seed: int
    settings: GenerationConfig
    output_format: str
    quality: int
    stream: bool
    partial_images: int
    tokens: bool
    text_tokens: int
    image_tokens: int
    unfamiliar: Sequence[str]

    @property
    def batch_key(self) -> tuple:
        """Requests with equal keys can be drawn side by side."""
        return self.h, self.w, self.n, self.settings, tuple(pixels.shape for pixels in self.sources)


@dataclasses.dataclass(frozen=True)
class ChatRequest:
    """A text, or text and images (`draws`), that continues a prompt after images."""

    prompt: str
    sources: Sequence[Pixels]
    draws: bool
    max_images: int
    max_tokens: int
    temperature: float
    top_p: float
    seed: int
    settings: GenerationConfig
    stream: bool
    tokens: bool
    text_tokens: int
    image_tokens: int


@dataclasses.dataclass(frozen=True)
class AttentionRequest:
    """The attention of an image, drawn from text without thinking, to the words of its prompt."""

    image: GeneratedImage
    stream: bool = False


# --- bodies -----------------------------------------------------------------------------------------------------------


def read_json(body: bytes) -> dict[str, Any]:
    """The object in a request's body. RequestError for anything else."""

    def refuse(name: str):
        raise ValueError(f"{name} is no JSON")

    try:
        values = json.loads(body, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body must be JSON, found {str(error)[:100]}", code="invalid_json") from error
    if not isinstance(values, dict):
        raise RequestError(f"the body must be a JSON object, found {type(values).__name__}", code="invalid_json")
    return {name: value for name, value in values.items() if value is not None}


def read_form(fields: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Fields of a form as the values that JSON would have. RequestError for a repeated field or one of another type."""
    own = {field.name: field.type for field in dataclasses.fields(GenerationConfig)} | _OWN
    values: dict[str, Any] = {}
    for name, text in fields:
        match = re.fullmatch(r"nextstep\[(\w+)\]", name)
        place, key = (values.setdefault("nextstep", {}), match[1]) if match else (values, name)
        if not isinstance(place, dict) or key in place:
            raise RequestError(f"{name} is given twice", param=name[:100])
        place[key] = _from_text(name, text, own.get(key, str) if match else _FORM_TYPES.get(name, str))
    return values


def _from_text(name: str, text: str, kind: Any) -> Any:
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise RequestError(f"{name} must be true or false, found {text!r:.100}", param=name)
        return text.lower() == "true"
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError as error:
            raise RequestError(f"{name} must be a number, found {text!r:.100}", param=name) from error
    return text


def read_upload(data: bytes, name: str) -> bytes:
    """An uploaded file that is a PNG, JPEG or WebP image by its content, and not too large. InputError for any other."""
    if len(data) > MAX_UPLOAD_BYTES:
        raise RequestError(f"{name}: {len(data)} bytes, more than the {MAX_UPLOAD_BYTES} allowed", 413, "image")
    try:
        header = image_files.probe(data, name)
    except image_files.SizeError as error:
        raise RequestError(str(error), param="image") from error
    except InputError as error:
        raise RequestError(f"{name}: not a PNG, JPEG or WebP image, or damaged ({error})", param="image") from error
    if header.format not in FORMATS:
        raise RequestError(f"{name}: expected a PNG, JPEG or WebP image, found {header.format.upper()}", param="image")
    if header.height * header.width > MAX_UPLOAD_PIXELS:
        size = f"{header.width}x{header.height}"
        raise RequestError(f"{name}: {size} pixels, more than the {MAX_UPLOAD_PIXELS} allowed", param="image")
    return data


# --- images -----------------------------------------------------------------------------------------------------------


def draw_request(pipeline: Pipeline, fields: Mapping[str, Any], uploads: Sequence[bytes] | None = None) -> DrawRequest:
    """A request for images, or for edits of `uploads`. Decodes these; nothing runs on the device. InputError if it cannot be
    served.
    """
    if "mask" in fields:
        raise RequestError("mask is not supported: say in the prompt where to change the image", param="mask")
    edit = uploads is not None
    _refuse_unknown(fields, (*_DRAW, *_EXTENSIONS), _IGNORED)
    _require_model(pipeline, fields)
    prompt = _text(fields, "prompt")
    n = require_int("n", fields.get("n", 1), 1, MAX_IMAGES)
    if fields.get("response_format", "b64_json") != "b64_json":
        raise RequestError("response_format must be b64_json: images are not kept to be fetched", param="response_format")
    output_format = _choice(fields, "output_format", tuple(FORMATS), "png")
    quality = require_int("output_compression", fields.get("output_compression", 95), 0, 100)
    stream = require_bool("stream", fields.get("stream", False))
    partial_images = require_int("partial_images", fields.get("partial_images", 0), 0, 3)
    settings, own = _settings(pipeline, fields, edit)
    sources = pipeline.load_images(list(uploads), settings) if uploads is not None else []
    height, width = _size(fields)
    if edit and height is None:
        height, width = sources[0].shape[:2]
    h, w = pipeline.grid(settings, height, width)
    if h * w > MAX_GRID:
        raise RequestError(f"size must be of at most {MAX_GRID} tokens, found {h * w}", param="size")
    row = pipeline.require_drawable(prompt, sources, h, w, settings)
    image_tokens = int(row.is_image.sum())
    return DrawRequest(
        prompt=prompt,
        sources=sources,
        n=n,
        h=h,
        w=w,
        seed=_seed(fields),
        settings=settings,
        output_format=output_format,
        quality=quality,
        stream=stream,
        partial_images=partial_images,
        tokens=require_bool("nextstep.tokens", own.get("tokens", False)),
        text_tokens=len(row) - image_tokens,
        image_tokens=image_tokens,
        unfamiliar=pipeline.unfamiliar([prompt], h * pipeline.token_pixels, w * pipeline.token_pixels),
    )


# --- chat -------------------------------------------------------------------------------------------------------------


def chat_request(pipeline: Pipeline, fields: Mapping[str, Any]) -> ChatRequest:
    """A request for text, or for text and images. InputError if it cannot be served.

    The model continues; it has no turns: it reads the images of all messages, then their texts, joined by spaces.
    """
    _refuse_unknown(fields, (*_CHAT, *_EXTENSIONS), (*_IGNORED, *_IGNORED_CHAT))
    _require_model(pipeline, fields)
    require_int("n", fields.get("n", 1), 1, 1)
    modalities = fields.get("modalities", ["text"])
    if not isinstance(modalities, list) or any(kind not in ("text", "image") for kind in modalities):
        raise RequestError(f"modalities must be a list of text and image, found {modalities!r:.100}", param="modalities")
    texts, uploads = _messages(fields.get("messages"))
    prompt = " ".join(text for text in texts if text.strip())
    if not prompt and not uploads:
        raise RequestError("messages hold neither text nor an image", param="messages")
    settings, own = _settings(pipeline, fields, edit=False)
    sources = pipeline.load_images(uploads, settings) if uploads else []
    max_tokens = fields.get("max_completion_tokens", fields.get("max_tokens", 256))
    max_tokens = require_int("max_tokens", max_tokens, 1, pipeline.config.transformer.max_positions)
    draws = "image" in modalities
    if draws:
        pipeline.grid(settings)  # refuses a model without an image tokenizer
    row = pipeline.require_continuable(prompt, sources, max_tokens)
    image_tokens = int(row.is_image.sum())
    top_p = require_float("top_p", fields.get("top_p", 1.0), 0, 1)
    if top_p == 0:
        raise RequestError("top_p must be above 0, found 0", param="top_p")
    return ChatRequest(
        prompt=prompt,
        sources=sources,
        draws=draws,
        max_images=require_int("nextstep.max_images", own.get("max_images", 4), 0, MAX_IMAGES),
        max_tokens=max_tokens,
        temperature=require_float("temperature", fields.get("temperature", 0.0), 0, 2),
        top_p=top_p,
        seed=_seed(fields),
        settings=settings,
        stream=require_bool("stream", fields.get("stream", False)),
        tokens=require_bool("nextstep.tokens", own.get("tokens", False)),
        text_tokens=len(row) - image_tokens,
        image_tokens=image_tokens,
    )


def _messages(messages: Any) -> tuple[list[str], list[bytes]]:
    """Texts and image files of chat messages."""
    if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
        raise RequestError("messages must be a list of objects with role and content", param="messages")
    texts: list[str] = []
    uploads: list[bytes] = []
    for message in messages:
        if message.get("role") not in ("system", "developer", "user", "assistant"):
            raise RequestError("a message's role must be system, developer, user or assistant", param="messages")
        content = message.get("content")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(parts, list):
            raise RequestError("a message's content must be text or a list of parts", param="messages")
        for part in parts:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind == "text":
                texts.append(_text(part, "text"))
            elif kind == "image_url":
                url = part.get("image_url")
                uploads.append(_data_url(url.get("url") if isinstance(url, dict) else url, len(uploads)))
            else:
                raise RequestError("a part's type must be text or image_url", param="messages")
    if len(uploads) > MAX_UPLOADS or sum(map(len, texts)) > MAX_PROMPT:
        raise RequestError(f"messages may hold {MAX_UPLOADS} images and {MAX_PROMPT} characters", param="messages")
    return texts, uploads


def _data_url(url: Any, index: int) -> bytes:
    match = re.match(r"data:image/[\w.+-]+;base64,", url) if isinstance(url, str) else None
    if match is None:
        raise RequestError("image_url must be a data URL (data:image/png;base64,...): nothing is fetched", param="messages")
    try:
        data = base64.b64decode(url[match.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError("image_url: the data URL is not base64", param="messages") from error
    return read_upload(data, f"image {index}")


# --- attention --------------------------------------------------------------------------------------------------------


def image_id(fields: Mapping[str, Any]) -> str:
    """The id of the image that a request for attention names."""
    _refuse_unknown(fields, ("image",), ())
    return _text(fields, "image")


# --- fields -----------------------------------------------------------------------------------------------------------


def _refuse_unknown(fields: Mapping[str, Any], known: Sequence[str], ignored: Sequence[str]) -> None:
    for name in fields:
        if name not in known and name not in ignored:
            near = difflib.get_close_matches(name[:100], known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise RequestError(f"unknown field {name!r:.100}{hint}", param=name[:100], code="unknown_parameter")


def _require_model(pipeline: Pipeline, fields: Mapping[str, Any]) -> None:
    if fields.get("model", pipeline.name) != pipeline.name:
        message = f"model must be {pipeline.name} or left out, found {fields['model']!r:.100}"
        raise RequestError(message, 404, "model", "model_not_found")


def _settings(pipeline: Pipeline, fields: Mapping[str, Any], edit: bool) -> tuple[GenerationConfig, dict[str, Any]]:
    """The checkpoint's settings with what the request changes, and the fields of `nextstep` that are no settings."""
    own = fields.get("nextstep", {})
    if not isinstance(own, dict):
        raise RequestError(f"nextstep must be an object, found {own!r:.100}", param="nextstep")
    for name in own:
        if name in _ELSEWHERE:
            raise RequestError(f"nextstep.{name} is the field {_ELSEWHERE[name]}", param=f"nextstep.{name}")
    changes = {name: value for name, value in own.items() if name not in _OWN}
    if "negative_prompt" in fields:
        changes["negative_prompt"] = _text(fields, "negative_prompt")
    if "prompt_suffix" in changes:
        changes["prompt_suffix"] = _text(changes, "prompt_suffix")
    if "num_inference_steps" in fields:
        changes["steps"] = require_int("num_inference_steps", fields["num_inference_steps"], 1, MAX_STEPS)
    if "guidance_scale" in fields:
        changes["cfg"] = require_float("guidance_scale", fields["guidance_scale"], 0, 20)
    return pipeline.settings(edit, **changes), {name: value for name, value in own.items() if name in _OWN}


def _size(fields: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """(height, width) in pixels of "WIDTHxHEIGHT", (None, None) for "auto"."""
    size = fields.get("size", "auto")
    if size == "auto":
        return None, None
    match = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", size) if isinstance(size, str) else None
    if match is None:
        raise RequestError(f"size must be WIDTHxHEIGHT in pixels or auto, found {size!r:.100}", param="size")
    return int(match[2]), int(match[1])


def _seed(fields: Mapping[str, Any]) -> int:
    return require_int("seed", fields["seed"], 0, MAX_SEED) if "seed" in fields else secrets.randbelow(2**31)


def _text(fields: Mapping[str, Any], name: str) -> str:
    """A text that can be written as UTF-8 and is not too long."""
    if name not in fields:
        raise RequestError(f"{name} is missing", param=name)
    text = require_str(name, fields[name])
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"{name} holds half a character (a lone surrogate)", param=name) from error
    if len(text) > MAX_PROMPT:
        raise RequestError(f"{name} must have at most {MAX_PROMPT} characters, found {len(text)}", param=name)
    return text


def _choice(fields: Mapping[str, Any], name: str, known: Sequence[str], default: str) -> str:
    value = fields.get(name, default)
    if value not in known:
        raise RequestError(f"{name} must be one of {', '.join(known)}, found {value!r:.100}", param=name)
    return value
