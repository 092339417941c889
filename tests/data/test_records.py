"""The stored sample: what may be one, its msgpack form, and what is refused."""

import contextlib
import dataclasses
import struct

import ml_dtypes
import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextstep_jax.data import images, records
from nextstep_jax.data.records import ImagePart, Sample, TextPart, pack, unpack
from nextstep_jax.errors import DamagedDataError, InputError

PICTURE = ImagePart.from_pixels(np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3))
PAIR = Sample(
    (TextPart("a cat"), PICTURE),
    "pair",
    "k",
    {"short": "cat", "placed": "<image_0> a cat"},
    {"n": 1, "deep": {"a": [None, 2.5]}},
)

# --- strategies -------------------------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
text_parts = st.builds(TextPart, texts, st.booleans())
sizes = st.integers(1, 5)


@st.composite
def image_parts(draw):
    if draw(st.booleans()):
        pixels = np.full((draw(sizes), draw(sizes), 3), draw(st.integers(0, 255)), np.uint8)
        return ImagePart.from_pixels(pixels, draw(st.booleans()))
    dtype = draw(st.sampled_from(sorted(records.LATENT_DTYPES)))
    values = np.full((draw(sizes), draw(sizes), draw(sizes)), draw(st.floats(-10, 10, width=16)), records.LATENT_DTYPES[dtype])
    return ImagePart.from_latents(values, draw(sizes), draw(sizes), draw(st.booleans()))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | texts | st.just(""),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
).filter(lambda value: depth(value) < records.MAX_META_DEPTH)


def depth(value):
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(depth, inner), default=-1)


@st.composite
def samples(draw):
    parts = tuple(draw(st.lists(text_parts | image_parts(), min_size=1, max_size=5)))
    count = sum(isinstance(part, ImagePart) for part in parts)
    kind = draw(st.sampled_from([["text"], ["pair", "interleaved"], ["edit", "interleaved"]][min(count, 2)]))
    order = draw(st.permutations(range(count)))
    variant = "".join(f"{draw(texts)}<image_{n}>" for n in order) or "v"
    return Sample(parts, kind, draw(texts), {draw(texts): variant}, draw(st.dictionaries(texts, json_values, max_size=3)))


# --- the stored form --------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(samples())
def test_a_sample_survives_storage(sample):
    data = pack(sample)
    assert unpack(data) == sample
    assert pack(unpack(data)) == data


def test_the_schema_is_the_documented_one():
    latents = ImagePart.from_latents(np.ones((1, 2, 3), np.float16), 8, 16, loss=False)
    sample = Sample((latents, TextPart("go", loss=False), PICTURE), "edit", "k", {"v": "<image_1><image_0>"}, {"m": [1]})
    assert msgpack.unpackb(pack(sample)) == {
        "v": 1,
        "key": "k",
        "kind": "edit",
        "parts": [
            {
                "image": struct.pack("<6e", *[1] * 6),
                "format": "float16",
                "height": 8,
                "width": 16,
                "grid": [1, 2, 3],
                "loss": False,
            },
            {"text": "go", "loss": False},
            {"image": PICTURE.data, "format": "png", "height": 4, "width": 6, "grid": None, "loss": True},
        ],
        "variants": {"v": "<image_1><image_0>"},
        "meta": {"m": [1]},
    }


def test_stored_bytes_do_not_change():
    """Datasets on disk outlive the code that wrote them."""
    sample = Sample((TextPart("hi"),), "text", "k", {}, {"a": 1})
    stored = bytes.fromhex(
        "86a17601a36b6579a16ba46b696e64a474657874a570617274739182a474657874a26869a46c6f7373c3a876617269616e747380a46d65746181a16101"
    )
    assert pack(sample) == stored
    assert unpack(stored) == sample


@pytest.mark.parametrize("dtype", records.LATENT_DTYPES)
def test_latents_keep_their_numbers(dtype):
    values = np.random.default_rng(0).standard_normal((3, 4, 16)).astype(records.LATENT_DTYPES[dtype])
    part = unpack(pack(Sample((ImagePart.from_latents(values, 24, 32),), "pair", "k"))).images[0]
    assert part.is_latents and (part.height, part.width, part.grid) == (24, 32, (3, 4, 16))
    np.testing.assert_array_equal(part.latents(), values)
    assert part.latents().dtype == values.dtype
    with pytest.raises(InputError, match="stored as latents"):
        part.pixels()


def test_latents_in_any_memory_layout():
    values = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
    for view in (values.transpose(1, 0, 2), values[::2], values.astype(">f4")):
        np.testing.assert_array_equal(ImagePart.from_latents(view, 8, 8).latents(), view)
    assert ImagePart.from_latents(values.astype(ml_dtypes.bfloat16), 8, 8).format == "bfloat16"
    for bad in (values.astype(np.float64), values.astype(np.int32), values[0]):
        with pytest.raises(InputError, match=r"latents must be \[h, w, c\]"):
            ImagePart.from_latents(bad, 8, 8)


def test_encoded_images_keep_their_bytes():
    part = ImagePart.from_bytes(PICTURE.data)
    assert part == PICTURE
    assert part.pixels().shape == (4, 6, 3)
    with pytest.raises(InputError, match="has no latents"):
        part.latents()
    with pytest.raises(images.ImageError, match="^cat.png: "):
        ImagePart.from_bytes(b"GIF89a", "cat.png")


# --- captions ---------------------------------------------------------------------------------------------------------


def test_splitting_a_caption():
    assert records.split_caption("a<image_0> b <image_12>") == ["a", 0, " b ", 12]
    assert records.split_caption("<image_0> \n<image_1>") == [0, 1]
    assert records.split_caption("no <image> <image_x>") == ["no <image> <image_x>"]


def test_rewording_replaces_text_and_keeps_images_and_losses():
    assert PAIR.with_caption("short").parts == (TextPart("cat"), PICTURE)
    assert PAIR.with_caption("placed").parts == (PICTURE, TextPart(" a cat"))
    after = dataclasses.replace(PICTURE, loss=False)
    first = Sample((after, TextPart("what?", loss=False)), "pair", "k", {"v": "which?"})
    assert first.with_caption("v").parts == (after, TextPart("which?", loss=False))
    edit = Sample((after, TextPart("go"), PICTURE), "edit", "k", {"v": "from <image_0> to <image_1>!"})
    assert edit.with_caption("v").parts == (TextPart("from "), after, TextPart(" to "), PICTURE, TextPart("!"))


# --- what is no sample ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: TextPart(""),
        lambda: TextPart(b"bytes"),
        lambda: TextPart("\ud800"),
        lambda: TextPart("x" * (records.MAX_TEXT + 1)),
        lambda: TextPart("x", 1),
        lambda: ImagePart(b"", "png", 1, 1),
        lambda: ImagePart(b"x", "tiff", 1, 1),
        lambda: ImagePart(b"x", "png", 0, 1),
        lambda: ImagePart(b"x", "png", 1, True),
        lambda: ImagePart(b"x", "png", 1, 1, (1, 1, 1)),
        lambda: ImagePart(b"1234", "float32", 1, 1),
        lambda: ImagePart(b"1234", "float32", 1, 1, (1, 1, 2)),
        lambda: ImagePart(b"1234", "float32", 1, 1, (1, -1, -1)),
        lambda: ImagePart(b"1234", "float32", 1, 1, (1, 1.0, 1)),
        lambda: ImagePart(bytearray(b"x"), "png", 1, 1),
        lambda: Sample((), "text", "k"),
        lambda: Sample([TextPart("a")], "text", "k"),
        lambda: Sample(("a",), "text", "k"),
        lambda: Sample((TextPart("a"),) * (records.MAX_PARTS + 1), "text", "k"),
        lambda: Sample((TextPart("a"),), "poem", "k"),
        lambda: Sample((TextPart("a"),), "pair", "k"),
        lambda: Sample((PICTURE,), "text", "k"),
        lambda: Sample((PICTURE,), "edit", "k"),
        lambda: Sample((PICTURE, PICTURE), "pair", "k"),
        lambda: Sample((TextPart("a"),), "text", ""),
        lambda: Sample((TextPart("a"),), "text", "k", {"v": ""}),
        lambda: Sample((TextPart("a"),), "text", "k", {"v": "<image_0>"}),
        lambda: Sample((PICTURE, PICTURE), "edit", "k", {"v": "no place"}),
        lambda: Sample((PICTURE, PICTURE), "edit", "k", {"v": "<image_0><image_0>"}),
        lambda: Sample((TextPart("a"),), "text", "k", {}, {"a": {1, 2}}),
        lambda: Sample((TextPart("a"),), "text", "k", {}, {"a": b"bytes"}),
        lambda: Sample((TextPart("a"),), "text", "k", {}, {1: "a"}),
        lambda: Sample((TextPart("a"),), "text", "k", {}, {"a": 2**64}),
        lambda: Sample((TextPart("a"),), "text", "k", {}, {"a": [[[[[[[[[1]]]]]]]]]}),
        lambda: Sample((TextPart("a"),), "text", "k", {}, {"a": [0] * (records.MAX_ITEMS + 1)}),
    ],
)
def test_what_is_no_sample_is_an_input_error(make):
    with pytest.raises(InputError) as caught:
        make()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def altered(**changes):
    return msgpack.packb(msgpack.unpackb(pack(PAIR)) | changes)


HOSTILE = {
    "empty": b"",
    "not a map": msgpack.packb([1, 2]),
    "trailing bytes": pack(PAIR) + b"\0",
    "a huge list": b"\xdd\xff\xff\xff\xff",
    "a huge map": b"\xdf\xff\xff\xff\xff",
    "a huge string": b"\xdb\xff\xff\xff\xff",
    "a deep nest": b"\x91" * 100_000,
    "deep maps": b"\x81\xa1a" * 100_000,
    "an extension": altered(meta={"a": msgpack.ExtType(5, b"payload")}),
    "a timestamp": altered(meta={"a": msgpack.Timestamp(1, 0)}),
    "a missing key": msgpack.packb({"v": 1, "key": "k"}),
    "an extra key": altered(extra=1),
    "a number for a map": altered(meta=5),
    "parts as a map": altered(parts={}),
    "no parts": altered(parts=[]),
    "a part of nothing": altered(parts=[{}]),
    "a part as text": altered(parts=["text"]),
    "bytes for text": altered(parts=[{"text": b"\xff", "loss": True}], kind="text", variants={}),
    "text for bytes": altered(parts=[{"image": "x", "format": "png", "height": 1, "width": 1, "grid": None, "loss": True}]),
    "a number for loss": altered(parts=[{"text": "x", "loss": 1}], kind="text", variants={}),
    "a list for a kind": altered(kind=["pair"]),
    "a map for a format": altered(parts=[{"image": b"x", "format": {}, "height": 1, "width": 1, "grid": None, "loss": True}]),
    "version true": altered(v=True),
    "a number for a variant": altered(variants={"a": 1}),
    "bytes as a name": msgpack.packb({b"v": 1}),
    "text that is not UTF-8": b"\x81\xa1v\xa2\xff\xfe",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_records_are_damaged_data(name):
    with pytest.raises(DamagedDataError, match="^shard 3: not a stored sample") as caught:
        unpack(HOSTILE[name], "shard 3")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_every_truncation_is_damaged_data():
    data = pack(PAIR)
    for length in range(len(data)):
        with pytest.raises(DamagedDataError):
            unpack(data[:length])


def test_another_version_is_named():
    with pytest.raises(InputError, match="r: sample schema version 2, this library reads 1"):
        unpack(altered(v=2), "r")


def test_an_oversized_record_is_refused(monkeypatch):
    data = pack(PAIR)
    monkeypatch.setattr(records, "MAX_RECORD_BYTES", len(data) - 1)
    with pytest.raises(InputError, match="'k' takes"):
        pack(PAIR)
    with pytest.raises(DamagedDataError, match="more than a sample's"):
        unpack(data)


@settings(deadline=None, max_examples=500)
@given(st.data())
def test_damaged_records_never_raise_anything_else(data):
    damaged = bytearray(pack(PAIR))
    for place, value in data.draw(st.lists(st.tuples(st.integers(0, len(damaged) - 1), st.integers(0, 255)), max_size=4)):
        damaged[place] = value
    with contextlib.suppress(DamagedDataError, InputError):
        assert isinstance(unpack(bytes(damaged)), Sample)
