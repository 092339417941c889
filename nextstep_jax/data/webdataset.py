"""WebDataset tars in the February 2026 training release's layout, read in place.

A tar (idx_BBBB_TTTT.tar) holds `key.json` and the images `key-0.jpg`, `key-1.jpg`, ... of each sample; `key.txt` and
`key.jpg` are understood too. The JSON has a "caption" (or the "text" of a document without images), with `<image_0>`,
`<image_1>`, ... where images go if there are several, and optionally "caption_all" and other "caption..." entries with
alternatives. Everything else in it becomes metadata.

Tars are untrusted. Their headers are parsed here into an index of offsets: nothing is extracted, names are labels and never
paths, links and devices are ignored, and sizes are bounded before anything is read.
"""

import itertools
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

from nextstep_jax.data import captions, files, images, records
from nextstep_jax.errors import InputError

_BLOCK = 512
_MAX_ENTRIES = 1 << 20  # of one tar
_MAX_NAME = 4096  # bytes; also of a long-name or PAX header's content
_MAX_PAX = 1 << 16
MAX_TEXT_BYTES = 4 << 20  # of one key.json or key.txt

_IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp")
_NUMBERED = re.compile(r"(.+)-([0-9]{1,6})")


class Entry(NamedTuple):
    """A regular file inside a tar: its bytes are [offset, offset + size) of the tar."""

    name: str
    offset: int
    size: int


# --- the tar format ---------------------------------------------------------------------------------------------------


def read_tar_index(path: str | os.PathLike) -> list[Entry]:
    """The regular files of a tar, in order. Only headers are read.

    Raises:
      InputError: naming the tar: unreadable, not a tar, compressed, truncated, or with a header that does not add up.
    """
    try:
        with open(path, "rb") as file:
            return list(_entries(file, os.fstat(file.fileno()).st_size, os.fspath(path)))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error


def _entries(file: BinaryIO, length: int, path: str) -> Iterator[Entry]:
    offset, long_name, pax = 0, None, {}
    for count in itertools.count():
        file.seek(offset)
        header = file.read(_BLOCK)
        if len(header) < _BLOCK:
            raise InputError(f"{path}: truncated tar (no end-of-archive mark at byte {offset})")
        if not any(header):
            return
        if count >= _MAX_ENTRIES:
            raise InputError(f"{path}: more than {_MAX_ENTRIES} entries")
        if int.from_bytes(header[:2], "big") in (0x1F8B, 0x425A, 0xFD37, 0x28B5) and offset == 0:
            raise InputError(f"{path}: compressed; samples can be read in place only from a plain tar, so decompress it first")
        if sum(header) - sum(header[148:156]) + 8 * 32 != _number(header[148:156]):
            raise InputError(f"{path}: not a tar, or damaged (wrong header checksum at byte {offset})")
        kind, size = header[156:157], _number(header[124:136])
        if kind in (b"1", b"2", b"3", b"4", b"5", b"6"):
            size = 0  # links, devices and folders have no content, whatever they claim
        elif kind not in (b"x", b"g", b"L", b"K"):
            size = pax.get("size", size)
        start = offset + _BLOCK
        if size is None or start + size > length:
            raise InputError(
                f"{path}: truncated or damaged tar (the entry at byte {offset} claims {size} bytes, {length - start} are left)"
            )
        if kind in (b"x", b"L"):
            if size > (_MAX_PAX if kind == b"x" else _MAX_NAME):
                raise InputError(f"{path}: the name at byte {offset} takes {size} bytes")
            data = file.read(size)
            if kind == b"x":
                pax = _parse_pax(data, f"{path}: the extended header at byte {offset}")
            else:
                long_name = data.rstrip(b"\0")
        elif kind not in (b"g", b"K"):
            if kind in (b"0", b"\0", b"7"):
                name = pax.get("path") or long_name or _short_name(header)
                yield Entry(_printable(name[:_MAX_NAME]), start, size)
            long_name, pax = None, {}
        offset = start + -(-size // _BLOCK) * _BLOCK


def _printable(name: bytes) -> str:
    """A name as it can be shown: what is not UTF-8 or not printable is escaped."""
    text = name.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _number(field: bytes) -> int | None:
    """An octal or base-256 header field; None if it is neither, or negative."""
    if field[0] & 0x80:
        return None if field[0] != 0x80 else int.from_bytes(field[1:], "big")
    digits = field.split(b"\0")[0].strip()
    return int(digits or b"0", 8) if re.fullmatch(rb"[0-7]*", digits) else None


def _short_name(header: bytes) -> bytes:
    name, prefix = header[:100].split(b"\0")[0], header[345:500].split(b"\0")[0]
    return prefix + b"/" + name if prefix and header[257:263] == b"ustar\0" else name


def _parse_pax(data: bytes, where: str) -> dict[str, Any]:
    """The path and size of a PAX header: records "LENGTH KEY=VALUE\\n", LENGTH counting itself."""
    found = {}
    while data:
        match = re.match(rb"([0-9]{1,6}) ([^=]+)=", data)
        length = int(match[1]) if match else 0
        if not match or not match.end() < length <= len(data) or data[length - 1 : length] != b"\n":
            raise InputError(f"{where} is malformed")
        value = data[match.end() : length - 1]
        if match[2] == b"path":
            found["path"] = value
        elif match[2] == b"size":
            if not re.fullmatch(rb"[0-9]{1,18}", value):
                raise InputError(f"{where} is malformed")
            found["size"] = int(value)
        elif match[2].startswith(b"GNU.sparse"):
            raise InputError(f"{where} describes a sparse file, which cannot be read in place")
        data = data[length:]
    return found


# --- samples ----------------------------------------------------------------------------------------------------------


class _Group:
    """The entries of one sample."""

    __slots__ = ("images", "json", "problem", "tar", "text")

    def __init__(self, tar: int):
        self.tar, self.json, self.text, self.images, self.problem = tar, None, None, {}, None


class WebDatasetSource:
    """The samples of some tars, in the order of their first entries.

    Attributes:
      name: for reports.
    """

    def __init__(self, tars: Sequence[str | os.PathLike], kind: str | None = None, name: str = "webdataset"):
        """Index the tars.

        Args:
          kind: what samples with images are ("pair", "edit", "interleaved"). None: pairs, as long as no sample has several
            images. Samples that have a "text" and no images are texts.

        Raises:
          InputError: a tar cannot be indexed, there are no samples, or `kind` is needed.
        """
        if kind is not None and kind not in records.KINDS[1:]:
            raise InputError(f"kind must be one of {', '.join(records.KINDS[1:])}, found {kind!r}")
        self.name = name
        self._kind = kind or "pair"
        self._tars = [pathlib.Path(tar) for tar in tars]
        self._groups = []
        for number, tar in enumerate(self._tars):
            groups = _group(read_tar_index(tar), number)
            several = next((key for key, group in groups.items() if len(group.images) > 1), None)
            if several is not None and kind is None:
                raise InputError(
                    f"{tar}: sample {several} has several images; say whether they are edits or interleaved (kind)"
                )
            self._groups += groups.items()
        if not self._groups:
            raise InputError(
                f"{self._tars[0] if len(self._tars) == 1 else name}: no samples (expected entries like KEY.json and KEY-0.jpg)"
            )

    def __len__(self) -> int:
        return len(self._groups)

    def __getitem__(self, index: int) -> records.Sample:
        """Raises InputError naming tar and sample if it cannot be used (an ImageError or CaptionError where that is why)."""
        key, group = self._groups[index]
        where = f"{self._tars[group.tar]}: {key}"
        if group.problem:
            raise InputError(f"{where}: {group.problem}")
        try:
            with open(self._tars[group.tar], "rb") as file:
                text = captions.parse_text(*_read_text(file, group, where), where)
                pictures = [_read_image(file, group.images[number], where) for number in sorted(group.images)]
        except OSError as error:
            raise InputError(f"{self._tars[group.tar]}: cannot be read ({error.strerror or error})") from error
        if not pictures and not text.is_document:
            raise images.ImageError(f"{where}: a caption without an image")
        return captions.make_sample(key, self._kind if pictures else "text", text, pictures, where)

    def fingerprint(self, start: int, stop: int) -> str:
        """Changes when the tars of the samples start..stop-1 do."""
        tars = dict.fromkeys(group.tar for _, group in self._groups[start:stop])
        first = self._groups[start][0] if start < stop else ""
        return " ".join([self._kind, first, *(files.fingerprint(self._tars[tar]) for tar in tars)])


def _group(entries: list[Entry], tar: int) -> dict[str, _Group]:
    groups: dict[str, _Group] = {}
    for entry in entries:
        folder, _, base = entry.name.rpartition("/")
        stem, _, extension = base.partition(".")
        extension = extension.lower()
        if not stem or extension not in (*_IMAGE_EXTENSIONS, "json", "txt"):
            continue
        match = _NUMBERED.fullmatch(stem) if extension in _IMAGE_EXTENSIONS else None
        stem, number = (match[1], int(match[2])) if match else (stem, 0)
        key = f"{folder}/{stem}" if folder else stem
        group = groups.setdefault(key, _Group(tar))
        if extension in ("json", "txt"):
            field = "json" if extension == "json" else "text"
            if getattr(group, field) is not None:
                group.problem = f"two entries are named {entry.name!r}"
            setattr(group, field, entry)
        elif number in group.images:
            group.problem = f"two entries are its image {number}"
        elif len(group.images) >= records.MAX_PARTS // 2:
            group.problem = f"more than {records.MAX_PARTS // 2} images"
        else:
            group.images[number] = entry
    return groups


def _read_image(file: BinaryIO, entry: Entry, where: str) -> records.ImagePart:
    if entry.size > images.MAX_FILE_BYTES:
        raise images.SizeError(f"{where}: {entry.name!r} takes {entry.size} bytes, more than {images.MAX_FILE_BYTES}")
    file.seek(entry.offset)
    return records.ImagePart.from_bytes(file.read(entry.size), f"{where}: {entry.name}")


def _read_text(file: BinaryIO, group: _Group, where: str) -> tuple[bytes, bool]:
    """The caption file's bytes, and whether they are JSON."""
    entry = group.json or group.text
    if entry is None:
        raise records.CaptionError(f"{where}: no caption (neither .json nor .txt)")
    if entry.size > MAX_TEXT_BYTES:
        raise records.CaptionError(f"{where}: {entry.name!r} takes {entry.size} bytes, more than {MAX_TEXT_BYTES}")
    file.seek(entry.offset)
    return file.read(entry.size), group.json is not None
