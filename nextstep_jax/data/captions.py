"""What a caption file says, and how a caption and its images become a sample; for the WebDataset and folder readers."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from nextstep_jax.data import files, records
from nextstep_jax.errors import InputError

_MAX_DEPTH = 8
# Reasons of `Sample.unused`.
UNPLACED = "image that its caption does not place"
OTHER_VARIANT = "caption variant that places other images"


class Text(NamedTuple):
    """What a caption file says: the caption, alternatives by name, everything else.

    A document is meant to stand alone, without an image.
    """

    caption: str
    caption_variants: dict[str, str]
    metadata: dict[str, Any]
    is_document: bool = False


def parse_text(data: bytes, is_json: bool, where: str) -> Text:
    """Read a caption file: plain text, or JSON with a "caption" (or a document's "text") and other "caption..." entries.

    Raises:
      InputError: naming `where`: a CaptionError if there is no caption, else it is not what it should be.
    """
    if not is_json:
        try:
            text = Text(data.decode("utf-8-sig").strip(), {}, {})
        except UnicodeDecodeError as error:
            raise records.CaptionError(f"{where}: the caption is not UTF-8 ({error.reason} at byte {error.start})") from error
    else:
        text = from_json(files.parse_json(data, where), where)
    if not text.caption.strip():
        raise records.CaptionError(f"{where}: empty caption")
    return text


def from_json(value: Any, where: str) -> Text:
    """The captions in a JSON object; the caption is "" if there is none. InputError names `where` and what is no text."""
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected a JSON object, found {_KINDS.get(type(value), type(value).__name__)}")
    found: dict[str, str] = {}
    metadata = {}
    for name, item in value.items():
        if name.startswith("caption") and (name == "caption" or _holds_text(item, _MAX_DEPTH)):
            _flatten(name, item, found, where, _MAX_DEPTH)
        else:
            metadata[name] = item
    if not found and metadata.get("text") is not None:
        document = metadata.pop("text")
        if not isinstance(document, str):
            raise InputError(f"{where}: text must be a string, found {_KINDS[type(document)]}")
        return Text(document, {}, metadata, is_document=True)
    variants = {name: text for name, text in found.items() if text.strip()}
    first = "caption" if "caption" in variants else next(iter(variants), None)
    caption = variants.pop(first) if first is not None else ""
    return Text(caption, variants, metadata)


_KINDS = {bool: "true or false", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}


def _holds_text(value: Any, depth: int) -> bool:
    """Whether there is a string anywhere in a JSON value, and so a caption; "caption_score": 0.9 is metadata."""
    if isinstance(value, dict | list) and depth:
        return any(_holds_text(item, depth - 1) for item in (value.values() if isinstance(value, dict) else value))
    return isinstance(value, str | dict | list)


def _flatten(name: str, value: Any, out: dict[str, str], where: str, depth: int) -> None:
    """Texts by dotted name: {"caption_all": {"short": "a", "long": ["b", "c"]}} -> caption_all.short, caption_all.long.0, ...

    A list under "caption" itself gives "caption" and "caption.1", "caption.2", ... A null is no caption.
    """
    if not depth:
        raise InputError(f"{where}: captions nested deeper than {_MAX_DEPTH}")
    if isinstance(value, str):
        out[name] = value
    elif isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            _flatten(name if (name, key) == ("caption", 0) else f"{name}.{key}", item, out, where, depth - 1)
    elif value is not None:
        raise InputError(f"{where}: {name[:100]} must be a string, found {_KINDS[type(value)]}")


def make_sample(key: str, kind: str, text: Text, images: Sequence[records.ImagePart], where: str) -> records.Sample:
    """Lay out a caption with `<image_n>` in it and its images as a sample.

    Without placeholders a single image follows the caption. Images the caption does not place are left out, and so are
    variants that do not place the same images; the sample's `unused` names them. Loss: an edit's on its last image only (and
    on all text), the others' everywhere.

    Raises:
      InputError: naming `where`: the caption places an image that is not there, or one twice, or none of several.
    """
    pieces = records.split_caption(text.caption)
    placed = [piece for piece in pieces if isinstance(piece, int)]
    if images and not placed:
        if len(images) > 1:
            raise InputError(f"{where}: {len(images)} images, but the caption places none (expected <image_0>, <image_1>, ...)")
        pieces, placed = [*pieces, 0], [0]
    for number in placed:
        if number >= len(images):
            raise InputError(f"{where}: the caption places <image_{number}>, but there are {len(images)} images")
        if placed.count(number) > 1:
            raise InputError(f"{where}: the caption places <image_{number}> more than once")
    targets = placed[-1:] if kind == "edit" else placed
    try:
        parts = [
            records.TextPart(piece) if isinstance(piece, str) else dataclasses.replace(images[piece], loss=piece in targets)
            for piece in pieces
        ]
        variants = _renumber(text.caption_variants, placed)
        unused = [(UNPLACED, f"{where}: image {number}") for number in range(len(images)) if number not in placed]
        unused += [(OTHER_VARIANT, f"{where}: {name}") for name in text.caption_variants if name not in variants]
        return records.Sample(tuple(parts), kind, key, variants, text.metadata, tuple(unused))
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _renumber(variants: Mapping[str, str], placed: list[int]) -> dict[str, str]:
    """Variants with `<image_n>` counting the sample's images instead of the tar's."""
    order = {number: place for place, number in enumerate(placed)}
    kept = {}
    for name, caption in variants.items():
        numbers = [piece for piece in records.split_caption(caption) if isinstance(piece, int)]
        if sorted(numbers) == sorted(placed) or (len(placed) <= 1 and not numbers):
            kept[name] = re.sub(r"<image_([0-9]{1,4})>", lambda match: f"<image_{order[int(match[1])]}>", caption)
    return kept
