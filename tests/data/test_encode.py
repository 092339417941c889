"""Datasets of latents: order, batches, what is passed through, interruption, refusals."""

import pickle
import shutil

import numpy as np
import pytest
from PIL import Image

from nextstep_jax.data import images, records, shards
from nextstep_jax.data.encode import encode
from nextstep_jax.data.records import ImagePart, Sample, TextPart
from nextstep_jax.data.shards import ArrayRecordSource
from nextstep_jax.data.sources import open_source
from nextstep_jax.errors import DamagedDataError, InputError


def picture(level, height, width, loss=True):
    return ImagePart.from_pixels(np.full((height, width, 3), level, np.uint8), loss)


SAMPLES = [
    Sample((TextPart("0"), picture(10, 32, 32)), "pair", "0", {"v": "other"}, {"m": 1}),
    Sample((TextPart("1"), picture(20, 16, 64)), "pair", "1"),
    Sample((TextPart("2"),), "text", "2"),
    Sample((picture(30, 40, 40, loss=False), TextPart("3", loss=False), picture(40, 64, 16)), "edit", "3"),
    Sample((TextPart("4"), picture(50, 30, 34)), "pair", "4"),
    Sample((TextPart("5"), picture(60, 32, 32)), "pair", "5"),
]


@pytest.fixture
def dataset(tmp_path):
    directory = tmp_path / "pixels"
    directory.mkdir()
    entries = [
        shards.write_shard(directory / shards.shard_name(n), [records.pack(s) for s in SAMPLES[3 * n : 3 * n + 3]])
        for n in range(2)
    ]
    shards.write_index(directory, "tiny", entries, images=6, kinds={"pair": 4, "text": 1, "edit": 1})
    return directory


class Encoder:
    """[B, H, W, 3] -> [B, H/8, W/8, 4]: block averages, and a channel of ones."""

    def __init__(self):
        self.shapes = []

    def __call__(self, pixels):
        self.shapes.append(pixels.shape)
        assert pixels.dtype == np.float32
        b, h, w, _ = pixels.shape
        blocks = pixels.reshape(b, h // 8, 8, w // 8, 8, 3).mean((2, 4))
        return np.concatenate([blocks, np.ones_like(blocks[..., :1])], -1)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_latents_replace_images_in_place(dataset, tmp_path, batch):
    encoder = Encoder()
    counts = encode(dataset, encoder, tmp_path / "out", area=32, batch=batch, dtype="float32", encoder={"weights": "abc"})
    assert counts == {"samples": 6, "images": 6}
    source = ArrayRecordSource(tmp_path / "out")
    assert source.index["latents"] == {"area": 32, "dtype": "float32", "weights": "abc"}
    assert (source.name, source.index["kinds"]) == ("tiny", {"text": 1, "pair": 4, "edit": 1})
    for index, before in enumerate(SAMPLES):
        after = source[index]
        assert (after.key, after.kind, after.texts, after.caption_variants, after.metadata) == (
            before.key,
            before.kind,
            before.texts,
            before.caption_variants,
            before.metadata,
        )
        assert [type(part) for part in after.parts] == [type(part) for part in before.parts]
        for old, new in zip(before.images, after.images, strict=True):
            assert new.is_latents and new.loss == old.loss
            assert (new.height, new.width) == images.bucket_for(width=old.width, height=old.height, area=32)
            latents = new.latents()
            assert latents.shape == (new.height // 8, new.width // 8, 4)
            np.testing.assert_allclose(latents[..., :3], old.pixels()[0, 0, 0] / 127.5 - 1, atol=1e-6)
    assert {shape[0] for shape in encoder.shapes} == {batch}  # one shape per bucket, whatever is left over
    assert {shape[1:3] for shape in encoder.shapes} == {(32, 32), (16, 64), (64, 16)}


def test_latents_are_stored_in_half_the_bytes_by_default(dataset, tmp_path):
    encode(dataset, Encoder(), tmp_path / "out", area=32)
    assert ArrayRecordSource(tmp_path / "out")[0].images[0].format == "bfloat16"


def test_an_interrupted_encoding_goes_on(dataset, tmp_path):
    class Failing(Encoder):
        def __call__(self, pixels):
            if len(self.shapes) == 3:
                raise KeyboardInterrupt
            return super().__call__(pixels)

    with pytest.raises(KeyboardInterrupt):
        encode(dataset, Failing(), tmp_path / "out", area=32, batch=1)
    with pytest.raises(InputError, match="not a dataset"):
        ArrayRecordSource(tmp_path / "out")
    encoder = Encoder()
    encode(dataset, encoder, tmp_path / "out", area=32, batch=1)
    assert len(encoder.shapes) == 4  # only the second shard's images
    encode(dataset, Encoder(), tmp_path / "whole", area=32, batch=1)
    assert ArrayRecordSource(tmp_path / "out").index == ArrayRecordSource(tmp_path / "whole").index
    with pytest.raises(InputError, match="made otherwise"):
        encode(dataset, encoder, tmp_path / "out", area=32, batch=1, encoder={"weights": "others"})


def test_latents_are_not_encoded_again(dataset, tmp_path):
    encode(dataset, Encoder(), tmp_path / "out", area=32)
    with pytest.raises(InputError, match="out: holds latents already"):
        encode(tmp_path / "out", Encoder(), tmp_path / "again", area=32)


@pytest.mark.parametrize(
    ("encode_fn", "dtype", "message"),
    [
        (lambda pixels: Encoder()(pixels) * np.nan, "bfloat16", "not finite numbers in bfloat16, in one of the samples 0"),
        (lambda pixels: Encoder()(pixels) + 1e6, "float16", "not finite numbers in float16"),
        (lambda pixels: Encoder()(pixels)[:1], "bfloat16", r"must return \[2, h, w, c\] latents, found \[1, 4, 4, 4\]"),
        (lambda pixels: pixels[..., 0], "bfloat16", "must return"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_an_encoder_that_fails_leaves_no_dataset(dataset, tmp_path, encode_fn, dtype, message):
    with pytest.raises(InputError, match=message):
        encode(dataset, encode_fn, tmp_path / "out", area=32, batch=2, dtype=dtype)
    assert not (tmp_path / "out" / "index.json").exists()
    assert not list((tmp_path / "out").glob("*.array_record"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float64"}, "dtype must be one of"),
        ({"batch": 0}, "at least 1"),
        ({"threads": 0}, "at least 1"),
        ({"area": 100}, "multiple of 16"),
    ],
)
def test_bad_options(dataset, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        encode(dataset, Encoder(), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_damaged_shard_is_noticed_before_it_is_encoded(dataset, tmp_path):
    path = dataset / shards.shard_name(1)
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT")] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedDataError, match="shard-00001"):
        encode(dataset, Encoder(), tmp_path / "out", area=32)


def test_a_square_is_what_stage_1_crops_to(dataset, tmp_path):
    """Whatever the aspect ratio: the middle square of an image scaled to cover 32x32 (against Pillow)."""
    noise = np.random.default_rng(0).integers(0, 256, (48, 80, 3), np.uint8)
    part = ImagePart.from_pixels(noise)
    entry = shards.write_shard(dataset / shards.shard_name(0), [records.pack(Sample((part,), "pair", "wide"))])
    shards.write_index(dataset, "tiny", [entry], images=1, kinds={"pair": 1})
    encoder, seen = Encoder(), []

    def keep(pixels):
        seen.append(pixels)
        return encoder(pixels)

    encode(dataset, keep, tmp_path / "out", area=32, square=True, batch=1, dtype="float32")
    expected = Image.fromarray(noise).resize((32, 32), Image.Resampling.LANCZOS, box=(16, 0, 64, 48))
    np.testing.assert_allclose(seen[0][0], np.asarray(expected, np.float32) / 127.5 - 1, atol=1e-6)
    assert ArrayRecordSource(tmp_path / "out").index["latents"] == {"area": 32, "dtype": "float32", "square": True}
    encode(dataset, keep, tmp_path / "buckets", area=32, batch=1, dtype="float32")
    assert seen[1].shape[1:3] == images.bucket_for(width=80, height=48, area=32) != (32, 32)


def test_images_can_keep_their_size(dataset, tmp_path):
    """Whole, unlike in a bucket; where sides are not of whole tokens, the image is named."""
    with pytest.raises(InputError, match=r"3: image 0: sides must be multiples of 16 pixels, found 40x40"):
        encode(dataset, Encoder(), tmp_path / "out", keep_size=True)
    with pytest.raises(InputError, match="keep_size and square"):
        encode(dataset, Encoder(), tmp_path / "both", keep_size=True, square=True)
    noise = np.random.default_rng(0).integers(0, 256, (64, 128, 3), np.uint8)
    entry = shards.write_shard(
        dataset / shards.shard_name(0), [records.pack(Sample((ImagePart.from_pixels(noise),), "pair", "wide"))]
    )
    shards.write_index(dataset, "tiny", [entry], images=1, kinds={"pair": 1})
    encode(dataset, Encoder(), tmp_path / "kept", keep_size=True, dtype="float32")
    source = ArrayRecordSource(tmp_path / "kept")
    assert source.index["latents"] == {"dtype": "float32", "keep_size": True}
    expected = (noise / 127.5 - 1).reshape(8, 8, 16, 8, 3).mean((1, 3))
    np.testing.assert_allclose(source[0].images[0].latents()[..., :3], expected, atol=1e-5)


def test_random_crops_differ_and_come_again(dataset, tmp_path):
    """Columns count up: a crop shows where it was taken."""
    ramp = np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], (20, 200, 3))
    parts = [Sample((ImagePart.from_pixels(np.ascontiguousarray(ramp)),), "pair", str(i)) for i in range(30)]
    entry = shards.write_shard(dataset / shards.shard_name(0), [records.pack(sample) for sample in parts])
    shards.write_index(dataset, "tiny", [entry], images=30, kinds={"pair": 30})

    def firsts(folder, **options):
        encode(dataset, Encoder(), tmp_path / folder, area=16, square=True, dtype="float32", **options)
        source = ArrayRecordSource(tmp_path / folder)
        return [float(source[i].images[0].latents()[0, 0, 0]) for i in range(30)]

    drawn = firsts("drawn", crop="random")
    assert len(set(drawn)) > 20 and min(drawn) < -0.6 and max(drawn) > 0.2
    assert firsts("again", crop="random") == drawn
    assert len(set(firsts("center"))) == 1


def test_a_folder_of_datasets_is_one_source(dataset, tmp_path):
    """The same images at two areas, mixed by samples; what lies beside them is named."""
    for area in (32, 64):
        encode(dataset, Encoder(), tmp_path / "both" / str(area), area=area, dtype="float32", encoder={"image_tokenizer": "a"})
    (tmp_path / "both" / "notes.txt").write_text("x")
    source = pickle.loads(pickle.dumps(open_source(tmp_path / "both")))
    assert (source.name, len(source)) == ("both", 12)
    sides = [[max(part.grid[:2]) * 8 for part in source[i].images] for i in range(12)]
    assert [source[i].key for i in range(12)] == [*"012345"] * 2
    assert all(b == [2 * side for side in a] for a, b in zip(sides[:6], sides[6:], strict=True))
    assert source.unused.to_json() == {"file beside datasets": {"count": 1, "names": ["notes.txt"]}}
    before = source.fingerprint(0, 3), source.fingerprint(9, 12), source.identity()
    encode(
        dataset, lambda pixels: -Encoder()(pixels), tmp_path / "new", area=64, dtype="float32", encoder={"image_tokenizer": "a"}
    )
    shutil.rmtree(tmp_path / "both" / "64")
    shutil.move(tmp_path / "new", tmp_path / "both" / "64")
    after = open_source(tmp_path / "both")
    changed = [
        x == y for x, y in zip(before, (after.fingerprint(0, 3), after.fingerprint(9, 12), after.identity()), strict=True)
    ]
    assert changed == [True, False, False]
    encode(dataset, Encoder(), tmp_path / "both" / "48", area=48, encoder={"image_tokenizer": "b"})
    with pytest.raises(InputError, match="both/48: not encoded by the same image tokenizer as .*both/32"):
        open_source(tmp_path / "both")
