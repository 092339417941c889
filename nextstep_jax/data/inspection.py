"""Looking at a source: what is in it, in numbers and as a contact sheet."""

import collections
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from nextstep_jax.data import build, images, records, shards
from nextstep_jax.data.image_output import output_format, save_image
from nextstep_jax.data.source import Source, Unused
from nextstep_jax.errors import InputError
from nextstep_jax.progress import progress_bar

# The contact sheet, in pixels.
_CELL = 240
_GAP = 12
_COLUMNS = 4
_LINES = 5  # of caption
_FONT = 13
_LINE_HEIGHT = 16
_INPUT_COLOR, _TARGET_COLOR = "#c0c0c0", "#2060c0"


def inspect(
    source: Source,
    *,
    limit: int = 10_000,
    sheet: str | os.PathLike | None = None,
    sheet_samples: int = 16,
    progress: bool = False,
) -> dict[str, Any]:
    """Count and measure a source's samples, and draw some of them.

    Args:
      limit: samples to look at, spread evenly over the source.
      sheet: where to write a contact sheet (PNG) of `sheet_samples` samples, spread evenly; None: no sheet.

    Returns:
      JSON values: samples, examined, kinds, images (count, formats, height, width, bytes, aspect: the 17 buckets), captions
        (characters and words), caption_variants, skipped (unusable samples by reason), unused (what is in no sample,
        {reason: {"count", "names"}}), latents (how they were made). Measures are min, median, p95 and max.

    Raises:
      InputError: the sheet cannot be written, or an option is out of range.
    """
    if limit < 1 or sheet_samples < 1:
        raise InputError(f"limit and the sheet's samples must be at least 1, found {limit} and {sheet_samples}")
    if sheet is not None:
        output_format(sheet)
    tally = _Tally()
    indices = _spread(len(source), limit)
    with progress_bar(source.name, "sample", len(indices), progress) as bar:
        for index in indices:
            try:
                tally.add(source[index])
            except InputError as error:
                tally.skipped[build.reason_for(error)] += 1
            bar.update()
    tally.unused.update(source.unused)
    result = {"name": source.name, "samples": len(source), **tally.result(), "unused": tally.unused.to_json()}
    if isinstance(source, shards.ArrayRecordSource):
        result["latents"] = source.index["latents"]
    if sheet is not None:
        save_image(sheet, contact_sheet(source, sheet_samples), {"source": source.name})
        result["sheet"] = os.fspath(sheet)
    return result


def _spread(length: int, count: int) -> list[int]:
    count = min(count, length)
    return [place * length // count for place in range(count)]


_Counts = collections.Counter[str]


class _Tally:
    """Counts over the samples looked at."""

    def __init__(self):
        self.kinds, self.formats, self.aspects, self.caption_variants, self.skipped = (_Counts() for _ in range(5))
        self.unused = Unused()
        self.heights, self.widths, self.sizes, self.characters, self.words = [], [], [], [], []
        self.targets = 0

    def add(self, sample: records.Sample) -> None:
        self.kinds[sample.kind] += 1
        for reason, name in sample.unused:
            self.unused.add(reason, name)
        self.caption_variants.update(sample.caption_variants.keys())
        for part in sample.texts:
            self.characters.append(len(part.text))
            self.words.append(len(part.text.split()))
        for image in sample.images:
            self.formats[image.format] += 1
            self.heights.append(image.height)
            self.widths.append(image.width)
            self.sizes.append(len(image.data))
            self.targets += image.loss
            rows, columns = (side // 16 for side in images.bucket_for(width=image.width, height=image.height, area=256))
            self.aspects[f"{rows}x{columns}"] += 1

    def result(self) -> dict[str, Any]:
        measured = {"count": len(self.heights), "targets": self.targets, "formats": dict(self.formats)}
        measured |= {"height": _measure(self.heights), "width": _measure(self.widths), "bytes": _measure(self.sizes)}
        measured |= {"aspect": {f"{h}x{w}": self.aspects[f"{h}x{w}"] for h, w in images.BUCKETS if self.aspects[f"{h}x{w}"]}}
        texts = {"count": len(self.words), "characters": _measure(self.characters), "words": _measure(self.words)}
        examined = sum(self.kinds.values()) + sum(self.skipped.values())
        kinds = {kind: self.kinds[kind] for kind in records.KINDS if self.kinds[kind]}
        skipped = dict(sorted(self.skipped.items()))
        result = {"examined": examined, "kinds": kinds, "images": measured, "captions": texts}
        return result | {"caption_variants": dict(self.caption_variants), "skipped": skipped}


def _measure(values: list[int]) -> Mapping[str, int] | None:
    if not values:
        return None
    low, middle, high, top = np.percentile(values, [0, 50, 95, 100])
    return {"min": int(low), "median": int(middle), "p95": int(high), "max": int(top)}


# --- the contact sheet ------------------------------------------------------------------------------------------------


def contact_sheet(source: Source, count: int = 16) -> Image.Image:
    """Samples in a grid: their images in order (targets framed blue, inputs gray) over their text, `[n]` standing for image n.
    Of a sample with more than nine images the first nine are shown.

    Latents are shown by their first three channels. What cannot be read is a cell with the reason.
    """
    font = ImageFont.load_default(_FONT)
    cells = [_cell(source, index, font) for index in _spread(len(source), count)]
    columns = min(_COLUMNS, len(cells))
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    heights = [max(cell.height for cell in row) for row in rows]
    sheet = Image.new("RGB", (columns * (_CELL + _GAP) + _GAP, sum(heights) + (len(rows) + 1) * _GAP), "white")
    top = _GAP
    for row, height in zip(rows, heights, strict=True):
        for column, cell in enumerate(row):
            sheet.paste(cell, (_GAP + column * (_CELL + _GAP), top))
        top += height + _GAP
    return sheet


def _cell(source: Source, index: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> Image.Image:
    try:
        sample = source[index]
        thumbnails = [_thumbnail(part, f"{sample.key}: image {i}", len(sample.images)) for i, part in enumerate(sample.images)]
        names = iter(range(len(thumbnails)))
        pieces = [part.text if isinstance(part, records.TextPart) else f"[{next(names)}]" for part in sample.parts]
        text = " ".join([f"{index} {sample.kind}:", *(pieces if len(thumbnails) > 1 else [part.text for part in sample.texts])])
    except InputError as error:
        thumbnails, text = [], f"{index}: {error}"
    lines = _wrap(text, font)
    rows = _rows(thumbnails)
    height = sum(max(thumbnail.height for thumbnail in row) for row in rows)
    cell = Image.new("RGB", (_CELL, height + 4 + len(lines) * _LINE_HEIGHT), "white")
    top = 0
    for row in rows:
        left = 0
        for thumbnail in row:
            cell.paste(thumbnail, (left, top))
            left += thumbnail.width
        top += max(thumbnail.height for thumbnail in row)
    draw = ImageDraw.Draw(cell)
    for number, line in enumerate(lines):
        draw.text((2, top + 4 + number * _LINE_HEIGHT), line, fill="black", font=font)
    return cell


def _thumbnail(part: records.ImagePart, name: str, count: int) -> Image.Image:
    side = _CELL // min(count, 3) - 4
    image = _false_color(part.latents()) if part.is_latents else images.load(part.data, name)
    scale = side / max(image.size)
    width, height = (max(1, round(n * scale)) for n in image.size)
    image = image.resize((width, height), Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST)
    return ImageOps.expand(image, 2, _TARGET_COLOR if part.loss else _INPUT_COLOR)


def _false_color(latents: np.ndarray) -> Image.Image:
    channels = np.resize(np.arange(min(3, latents.shape[2])), 3)
    values = latents[:, :, channels].astype(np.float32)
    low, high = values.min((0, 1)), values.max((0, 1))
    return Image.fromarray(images.to_uint8(2 * (values - low) / np.maximum(high - low, 1e-6) - 1))


def _rows(thumbnails: list[Image.Image]) -> list[list[Image.Image]]:
    """Up to three images a row, and three rows."""
    return [thumbnails[i : i + 3] for i in range(0, min(len(thumbnails), 9), 3)]


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """Break text into lines of a cell's width; the last line says if there is more."""
    lines = [""]
    for word in _words(text[:1000]):
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= _CELL - 4:
            lines[-1] = longer
        elif len(lines) == _LINES:
            while font.getlength(lines[-1] + " ...") > _CELL - 4:
                lines[-1] = lines[-1].rpartition(" ")[0]
            lines[-1] += " ..."
            break
        else:
            lines.append(word)
    return lines


def _words(text: str) -> Iterable[str]:
    """Words, in pieces that fit a line even in scripts without spaces."""
    for word in text.split():
        yield from (word[i : i + 16] for i in range(0, len(word), 16))
