"""WebDataset tars: the release's layout, the tar format against the standard library, and hostile tars."""

import contextlib
import gzip
import io
import json
import os
import pathlib
import pickle
import tarfile
import tempfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextstep_jax.data import captions, images, records, webdataset
from nextstep_jax.data.image_output import encode_image
from nextstep_jax.data.records import TextPart
from nextstep_jax.data.source import IMAGE_EXTENSIONS, Unused
from nextstep_jax.data.webdataset import Entry, WebDatasetSource, read_tar_index
from nextstep_jax.errors import InputError


def png(level, height=4, width=6):
    return encode_image(np.full((height, width, 3), level, np.uint8))


def write_tar(path, entries, format=tarfile.USTAR_FORMAT):
    """Entries are (name, bytes or JSON value) pairs, or TarInfos."""
    with tarfile.open(path, "w", format=format) as tar:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                tar.addfile(entry)
                continue
            name, content = entry
            content = content if isinstance(content, bytes) else json.dumps(content).encode()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def tar(tmp_path):
    return lambda entries, **options: write_tar(tmp_path / "idx_0000_0000.tar", entries, **options)


def level(part):
    return int(part.pixels()[0, 0, 0])


# --- the release's layout ---------------------------------------------------------------------------------------------


def test_an_edit_in_the_released_layout(tar):
    value = {
        "caption": "<image_0>make it blue<image_1>",
        "caption_all": {
            "subject_driven": "a cat<image_0>make it blue<image_1>",
            "alone": "blue",
            "list": ["<image_1>from<image_0>"],
        },
        "metadata": {"input_image": "a.jpg", "score": 0.5},
        "height": 4,
    }
    path = tar([("ab12.json", value), ("ab12-0.jpg", png(10)), ("ab12-1.jpg", png(20))])
    sample = WebDatasetSource([path], "edit")[0]
    assert (sample.key, sample.kind) == ("ab12", "edit")
    first, text, second = sample.parts
    assert (level(first), first.loss, text, level(second), second.loss) == (10, False, TextPart("make it blue"), 20, True)
    assert first.data == png(10) and first.format == "png"  # by content, whatever the name says
    assert sample.caption_variants == {
        "caption_all.subject_driven": "a cat<image_0>make it blue<image_1>",
        "caption_all.list.0": "<image_1>from<image_0>",
    }
    assert sample.metadata == {"metadata": {"input_image": "a.jpg", "score": 0.5}, "height": 4}


def test_a_pair_a_text_and_a_plain_caption_file(tar):
    path = tar(
        [
            ("aa.json", {"caption": "a cat", "caption_all": ["one", "two"]}),
            ("aa-0.jpg", png(1)),
            ("bb.json", {"text": "a document"}),
            ("cc.webp", png(3)),
            ("cc.txt", "um<image_0>stellen: ü".encode()),
        ]
    )
    source = WebDatasetSource([path])
    assert len(source) == 3
    pair, text, plain = (source[i] for i in range(3))
    assert (pair.kind, pair.parts[0], level(pair.parts[1])) == ("pair", TextPart("a cat"), 1)
    assert pair.caption_variants == {"caption_all.0": "one", "caption_all.1": "two"}
    assert (text.kind, text.parts) == ("text", (TextPart("a document"),))
    assert (plain.parts[0], plain.parts[2]) == (TextPart("um"), TextPart("stellen: ü"))


def test_interleaved_images_follow_their_numbers_not_their_order_in_the_tar(tar):
    names = [f"k-{n}.png" for n in (10, 2, 1)]  # numbered from 1, with a gap: places 0, 1, 2 in order
    path = tar([(name, png(int(name[2:-4]))) for name in names] + [("k.json", {"caption": "a<image_0>b<image_1>c<image_2>"})])
    sample = WebDatasetSource([path], "interleaved")[0]
    assert [part.text if isinstance(part, TextPart) else level(part) for part in sample.parts] == ["a", 1, "b", 2, "c", 10]
    assert all(part.loss for part in sample.parts)


def test_variants_count_the_sample_images(tar):
    """The caption places images 2 and 0 only, in this order; a variant's numbers follow."""
    value = {"caption": "<image_2>x<image_0>", "caption_b": "<image_0>y<image_2>", "caption_c": "<image_1>z<image_2>"}
    path = tar([("k.json", value), *[(f"k-{n}.png", png(n)) for n in range(3)]])
    sample = WebDatasetSource([path], "interleaved")[0]
    assert [level(part) for part in sample.images] == [2, 0]
    assert sample.caption_variants == {"caption_b": "<image_1>y<image_0>"}
    assert [level(part) for part in sample.with_caption("caption_b").images] == [0, 2]


def test_several_images_need_a_kind(tar):
    path = tar([("k.json", {"caption": "<image_0>x<image_1>"}), ("k-0.png", png(0)), ("k-1.png", png(1))])
    with pytest.raises(InputError, match="idx_0000_0000.tar: sample k has several images; say whether"):
        WebDatasetSource([path])
    with pytest.raises(InputError, match="kind must be one of"):
        WebDatasetSource([path], "text")


def test_many_tars_are_one_source(tmp_path):
    tars = [
        write_tar(tmp_path / f"idx_0000_{n:04d}.tar", [(f"d{n}/{i}.json", {"text": f"{n} {i}"}) for i in range(n)])
        for n in (2, 3)
    ]
    source = pickle.loads(pickle.dumps(WebDatasetSource(tars, name="books")))
    assert (source.name, [source[i].parts[0].text for i in range(5)]) == ("books", ["2 0", "2 1", "3 0", "3 1", "3 2"])
    assert source[4].key == "d3/2"
    before = source.fingerprint(0, 2), source.fingerprint(1, 3)
    os.utime(tars[1], (1, 1))
    assert [source.fingerprint(0, 2) == before[0], source.fingerprint(1, 3) == before[1]] == [True, False]


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ({"caption": ""}, records.CaptionError, "empty caption"),
        ({"caption": "  \n"}, records.CaptionError, "empty caption"),
        ({}, records.CaptionError, "empty caption"),
        ({"caption": 5}, InputError, "caption must be a string, found a number"),
        ({"caption": {"a": ["x", True]}}, InputError, r"caption.a.1 must be a string, found true or false"),
        ({"caption_all": ["x", 1.5]}, InputError, r"caption_all.1 must be a string, found a number"),
        ({"caption": None}, records.CaptionError, "empty caption"),
        ({"text": ["a", "b"]}, InputError, "text must be a string, found a list"),
        (b"", InputError, "not valid JSON"),
        (b"[1]", InputError, "expected a JSON object, found a list"),
        (b'{"caption": "a', InputError, "not valid JSON"),
        (b"\xff\xfe", InputError, "not valid JSON"),
        (b'{"a":' * 50_000, InputError, "not valid JSON"),
        (b'{"caption": "a", "n": ' + b"9" * 5000 + b"}", InputError, "not valid JSON"),
        ({"caption": "a", "n": 2**70}, InputError, "64 bits"),
        ({"caption": "a", "n": [[[[[[[[[[1]]]]]]]]]]}, InputError, "nested deeper"),
        ({"caption": "a", "caption_all": [[[[[[[[[["x"]]]]]]]]]]}, InputError, "nested deeper"),
        ({"caption": "x<image_1>"}, InputError, "places <image_1>, but there are 1 images"),
        ({"caption": "<image_0><image_0>"}, InputError, "more than once"),
        ({"caption": "a" * (records.MAX_TEXT + 1)}, InputError, "more than"),
        (b'{"caption": "\\ud800"}', InputError, "surrogate"),
    ],
)
def test_a_bad_caption_is_named(tar, value, error, message):
    path = tar([("k.json", value), ("k-0.png", png(0))])
    with pytest.raises(error, match=message) as caught:
        WebDatasetSource([path])[0]
    assert str(caught.value).startswith(f"{path}: k") and "\n" not in str(caught.value)


def test_samples_with_something_missing(tar):
    path = tar(
        [
            ("noimage.json", {"caption": "a lost picture"}),
            ("notext-0.png", png(0)),
            ("broken.json", {"caption": "x"}),
            ("broken-0.png", b"not an image"),
            ("unplaced.json", {"caption": "x"}),
            ("unplaced-0.png", png(0)),
            ("unplaced-1.png", png(0)),
            ("few.json", {"caption": "<image_0>"}),
            ("few-0.png", png(0)),
        ]
    )
    source = WebDatasetSource([path], "edit")
    for index, (error, message) in enumerate(
        [
            (images.ImageError, "noimage: a caption without an image"),
            (records.CaptionError, r"notext-0: no caption \(neither"),
            (images.ImageError, "broken: broken-0.png: not a PNG"),
            (InputError, "unplaced: 2 images, but the caption places none"),
            (InputError, "few: a sample of kind 'edit' cannot have 1 images"),
        ]
    ):
        with pytest.raises(error, match=message):
            source[index]


# --- the tar format ---------------------------------------------------------------------------------------------------

printable = st.characters(exclude_characters="/\0").filter(str.isprintable)
names = st.text(printable, min_size=1, max_size=150).map(lambda s: f"d/{s}.bin")


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(names, st.integers(0, 1500)), max_size=6, unique_by=lambda entry: entry[0]),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_the_index_agrees_with_the_standard_library(tmp_path_factory, entries, format):
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    write_tar(path, [(name, bytes(size)) for name, size in entries], format)
    with tarfile.open(path) as tar:
        expected = [(member.name, member.offset_data, member.size) for member in tar if member.isreg()]
    assert [tuple(entry) for entry in read_tar_index(path)] == expected


def test_long_ustar_names_and_foreign_entries(tar):
    folder = tarfile.TarInfo("folder")
    folder.type = tarfile.DIRTYPE
    long = "p" * 120 + "/" + "n" * 90 + ".json"
    path = tar(
        [folder, (long, b"{}"), ("._k.json", b"{}"), ("k.json", {"text": "x"}), ("k.cls", b"3"), ("k.npy", b"\x93NUMPY")]
    )
    assert [entry.name for entry in read_tar_index(path)] == [long, "._k.json", "k.json", "k.cls", "k.npy"]
    assert WebDatasetSource([path])[1].parts == (TextPart("x"),)


# --- hostile tars -----------------------------------------------------------------------------------------------------


def test_names_are_labels_and_never_paths(tmp_path):
    root = tmp_path / "a" / "b"
    root.mkdir(parents=True)
    (tmp_path / "secret.json").write_text('{"text": "secret"}')
    evil = [
        "../../secret.json",
        str(tmp_path / "secret.json"),
        "/etc/passwd.json",
        "C:\\secret.json",
        "~/x.json",
        "x\n\x1b[31m.json",
    ]
    path = write_tar(root / "idx.tar", [(name, {"text": "mine"}) for name in evil])
    before = sorted(tmp_path.rglob("*"))
    source = WebDatasetSource([path])
    assert [source[i].parts[0].text for i in range(len(source))] == ["mine"] * len(evil)
    assert sorted(tmp_path.rglob("*")) == before
    assert source[5].key == r"x\n\x1b[31m"


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE])
def test_links_and_devices_are_ignored(tar, kind):
    link = tarfile.TarInfo("k-0.png")
    link.type, link.linkname, link.size = kind, "/etc/passwd", 0
    path = tar([link, ("k.json", {"caption": "x"})])
    with pytest.raises(images.ImageError, match="a caption without an image"):
        WebDatasetSource([path])[0]
    assert [entry.name for entry in read_tar_index(path)] == ["k.json"]


def test_a_link_that_claims_content_does_not_hide_what_follows(tar):
    link = tarfile.TarInfo("link")
    link.type, link.linkname, link.size = tarfile.SYMTYPE, "x", 512
    path = tar([("a.json", {"text": "x"})])
    path.write_bytes(link.tobuf() + path.read_bytes())
    assert [entry.name for entry in read_tar_index(path)] == ["a.json"]


def test_pickles_are_never_opened(tar, tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    path = tar([("k.json", {"text": "x"}), ("k.pickle", pickle.dumps(Payload())), ("k.pkl", pickle.dumps(Payload()))])
    (tmp_path / "idx_0000_0000.tar.index").write_bytes(pickle.dumps(Payload()))  # where the release caches its index
    assert WebDatasetSource([path])[0].parts == (TextPart("x"),)
    assert not (tmp_path / "executed").exists()


def header(name="k.json", size=b"00000000002\0", kind=b"0"):
    block = bytearray(512)
    block[: len(name)] = name.encode()
    block[100:108] = b"0000644\0"
    block[124:136] = size
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


END = bytes(1024)
BODY = b"{}" + bytes(510)
PAX = b"x"


def pax(content):
    return header("PaxHeader", b"%011o\0" % len(content), PAX) + content + bytes(-len(content) % 512)


HOSTILE = {
    "empty": (b"", "truncated tar"),
    "half a header": (header()[:300], "truncated tar"),
    "no end mark": (header() + BODY, "truncated tar"),
    "cut inside an entry": (header(size=b"00000010000\0") + BODY, "claims 4096 bytes, 512 are left"),
    "a huge octal size": (header(size=b"777777777777") + BODY + END, "claims 68719476735 bytes"),
    "a huge base-256 size": (header(size=b"\x80\0\0\0\x7f" + b"\xff" * 7) + BODY + END, "claims"),
    "a negative size": (header(size=b"\xff" * 12) + BODY + END, "truncated or damaged"),
    "a size that is no number": (header(size=b"12x45678901\0") + BODY + END, "truncated or damaged"),
    "a wrong checksum": (header().replace(b"k.json", b"l.json") + BODY + END, "wrong header checksum"),
    "not a tar": (b"PK\x03\x04" + bytes(2000), "not a tar"),
    "text": (b"hello " * 200, "not a tar"),
    "compressed": (gzip.compress(header() + BODY + END + os.urandom(600)), "compressed"),
    "a PAX size beyond the file": (pax(b"17 size=99999999\n") + header() + BODY + END, "claims 99999999 bytes"),
    "a negative PAX size": (pax(b"11 size=-1\n") + header() + BODY + END, "malformed"),
    "a PAX record that lies about its length": (pax(b"99 path=x\n") + header() + BODY + END, "malformed"),
    "a PAX record of length 0": (pax(b"0 path=x\n") + header() + BODY + END, "malformed"),
    "a PAX record without a key": (pax(b"8 abcde\n") + header() + BODY + END, "malformed"),
    "a huge PAX header": (header("x", b"%011o\0" % (1 << 20), PAX) + bytes(1 << 20) + END, "takes 1048576 bytes"),
    "a huge long name": (header("x", b"%011o\0" % (1 << 20), b"L") + bytes(1 << 20) + END, "takes 1048576 bytes"),
    "a sparse file": (pax(b"22 GNU.sparse.major=1\n") + header() + BODY + END, "sparse"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_tars_are_refused_by_name(tmp_path, name):
    data, message = HOSTILE[name]
    path = tmp_path / "evil.tar"
    path.write_bytes(data)
    with pytest.raises(InputError, match=f"evil.tar: .*{message}") as caught:
        WebDatasetSource([path])
    assert "\n" not in str(caught.value)


def test_what_has_no_samples_is_refused(tar, tmp_path):
    with pytest.raises(InputError, match="no samples"):
        WebDatasetSource([tar([("readme.md", b"x")])])
    with pytest.raises(InputError, match="missing.tar: cannot be read"):
        WebDatasetSource([tmp_path / "missing.tar"])


def test_entries_over_the_limits_are_not_read(tar, monkeypatch):
    path = tar([("a.json", {"text": "x" * 100}), ("b.json", {"caption": "x"}), ("b-0.png", png(0))])
    monkeypatch.setattr(webdataset, "MAX_TEXT_BYTES", 50)
    with pytest.raises(records.CaptionError, match="a.json.*takes 112 bytes, more than 50"):
        WebDatasetSource([path])[0]
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 50)
    with pytest.raises(images.SizeError, match="b-0.png.*more than 50"):
        WebDatasetSource([path])[1]
    monkeypatch.setattr(webdataset, "_MAX_ENTRIES", 2)
    with pytest.raises(InputError, match="more than 2 entries"):
        WebDatasetSource([path])


def test_duplicates_and_too_many_images_are_that_samples_problem(tar):
    many = [(f"c-{n}.png", png(0)) for n in range(records.MAX_PARTS // 2 + 1)]
    twice = [("a.json", {"text": "1"}), ("a.json", {"text": "2"}), ("b-0.png", png(0)), ("b-0.jpg", png(1))]
    source = WebDatasetSource([tar([*twice, *many, ("c.json", {"text": "x"}), ("d.json", {"text": "fine"})])], "interleaved")
    for index, message in enumerate(["two entries are named 'a.json'", "two entries are its image 0", "more than 512 images"]):
        with pytest.raises(InputError, match=message):
            source[index]
    assert source[3].parts == (TextPart("fine"),)


def test_a_tar_that_vanishes_is_named(tar):
    path = tar([("a.json", {"text": "x"})])
    source = WebDatasetSource([path])
    path.unlink()
    with pytest.raises(InputError, match="idx_0000_0000.tar: cannot be read"):
        source[0]


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), min_size=1, max_size=6), st.integers(0, 20_000))
def test_damaged_tars_never_raise_anything_else(tmp_path_factory, changes, length):
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    write_tar(path, [("a" * 120 + ".json", {"caption": "x"}), ("a" * 120 + "-0.png", png(3))], tarfile.PAX_FORMAT)
    data = bytearray(path.read_bytes())
    for place, value in changes:
        data[place] = value
    path.write_bytes(data[:length])
    try:
        source = WebDatasetSource([path])
        for index in range(len(source)):
            source[index].images[0].pixels()
    except (InputError, IndexError) as error:
        assert isinstance(error, InputError) or source[index].kind == "text"


def test_the_name_of_a_caption_file_says_what_it_is():
    assert captions.parse_text(b"\xef\xbb\xbf cat \n", False, "x").caption == "cat"
    with pytest.raises(records.CaptionError, match="x: the caption is not UTF-8"):
        captions.parse_text(b"\xff", False, "x")


# --- what belongs together, and what is left over ---------------------------------------------------------------------


def samples_and_unused(path, kind=None):
    """({key: (caption, image levels) or why not}, {reason: names})."""
    source = WebDatasetSource([path], kind)
    found = {}
    for index in range(len(source)):
        try:
            sample = source[index]
            found[sample.key] = ("".join(part.text for part in sample.texts), [level(part) for part in sample.images])
        except InputError as error:
            found[str(error).removeprefix(f"{path}: ").partition(":")[0]] = str(error)
    return found, {reason: things["names"] for reason, things in source.unused.to_json().items()}


@pytest.mark.parametrize(
    "key", ["00000-000001", "kitchen-7", "22.05", "song 2.0 (clean)", "x.image", "a.b-3", "v1.0/x.y", "-1", "a-"]
)
@pytest.mark.parametrize("suffix", ["txt", "json"])
def test_a_caption_with_the_exact_stem_comes_first(tar, key, suffix):
    caption = {"caption": "right"} if suffix == "json" else b"right"
    others = [
        ("kitchen.txt", b"wrong"),
        ("22.txt", b"wrong"),
        ("x.txt", b"wrong"),
        ("a.txt", b"wrong"),
        ("00000.txt", b"wrong"),
    ]
    found, unused = samples_and_unused(tar([*others, (f"{key}.{suffix}", caption), (f"{key}.png", png(9))]))
    assert found[key] == ("right", [9]) and not unused
    assert sum(isinstance(value, tuple) for value in found.values()) == 1


def test_the_image_of_a_lost_sample_gets_no_other_caption(tar):
    found, _ = samples_and_unused(tar([("dog.txt", b"a brown dog"), ("dog-1.png", png(5)), ("dog-1.txt", b"a white dog")]))
    assert found["dog-1"] == ("a white dog", [5]) and "a caption without an image" in found["dog"]


def test_fields_belong_to_the_key_before_the_dot(tar):
    """As WebDataset names them, where the exact stem has no caption."""
    entries = [("a.input.png", png(1)), ("a.txt", b"A"), ("b.png", png(2)), ("b.caption.txt", b"B"), ("c.png", png(3))]
    entries += [("c.mask.png", png(4)), ("c.txt", b"C"), ("c.note.txt", b"N")]
    found, unused = samples_and_unused(tar(entries))
    assert found == {"a": ("A", [1]), "b": ("B", [2]), "c": ("C", [3])}
    assert {name.split(": ")[1] for name in unused.pop("further field of a sample")} == {
        "c.mask.png",
        "c.note.txt",
    } and not unused


def test_several_fields_without_numbers_are_no_guess(tar):
    found, _ = samples_and_unused(tar([("a.txt", b"A"), ("a.x.png", png(1)), ("a.y.png", png(2))]))
    assert "its images 'a.x.png' and 'a.y.png' have no numbers" in found["a"]


def test_what_is_in_a_tar_and_in_no_sample_is_named(tar, tmp_path):
    link, pipe, door = tarfile.TarInfo("link.png"), tarfile.TarInfo("pipe"), tarfile.TarInfo("folder")
    link.type, link.linkname, pipe.type, door.type = tarfile.SYMTYPE, "/etc/passwd", tarfile.FIFOTYPE, tarfile.DIRTYPE
    entries = [
        ("a.txt", b"A"),
        ("a.json", {"caption": "J"}),
        ("a.png", png(1)),
        (".a.png", b""),
        ("x/.h/b.png", b""),
        ("c.npy", b"0"),
    ]
    path = tar([*entries, ("inner.tar.gz", b"0"), ("README", b"x"), link, pipe, door])
    with open(path, "ab") as file:
        file.write(b"more")
    found, unused = samples_and_unused(path)
    assert found == {"a": ("J", [1])}
    size = os.path.getsize(path)
    assert {reason: [name.split(": ", 1)[1] for name in names] for reason, names in unused.items()} == {
        "caption beside a .json": ["a.txt"],
        "hidden": [".a.png", "x/.h/b.png"],
        "other file": ["c.npy", "README"],
        "archive inside an archive": ["inner.tar.gz"],
        "link": ["link.png"],
        "not a regular file": ["pipe"],
        "bytes after the archive's end": [f"4 bytes from byte {size - 4} on"],
    }


def test_a_second_archive_after_the_first_is_noticed(tar, tmp_path):
    path = tar([("a.txt", b"A"), ("a.png", png(1))])
    path.write_bytes(path.read_bytes() * 2)
    assert list(samples_and_unused(path)[1]) == ["bytes after the archive's end"]


def test_images_and_variants_that_a_caption_leaves_out_are_named(tar):
    value = {"caption": "<image_2>x<image_0>", "caption_b": "<image_0>y<image_2>", "caption_c": "<image_1>z<image_2>"}
    sample = WebDatasetSource([tar([("k.json", value), *[(f"k-{n}.png", png(n)) for n in range(3)]])], "interleaved")[0]
    assert [(reason, name.split(": ", 1)[1]) for reason, name in sample.unused] == [
        (captions.UNPLACED, "k: image 1"),
        (captions.OTHER_VARIANT, "k: caption_c"),
    ]


STEMS = st.builds("".join, st.lists(st.sampled_from(["a", "b", "-1", "-2", ".", "x/", ".5", " "]), min_size=1, max_size=5))
NAMES = st.builds("{}.{}".format, STEMS, st.sampled_from(["png", "JPG", "jfif", "txt", "json", "npy", "tar", "heic"]))


@settings(max_examples=300, deadline=None)
@given(st.lists(NAMES, min_size=1, max_size=12, unique=True))
def test_every_entry_is_in_one_sample_or_unused(names):
    """And an image with the stem of a caption is in that caption's sample."""
    unused = Unused()
    entries = [Entry(name, 512 * place, 1) for place, name in enumerate(names)]
    groups = webdataset._Grouping(0, "t", unused).group(entries)
    used = [entry.name for group in groups.values() for entry in (*group.texts.values(), *group.images.values())]
    left = [name.removeprefix("t: ") for things in unused.to_json().values() for name in things["names"]]
    assert sorted([*used, *left]) == sorted(names)
    by_stem = {}
    for name in names:
        by_stem.setdefault(name.rpartition(".")[0], []).append(name)
    for stem, alike in by_stem.items():
        image = [name for name in alike if name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS and name in used]
        text = [name for name in alike if name.endswith((".txt", ".json")) and name in used]
        if image and text:
            group = groups[stem]
            assert {entry.name for entry in group.texts.values()} == set(text)
            assert set(image) & {entry.name for entry in group.images.values()}


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_tar_is_an_error_or_read(data):
    """Any bytes of a tar changed, cut or added: an InputError, or entries inside the file."""
    whole = bytearray(TAR)
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    whole = whole[: data.draw(st.integers(0, len(whole)))] + data.draw(st.binary(max_size=600))
    with tempfile.NamedTemporaryFile(suffix=".tar") as file:
        file.write(whole)
        file.flush()
        try:
            source = WebDatasetSource([file.name])
        except InputError:
            return
        for index in range(len(source)):
            with contextlib.suppress(InputError):
                source[index]
        assert source.unused.to_json() is not None and source.identity()


def _whole_tar():
    with tempfile.TemporaryDirectory() as folder:
        entries = [("a.json", {"caption": "A"}), ("a.png", png(1)), ("b" * 120 + ".txt", b"B"), ("b" * 120 + ".png", png(2))]
        return write_tar(pathlib.Path(folder) / "t.tar", entries, format=tarfile.PAX_FORMAT).read_bytes()


TAR = _whole_tar()


def test_a_pipe_named_as_a_tar_is_refused(tmp_path):
    os.mkfifo(tmp_path / "x.tar")
    with pytest.raises(InputError, match=r"x.tar: not a regular file"):
        WebDatasetSource([tmp_path / "x.tar"])
