"""WebDataset tars in the February 2026 training release's layout, read in place.

A tar (idx_BBBB_TTTT.tar) holds `key.json` and the images `key-0.jpg`, `key-1.jpg`, ... of each sample; `key.txt` and
`key.jpg` are understood too, and so is WebDataset's `key.field.jpg`. The plain name comes first: an image belongs to the
caption that has its exact stem, whatever that looks like, else to the one of its stem without `-NUMBER`, else to the one of
its stem up to a dot. The JSON has a "caption" (or the "text" of a document without images), with `<image_0>`, `<image_1>`, ...
where images go if there are several, and optionally "caption_all" and other "caption..." entries with alternatives. Everything
else in it becomes metadata. What is in a tar and in no sample is counted in `unused`.

Tars are untrusted. Their headers are parsed here into an index of offsets: nothing is extracted, names are labels and never
paths, links and devices are not followed, and sizes are bounded before anything is read.
"""

import hashlib
import itertools
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

from nextstep_jax.data import captions, files, images, records
from nextstep_jax.data.source import ARCHIVE_EXTENSIONS, IMAGE_EXTENSIONS, Unused
from nextstep_jax.errors import InputError

_BLOCK = 512
_MAX_ENTRIES = 1 << 20  # of one tar
_MAX_NAME = 4096  # bytes; also of a long-name or PAX header's content
_MAX_PAX = 1 << 16
MAX_TEXT_BYTES = 4 << 20  # of one key.json or key.txt

_NUMBERED = re.compile(r"(.+)-([0-9]{1,6})", re.DOTALL)
_NOT_FILES = {b"1": "link", b"2": "link"}


class Entry(NamedTuple):
    """A regular file inside a tar: its bytes are [offset, offset + size) of the tar."""

    name: str
    offset: int
    size: int


# --- the tar format ---------------------------------------------------------------------------------------------------


def read_tar_index(path: str | os.PathLike, unused: Unused | None = None) -> list[Entry]:
    """The regular files of a tar, in order. Only headers are read. Links, devices and what follows the archive's end go into
    `unused`.

    Raises:
      InputError: naming the tar: unreadable, not a tar, compressed, truncated, or with a header that does not add up.
    """
    unused = Unused() if unused is None else unused
    with files.open_regular(path) as file:
        return list(_entries(file, os.fstat(file.fileno()).st_size, os.fspath(path), unused))


def _entries(file: BinaryIO, length: int, path: str, unused: Unused) -> Iterator[Entry]:
    pax: dict[str, Any] = {}
    offset, long_name = 0, None
    for count in itertools.count():
        file.seek(offset)
        header = file.read(_BLOCK)
        if len(header) < _BLOCK:
            raise InputError(f"{path}: truncated tar (no end-of-archive mark at byte {offset})")
        if not any(header):
            if (trailing := _content_after(file)) is not None:
                unused.add("bytes after the archive's end", f"{path}: {length - trailing} bytes from byte {trailing} on")
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
            name = _printable((pax.get("path") or long_name or _short_name(header))[:_MAX_NAME])
            if kind in (b"0", b"\0", b"7"):
                yield Entry(name, start, size)
            elif kind != b"5":
                unused.add(_NOT_FILES.get(kind, "not a regular file"), f"{path}: {name}")
            long_name, pax = None, {}
        offset = start + -(-size // _BLOCK) * _BLOCK


def _content_after(file: BinaryIO) -> int | None:
    """The place of the first byte that is not 0 in the rest of the file; None if there is none."""
    while chunk := file.read(1 << 20):
        if rest := chunk.lstrip(b"\0"):
            return file.tell() - len(rest)
    return None


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
    found: dict[str, Any] = {}
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


# --- samples --- -----------------------------------------------------------------------------------------------------------


class _Group:
    """The entries of one sample: captions by extension, images by number."""

    __slots__ = ("images", "problem", "tar", "texts")

    def __init__(self, tar: int):
        self.tar = tar
        self.texts: dict[str, Entry] = {}
        self.images: dict[int, Entry] = {}
        self.problem: str | None = None


class WebDatasetSource:
    """The samples of some tars, in the order of their first entries.

    Attributes:
      name: for reports.
      unused: what is in the tars and in no sample.
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
        self.unused = Unused()
        self._kind = kind or "pair"
        self._tars = [pathlib.Path(tar) for tar in tars]
        self._groups: list[tuple[str, _Group]] = []
        for number, tar in enumerate(self._tars):
            groups = _Grouping(number, str(tar), self.unused).group(read_tar_index(tar, self.unused))
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
        with files.open_regular(self._tars[group.tar]) as file:
            text = captions.parse_text(*_read_text(file, group, where), where)
            parts = [_read_image(file, group.images[number], where) for number in sorted(group.images)]
        if not parts and not text.is_document:
            raise images.ImageError(f"{where}: a caption without an image")
        return captions.make_sample(key, self._kind if parts else "text", text, parts, where)

    def fingerprint(self, start: int, stop: int) -> str:
        """Changes when the tars of the samples start..stop-1 do."""
        tars = dict.fromkeys(group.tar for _, group in self._groups[start:stop])
        first = self._groups[start][0] if start < stop else ""
        return " ".join([self._kind, first, *(files.fingerprint(self._tars[tar]) for tar in tars)])

    def identity(self) -> str:
        """Changes with the names, sizes and places of the samples' entries, and with their kind."""
        digest = hashlib.sha256(self._kind.encode())
        for key, group in self._groups:
            entries = [*group.texts.items(), *sorted(group.images.items())]
            digest.update(repr([key, group.problem, [(role, *entry) for role, entry in entries]]).encode())
        return digest.hexdigest()


class _Grouping:
    """Which entries of a tar are one sample."""

    def __init__(self, tar: int, path: str, unused: Unused):
        self._tar, self._path, self._unused = tar, path, unused

    def group(self, entries: Sequence[Entry]) -> dict[str, _Group]:
        """The samples by key, in the order of their first entries. Every entry is in one of them or in `unused`."""
        texts, image_entries = [], []
        for entry in entries:
            stem, extension = _split(entry.name)
            if any(part.startswith(".") and part not in (".", "..") for part in entry.name.split("/")):
                self._leave_out("hidden", entry)
            elif extension in IMAGE_EXTENSIONS:
                image_entries.append((stem, entry))
            elif extension in ("json", "txt"):
                texts.append((stem, extension, entry))
            else:
                self._leave_out("archive inside an archive" if extension in ARCHIVE_EXTENSIONS else "other file", entry)
        captioned = {stem for stem, _, _ in texts}
        numbered = [(*_numbered(stem, captioned), entry) for stem, entry in image_entries]
        with_image = {key for key, _, _ in numbered}
        # Entries with their own key, and those that have one only up to a dot: (key, "json", "txt" or number, entry).
        own: list[Any] = []
        fields: list[Any] = []
        for key, role, entry in texts:
            wider = next((prefix for prefix in _prefixes(key) if prefix in with_image), None) if key not in with_image else None
            (fields if wider else own).append((wider or key, role, entry))
        for key, number, entry in numbered:
            wider = next((prefix for prefix in _prefixes(key) if prefix in captioned), None) if key not in captioned else None
            (fields if wider else own).append((wider or key, number, entry))
        keys = [key for key, _, _ in sorted([*own, *fields], key=lambda item: item[2].offset)]
        groups = {key: _Group(self._tar) for key in dict.fromkeys(keys)}
        for key, role, entry in own:
            self._add(groups[key], role, entry)
        for key, role, entry in fields:
            self._add_field(groups[key], role, entry)
        return groups

    def _add(self, group: _Group, role: str | int, entry: Entry) -> None:
        if isinstance(role, str):
            if role in group.texts:
                group.problem = f"two entries are named {entry.name!r}"
                self._leave_out("second entry of a name", entry)
                return
            group.texts[role] = entry
            if len(group.texts) == 2:
                self._leave_out("caption beside a .json", group.texts.pop("txt"))
        elif role in group.images:
            group.problem = f"two entries are its image {role}"
            self._leave_out("second entry of a name", entry)
        elif len(group.images) >= records.MAX_PARTS // 2:
            group.problem = f"more than {records.MAX_PARTS // 2} images"
            self._leave_out("image of a sample with too many", entry)
        else:
            group.images[role] = entry

    def _add_field(self, group: _Group, role: str | int, entry: Entry) -> None:
        """`key.field.jpg` is the image of `key`, and `key.field.json` its caption, if it has no other."""
        if isinstance(role, str) and not group.texts:
            group.texts[role] = entry
        elif isinstance(role, int) and not group.images:
            group.images[_FIELD] = entry
        else:
            if _FIELD in group.images and isinstance(role, int):
                group.problem = f"its images {group.images[_FIELD].name!r} and {entry.name!r} have no numbers"
            self._leave_out("further field of a sample", entry)

    def _leave_out(self, reason: str, entry: Entry) -> None:
        self._unused.add(reason, f"{self._path}: {entry.name}")


_FIELD = -1  # the number of an image that has none


def _split(name: str) -> tuple[str, str]:
    """A name without its extension, and the extension in small letters ("" without)."""
    stem, dot, extension = name.rpartition(".")
    return (stem, extension.lower()) if dot and "/" not in extension else (name, "")


def _numbered(stem: str, captioned: set[str]) -> tuple[str, int]:
    """The key and the number of the image with this stem."""
    if stem in captioned:
        return stem, 0
    match = _NUMBERED.fullmatch(stem)
    return (match[1], int(match[2])) if match and match[1] in captioned else (stem, 0)


def _prefixes(stem: str) -> list[str]:
    """The stem up to each dot of its last component, longest first: "a/b.c.d" -> "a/b.c", "a/b"."""
    start = stem.rfind("/") + 1
    return [stem[:place] for place in range(len(stem) - 1, start, -1) if stem[place] == "."]


def _read_image(file: BinaryIO, entry: Entry, where: str) -> records.ImagePart:
    if entry.size > images.MAX_FILE_BYTES:
        raise images.SizeError(f"{where}: {entry.name!r} takes {entry.size} bytes, more than {images.MAX_FILE_BYTES}")
    file.seek(entry.offset)
    return records.ImagePart.from_bytes(file.read(entry.size), f"{where}: {entry.name}")


def _read_text(file: BinaryIO, group: _Group, where: str) -> tuple[bytes, bool]:
    """The caption file's bytes, and whether they are JSON."""
    if not group.texts:
        raise records.CaptionError(f"{where}: no caption (neither .json nor .txt)")
    ((extension, entry),) = group.texts.items()
    if entry.size > MAX_TEXT_BYTES:
        raise records.CaptionError(f"{where}: {entry.name!r} takes {entry.size} bytes, more than {MAX_TEXT_BYTES}")
    file.seek(entry.offset)
    return file.read(entry.size), extension == "json"
